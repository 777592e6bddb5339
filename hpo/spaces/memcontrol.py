"""MemControl's spaces (arXiv 2405.19458) as its reference code has them: a bit for each attention block, and a learning rate.

The code is Raman1121/Diffusion_Memorization_HPO at commit 5a6afdd: train_text_to_image_HPO.py L81-110 and L742, adaptors.py
L1371-1548. A 0 bit there freezes less than one may think, so each has a strict twin, in which it freezes the whole block.
"""

from __future__ import annotations

from typing import Any

from hpo.errors import BadSetting
from hpo.spaces.base import Bounds, Space
from hpo.spaces.choices import suggest_rate
from trainers.candidate import Candidate, Part
from trainers.methods import METHODS
from trainers.units import REGIONS, inside

LEARNING_RATES = (1e-5, 1e-3)  # log-uniform, on Stable Diffusion: --learning-rate-scale, which fits our own ranges to a model, does not count here
NORM_RATE = 1e-6  # its learning_rate_1d, of one-dimensional parameters, which is not searched


class MemControl(Space):
    """One method at all steps. Bits are named by the block's path: 1 trains it, 0 freezes what `frozen` says there.

    kinds: what the base method trains; None: the method's own first choice. every: whether the last attention block of each
    up block has a bit too; without one it is always trained. On Stable Diffusion v1.5 that makes 13 bits, and 16 with it.
    Other U-Nets have the bits of their own attention blocks by the same rule.
    """

    def __init__(self, method: str, frozen: tuple[str, ...], kinds: tuple[str, ...] | None = None, every: bool = False, strict: bool = False):
        self.name = f"memcontrol-{method}" + "-strict" * strict
        self.method, self.frozen, self.kinds, self.every = method, frozen, kinds, every

    def check(self, bounds: Bounds) -> None:
        if not self.bits(bounds):
            raise BadSetting(f"--space {self.name}: this U-Net has no attention blocks to choose among, take --space default")

    def bits(self, bounds: Bounds) -> tuple[str, ...]:
        """The attention blocks that a mask can freeze, in the order of its bits."""
        last = {site.rpartition(".")[0]: site for site in bounds.sites if site.startswith("up_blocks")}
        return tuple(site for site in bounds.sites if self.every or site not in last.values())

    def propose(self, trial: Any, bounds: Bounds) -> Candidate:
        off = tuple(site for site in self.bits(bounds) if not trial.suggest_int(site, 0, 1))
        rate = suggest_rate(trial, "learning rate", LEARNING_RATES)
        method = METHODS[self.method]
        norm_rate = None if method.norm_rates is None else NORM_RATE
        return Candidate.of(self.method, REGIONS, self.kinds or method.kinds[0], rate, bounds.steps[-1], norm_rate=norm_rate,
                            frozen=(Part(shortened(off, bounds.sites), self.frozen),) if off else ())

    def answers(self, candidate: Candidate, bounds: Bounds) -> dict[str, Any]:
        off = [region for part in candidate.frozen for region in part.regions]
        return {site: int(not any(inside(site, region) for region in off)) for site in self.bits(bounds)} | {"learning rate": candidate.learning_rate}


def shortened(off: tuple[str, ...], sites: tuple[str, ...]) -> tuple[str, ...]:
    """The same sites in fewer words: "down_blocks.0.attentions" where all attention blocks below it are meant."""
    def whole(site: str) -> bool:
        return all(other in off for other in sites if inside(other, site.rpartition(".")[0]))

    return tuple(dict.fromkeys(site.rpartition(".")[0] if whole(site) else site for site in off))


MASKS = (  # method, what a 0 bit freezes, what it freezes in the strict twin, what the base method trains, whether every block has a bit
    ("svdiff", ("transformer-block",), ("everything",), None, False),  # deltas outside the transformer blocks stay trainable
    ("difffit", ("scale",), ("everything", "scale"), None, False),  # all biases and norms stay trainable
    ("attention", ("attention",), ("everything",), ("transformer",), True),  # feed-forward, norms and projections stay trainable
)
PRESETS = tuple(MemControl(method, strictly if strict else frozen, kinds, every, strict)
                for method, frozen, strictly, kinds, every in MASKS for strict in (False, True))
