"""The methods as they were published, and the finite space of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpo.spaces import SPACES, Bounds
from hpo.spaces.reference import BASELINES, REFERENCE_RANK, reference_candidate
from trainers.methods import METHODS
from trainers.units import REGIONS


@pytest.mark.parametrize("name", METHODS)
def test_a_method_as_published_is_everywhere_at_its_own_rates(name: str, unet, units) -> None:
    candidate, method = reference_candidate(name, 200, 0.5), METHODS[name]
    assert (candidate.method, candidate.steps, candidate.parts[0].regions, candidate.parts[0].kinds) == (name, 200, REGIONS, method.kinds[0])
    assert candidate.learning_rate == pytest.approx(method.reference_rate / 2, rel=5e-3)
    assert (candidate.norm_rate is None) == (method.norm_rates is None)
    assert candidate.norm_rate is None or candidate.norm_rate == pytest.approx(method.reference_norm_rate / 2, rel=5e-3)
    assert candidate.parts[0].rank in method.ranks if method.ranks else candidate.parts[0].rank is None
    assert candidate.parts[0].rank == REFERENCE_RANK or REFERENCE_RANK not in method.ranks
    assert candidate.frozen == candidate.mitigations == () and 0 < method.count(unet, units, candidate)


def test_the_papers_methods_come_first_and_the_yardstick_before_them() -> None:
    assert BASELINES[0] == "full" and len(set(BASELINES)) == len(BASELINES) and set(BASELINES) <= set(METHODS)


def test_the_space_is_finite(bounds: Bounds, proposed: Callable) -> None:
    assert len(set(proposed(SPACES["reference"], bounds, 400))) == len(bounds.methods) * 4
