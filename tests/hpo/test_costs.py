"""What a launch will cost, from seconds that are made up."""

from __future__ import annotations

import pytest

from hpo.costs import Costs
from hpo.rungs import evaluated
from hpo.settings import Settings
from hpo.spaces.reference import BASELINES


def costs(trials: int, **changes) -> Costs:
    """A step takes a second, an evaluation 4,000."""
    settings = Settings(generated=1000, train_images=1000, **changes)
    return Costs(settings, trials, True, {}, {}, step={"full": 0.5, "lora": 1.5}, picture=1.0, loss=1.0, encode=0.0, load=0.0, workers=1, device="cpu")


@pytest.mark.parametrize("changes", [{}, {"evaluated_rungs": 1}, {"evaluated_rungs": 3}, {"evaluated_rungs": 9}, {"rungs": 1}, {"baselines": False}])
@pytest.mark.parametrize("trials", [1, 5, 200])
def test_yardstick_and_baselines_are_evaluated_at_all_rungs(trials: int, changes: dict) -> None:
    found = costs(trials, **changes)
    settings, first = found.settings, min(trials, len(BASELINES) if found.settings.baselines else 1)
    ordinary = evaluated(settings.ladder, settings.evaluated_rungs, settings.steps)
    assert found.all == 200 * trials + 4000 * (first * len(settings.ladder) + (trials - first) * len(ordinary))
