"""The table of mitigations: adding one is a file and a line here. And what a candidate's mitigations are together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainers.candidate import Applied
from trainers.errors import BadSelection, nearest
from trainers.mitigations.base import OUTPUTS, WEIGHTS, Mitigation
from trainers.mitigations.deduplication import Deduplication
from trainers.mitigations.hooks import GenerationHooks, Learned, TrainingHooks
from trainers.mitigations.noise import Noise
from trainers.mitigations.prompt_optimization import PromptOptimization
from trainers.mitigations.random_tokens import RandomTokens
from trainers.mitigations.rwa import RandomWords
from trainers.mitigations.rwa_once import RandomWordsOnce
from trainers.mitigations.threshold import Threshold
from trainers.mitigations.threshold_quantile import ThresholdQuantile

if TYPE_CHECKING:
    import torch

MITIGATIONS: dict[str, Mitigation] = {mitigation.name: mitigation for mitigation in (
    RandomWords(),
    RandomWordsOnce(),
    Threshold(),
    ThresholdQuantile(),
    Noise(),
    Deduplication(),
    RandomTokens(),
    PromptOptimization(),
)}


def mitigation(name: str) -> Mitigation:
    """The mitigation of that name. Raises BadSelection with the nearest names."""
    if name not in MITIGATIONS:
        raise BadSelection(f"mitigation {name!r} is unknown: take {nearest(name, MITIGATIONS)}")
    return MITIGATIONS[name]


def in_words(applied: Applied) -> str:
    return mitigation(applied.mitigation).words(dict(applied.strength))


def check(applied: Sequence[Applied]) -> None:
    """Raises BadSelection for mitigations that are unknown or too strong, and for two that cannot go together."""
    for each in applied:
        mitigation(each.mitigation).check(dict(each.strength))
    names = [each.mitigation for each in applied]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise BadSelection(f"mitigation {min(repeated)} is applied {names.count(min(repeated))} times: once is enough")
    if len(rewriting := sorted({RandomWords.name, RandomWordsOnce.name} & set(names))) > 1:
        raise BadSelection(f"mitigations {' and '.join(rewriting)} both rewrite what training hears: take one of them")


def training_hooks(applied: Sequence[Applied], learned: Learned) -> list[TrainingHooks]:
    """The hooks of those that protect weights, for `trainers.fit.fit`, in an order that does not depend on that of `applied`."""
    return [mitigation(each.mitigation).hooks(dict(each.strength), learned) for each in in_order(applied, WEIGHTS)]


def generation_hooks(applied: Sequence[Applied], learned: Learned) -> list[GenerationHooks]:
    """The hooks of those that protect outputs, for `trainers.sampling.sample`, in an order that does not depend on that of `applied`."""
    return [mitigation(each.mitigation).hooks(dict(each.strength), learned) for each in in_order(applied, OUTPUTS)]


def as_trained(applied: Sequence[Applied], captions: list[str], learned: Learned) -> torch.Tensor | None:
    """States (k, tokens, width) of captions (k,) of any side as a training with these mitigations hears them, or None if it hears them as
    they are written."""
    texts, changing = captions, [each for each in in_order(applied, WEIGHTS) if mitigation(each.mitigation).changes_captions]
    for each in changing:
        texts = mitigation(each.mitigation).as_trained(texts, dict(each.strength), learned)
    if not changing:
        return None
    states = learned.encode(texts)
    for each in changing:
        states = mitigation(each.mitigation).as_trained_states(states, dict(each.strength), learned)
    return states


def in_order(applied: Sequence[Applied], protects: str) -> list[Applied]:
    """Those that protect that, in the table's order."""
    table = list(MITIGATIONS)
    return sorted((each for each in applied if mitigation(each.mitigation).protects == protects), key=lambda each: table.index(each.mitigation))


__all__ = ["MITIGATIONS", "OUTPUTS", "WEIGHTS", "Mitigation", "as_trained", "check", "generation_hooks", "in_words", "mitigation", "training_hooks"]
