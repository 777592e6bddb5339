"""All training-time mitigations of a candidate as one: what several `TrainingHooks` say, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trainers.draws import Drawn
from trainers.errors import BadSelection
from trainers.mitigations.hooks import Batch, TrainingHooks
from trainers.plan import Examples

Encode = Callable[[list[str]], torch.Tensor]


class Mitigations:
    """Without hooks nothing is changed. encode: texts → (k, tokens, width) states on the U-Net's device, for hooks that change captions."""

    def __init__(self, hooks: Sequence[TrainingHooks], encode: Encode | None):
        self.hooks, self.encode = tuple(hooks), encode

    def kept(self, count: int) -> torch.Tensor:
        """Rows, (k,) int64, that every hook keeps of `count` pictures. Raises BadSelection if none is left."""
        rows = np.arange(count)
        for hook in self.hooks:
            kept = hook.kept()
            if kept is not None:
                rows = np.intersect1d(rows, kept)
        if not len(rows):
            raise BadSelection(f"the mitigations leave none of {count} pictures to learn from: take weaker ones")
        return torch.from_numpy(rows)

    def expect(self, rows: Callable[[int], np.ndarray], steps: int) -> None:
        for hook in self.hooks:
            hook.expect(rows, steps)

    def states(self, step: int, examples: Examples, drawn: Drawn) -> torch.Tensor:
        """The caption states (b, tokens, width) that the U-Net is given at this step. A dropped caption is the empty one, whatever hooks
        made of it; what changes states is done last. Raises BadSelection where two hooks change the captions."""
        texts = [said for hook in self.hooks if (said := hook.texts(step, drawn.rows.cpu().numpy())) is not None]
        if len(texts) > 1:
            raise BadSelection(f"{len(texts)} mitigations change the captions of step {step}: a candidate can have one such")
        if texts:
            states = torch.where(drawn.dropped[:, None, None], examples.states[examples.empty], self.encode(texts[0]))
        else:
            states = examples.states[torch.where(drawn.dropped, examples.empty, examples.caption[drawn.rows])]
        for hook in self.hooks:
            states = hook.states(step, states)
        return states

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """The product (b,) of all hooks' weights of the samples, or None if there are none."""
        found = None
        for hook in self.hooks:
            weights = hook.weights(batch)
            if weights is None:
                continue
            if weights.shape != batch.timesteps.shape or not (weights >= 0).all():
                raise AssertionError(f"{type(hook).__name__}: weights must be {tuple(batch.timesteps.shape)} numbers from 0 on, got {weights}")
            found = weights if found is None else found * weights
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"hooks": [hook.state_dict() for hook in self.hooks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for hook, saved in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(saved)
