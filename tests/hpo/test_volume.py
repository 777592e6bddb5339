"""The hypervolume of a study's front, and the point it is measured to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpo import objectives
from hpo.study import Search
from hpo.volume import hypervolume, reference_point


def test_the_reference_point_is_the_worse_of_base_and_yardstick_in_each_objective() -> None:
    chosen = objectives.parse("fd,amd_train")
    assert reference_point(chosen, {"fd": (5.0, 4, 6), "amd_train": (0.3, 0.2, 0.4)}, {"fd": 1.0, "amd_train": 0.1}) == [5.0, -0.1]
    assert reference_point(chosen, {"fd": (5.0, 4, 6)}, {"fd": 1.0, "amd_train": None}) is None


def test_it_is_known_once_the_yardstick_is(searching: Callable[..., Search], finish: Callable) -> None:
    search = searching()
    known = search.store, search.settings.study, search.id, search.objectives
    assert hypervolume(*known) is None
    finish(search, fd=1.0, copy_excess=0.5)  # the yardstick; the base is at (5, 0)
    assert hypervolume(*known) == 0.0, "it lies on the edge of its own box"
    finish(search, fd=2.0, copy_excess=0.1)
    assert hypervolume(*known) == pytest.approx((5 - 2) * (0.5 - 0.1))
