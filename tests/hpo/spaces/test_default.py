"""What the default space offers: every choice of methods and mitigations, a rank only for adapters, and none in a region that is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hpo.spaces import SPACES, Bounds
from hpo.spaces.reference import reference_candidate
from trainers.candidate import Part
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS
from trainers.units import REGIONS

DEFAULT = SPACES["default"]
ADAPTER = {"method": "lora", "blocks": "all blocks", "kinds of lora": "cross-attention", "learning rate of lora": 1e-3, "steps": 100, "mitigation": "none"}


def test_rates_kinds_and_ranks_are_the_methods_own(bounds: Bounds, proposed: Callable) -> None:
    for scale in (1.0, 0.01):
        for candidate in proposed(DEFAULT, replace(bounds, methods=tuple(METHODS), rate_scale=scale)):
            method = METHODS[candidate.method]
            for rate, rates in ((candidate.learning_rate, method.learning_rates), (candidate.norm_rate, method.norm_rates)):
                assert rate is None if rates is None else rates[0] * scale * 0.99 <= rate <= rates[1] * scale * 1.01, "three digits"
            assert {part.kinds for part in candidate.parts} <= set(method.kinds)
            assert all((part.rank in method.ranks) if method.ranks else part.rank is None for part in candidate.parts)


def test_one_rank_everywhere_or_one_a_region(bounds: Bounds, answered: Callable) -> None:
    same = DEFAULT.propose(answered({**ADAPTER, "ranks of lora": "the same everywhere", "rank of lora": 8}), bounds)
    assert same.parts == (Part(REGIONS, ("cross-attention",), 8),)
    apart = {**ADAPTER, "ranks of lora": "one a region", "rank of lora in down blocks": 4, "rank of lora in mid blocks": 16, "rank of lora in up blocks": 4}
    candidate = DEFAULT.propose(answered(apart), bounds)
    assert candidate.parts == (Part(("down", "up"), ("cross-attention",), 4), Part(("mid",), ("cross-attention",), 16))
    assert candidate.words == "LoRA on cross-attention of down and up blocks (rank 4) and cross-attention of mid blocks (rank 16), lr 1e-3, 100 steps"
    assert DEFAULT.fixed(candidate, bounds).params == {name: value for name, value in apart.items() if bounds.mitigations or name != "mitigation"}


def test_equal_ranks_a_region_are_the_same_candidate_as_one_rank(bounds: Bounds, answered: Callable) -> None:
    apart = {f"rank of lora in {region} blocks": 8 for region in REGIONS}
    first = DEFAULT.propose(answered({**ADAPTER, "ranks of lora": "one a region", **apart}), bounds)
    assert first == DEFAULT.propose(answered({**ADAPTER, "ranks of lora": "the same everywhere", "rank of lora": 8}), bounds)


def test_a_unet_without_a_middle_has_no_choice_of_it(bounds: Bounds, proposed: Callable) -> None:
    here = replace(bounds, sites=tuple(site for site in bounds.sites if not site.startswith("mid")), methods=("lora",))
    seen = proposed(DEFAULT, here)
    assert {part.regions for candidate in seen for part in candidate.parts} == {REGIONS, ("up",), ("down",), ("down", "up")}
    assert any(len(candidate.parts) == 2 for candidate in seen)


def test_what_is_not_chosen_is_not_asked(bounds: Bounds, proposed: Callable) -> None:
    for candidate in proposed(DEFAULT, replace(bounds, methods=tuple(METHODS), protects="outputs")):
        asked = DEFAULT.fixed(candidate, replace(bounds, methods=tuple(METHODS), protects="outputs")).params
        assert any(name.startswith("rank") for name in asked) == bool(METHODS[candidate.method].ranks)
        about = [name for name in asked if name.rpartition(" of ")[2] in {*METHODS, *MITIGATIONS}]
        assert {name.rpartition(" of ")[2] for name in about} <= {candidate.method, *(applied.mitigation for applied in candidate.mitigations)}


def test_every_mitigation_and_none_is_proposed(bounds: Bounds, proposed: Callable) -> None:
    for protects in ("weights", "outputs"):
        here = replace(bounds, protects=protects)
        seen = {applied for candidate in proposed(DEFAULT, here, 200) for applied in candidate.mitigations or (None,)}
        assert {applied and applied.mitigation for applied in seen} == {None, *here.mitigations}
        for applied in seen - {None}:
            numbers = MITIGATIONS[applied.mitigation].strengths
            assert {name: value in numbers[name] for name, value in applied.strength} == dict.fromkeys(numbers, True)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_rates_at_the_ends_of_the_range_can_be_proposed_again(method: str, end: int, bounds: Bounds, answered: Callable) -> None:
    here = replace(bounds, methods=(method,), rate_scale=0.123456)
    low, high = (float(f"{rate * here.rate_scale:.3g}") for rate in METHODS[method].learning_rates)
    answers = {**DEFAULT.fixed(reference_candidate(method, 200, here.rate_scale), here).params, f"learning rate of {method}": (low, high)[end]}
    candidate = DEFAULT.propose(answered(answers), here)
    assert DEFAULT.propose(answered(DEFAULT.fixed(candidate, here).params), here) == candidate and candidate.learning_rate == (low, high)[end]
