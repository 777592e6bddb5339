"""The ladder of rungs."""

import pytest

from hpo.errors import BadSetting
from hpo.rungs import ladder
from hpo.settings import Settings


@pytest.mark.parametrize("steps, rungs, reduction, found", [(200, 3, 3, (22, 67, 200)), (200, 1, 3, (200,)), (81, 5, 3, (1, 3, 9, 27, 81)),
                                                            (2000, 3, 4, (125, 500, 2000))])
def test_steps_divided_by_powers_of_the_reduction(steps: int, rungs: int, reduction: float, found: tuple[int, ...]) -> None:
    assert ladder(steps, rungs, reduction) == found
    assert Settings(steps=steps, rungs=rungs, reduction=reduction).check().ladder == found


def test_the_default_is_two_rungs_as_the_documents_say() -> None:
    assert Settings().ladder == (67, 200)


def test_a_longer_ladder_has_the_shorter_one_at_its_end() -> None:
    assert ladder(200, 4, 3)[1:] == ladder(200, 3, 3)


@pytest.mark.parametrize("steps, rungs, reduction, words", [(4, 3, 3, "of --steps 4 they would be 0, 1, 4, which do not grow from 1 on: take --rungs 2"),
                                                            (200, 9, 3, "take --rungs 6"), (1, 3, 3, "take --rungs 1")])
def test_rungs_that_do_not_grow_are_refused(steps: int, rungs: int, reduction: float, words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        Settings(steps=steps, rungs=rungs, reduction=reduction).check()


def test_a_reduction_of_one_is_no_ladder() -> None:
    with pytest.raises(BadSetting, match="--reduction 1: it must be at least 2"):
        Settings(reduction=1).check()
