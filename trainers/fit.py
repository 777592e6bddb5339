"""The inner fine-tune in one call, for those who need no pause on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trainers.methods import Subset
from trainers.mitigated import Encode
from trainers.mitigations.hooks import TrainingHooks
from trainers.plan import Examples, Plan
from trainers.record import Fit
from trainers.resuming import Checkpoints
from trainers.training import Evaluation, Training


def fit(unet, scheduler, subset: Subset, examples: Examples, plan: Plan, on_step: Callable[[int], None] = lambda step: None, *,
        rates: Mapping[str, float] | None = None, hooks: Sequence[TrainingHooks] = (), encode: Encode | None = None,
        evaluations: Sequence[Evaluation] = (), checkpoints: Checkpoints | None = None) -> Fit:
    """Train the subset in place for all of the plan's steps. The arguments, what is left behind and what is raised are those of
    `trainers.training.Training`: at the end the subset has the averaged values if there is an EMA; whatever is raised, also by a callback, leaves
    the U-Net in evaluation mode, without gradients, with the trained weights of that moment."""
    with Training(unet, scheduler, subset, examples, plan, rates=rates, hooks=hooks, encode=encode, evaluations=evaluations,
                  checkpoints=checkpoints, on_step=on_step) as training:
        training.run_to(plan.steps)
    return training.fit()
