"""The ladder of rungs."""

import pytest

from hpo.errors import BadSetting
from hpo.rungs import evaluated, ladder, longest
from hpo.settings import Settings


@pytest.mark.parametrize("steps, rungs, reduction, found", [(200, 3, 3, (22, 67, 200)), (200, 1, 3, (200,)), (81, 5, 3, (1, 3, 9, 27, 81)),
                                                            (2000, 3, 4, (125, 500, 2000))])
def test_steps_divided_by_powers_of_the_reduction(steps: int, rungs: int, reduction: float, found: tuple[int, ...]) -> None:
    assert ladder(steps, rungs, reduction) == found
    assert Settings(steps=steps, rungs=rungs, reduction=reduction).check().ladder == found


def test_the_defaults_are_as_the_documents_say() -> None:
    settings = Settings()
    assert settings.ladder == (22, 67, 200)
    assert evaluated(settings.ladder, settings.evaluated_rungs, 200) == (67, 200)


@pytest.mark.parametrize("last, steps, found", [(3, 200, (22, 67, 200)), (1, 200, (200,)), (2, 67, (67,)), (2, 22, (22,)), (3, 67, (22, 67)), (9, 200, (22, 67, 200)),
                                                (2, 100, (67, 100)), (2, 5, (5,))])
def test_a_trial_is_evaluated_at_its_own_steps_and_at_the_last_rungs_below(last: int, steps: int, found: tuple[int, ...]) -> None:
    assert evaluated((22, 67, 200), last, steps) == found


def test_a_longer_ladder_has_the_shorter_one_at_its_end() -> None:
    assert ladder(200, 4, 3)[1:] == ladder(200, 3, 3)


@pytest.mark.parametrize("steps, rungs, reduction, words", [(4, 3, 3, "of --steps 4 they would be 0, 1, 4, which do not grow from 1 on: take --rungs 2"),
                                                            (200, 9, 3, "they would be … 0, 1, 2, 7, 22, 67, … up to 200, .*: take --rungs 6"), (1, 3, 3, "take --rungs 1"),
                                                            (5, 4, 2, "be 1, 1, 2, 5, which do not grow"), (2**31 - 1, 2**31 - 1, 2, "take --rungs 32, or")])
def test_rungs_that_do_not_grow_are_refused(steps: int, rungs: int, reduction: float, words: str) -> None:
    with pytest.raises(BadSetting, match=words) as refused:
        Settings(steps=steps, rungs=rungs, reduction=reduction).check()
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("reduction", range(2, 6))
def test_the_longest_ladder_grows_from_1_on_and_one_more_rung_would_not(reduction: int) -> None:
    for steps in range(1, 200):
        found = longest(steps, reduction)
        assert found[0] >= 1 and found[-1] == steps and all(before < after for before, after in zip(found, found[1:]))
        assert not 1 <= round(steps / reduction ** len(found)) < found[0]


def test_a_reduction_of_one_is_no_ladder() -> None:
    with pytest.raises(BadSetting, match="--reduction 1: it must be at least 2"):
        Settings(reduction=1).check()
