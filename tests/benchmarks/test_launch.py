"""What a launch's time went to, out of its logs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.launch import busy_seconds
from hpo.inner_loop import STAGES, Result
from metrics.scores import Scores


def test_busy_is_what_each_trial_spent_by_its_last_rung_in_the_words_of_the_log() -> None:
    def line(trial: int, steps: int, *seconds: float) -> str:
        result = Result(Scores({}), steps, 1, 0.1, 0.5, {**dict(zip(STAGES, seconds)), "applying the method": 9.0, "total": 99.0}, np.zeros((0, 2, 2), np.uint8))
        return f"11:53:41 trial {trial} is evaluated at {steps} steps, after {result.spent}\n"

    logs = "11:53:32 trial 0: full fine-tuning\n" + line(0, 22, 1, 0, 2, 3) + line(11, 67, 0.5, 0, 0.25, 0.25) + line(0, 67, 4, 0.5, 5, 6) + "11:54:09 trial 0 finished\n"
    assert busy_seconds(logs) == pytest.approx({"training": 4.5, "held-out loss": 0.5, "generating": 5.25, "scoring": 6.25})
