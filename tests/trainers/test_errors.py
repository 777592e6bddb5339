"""Each error is one line, and a misspelt name is answered with those most like it."""

from __future__ import annotations

import math

import pytest

from trainers.errors import BadData, BadModel, BadSelection, CorruptPicture, TrainerError, TrainingDiverged, nearest


def test_a_diverged_training_says_where_and_what_helps():
    error = TrainingDiverged(7, math.nan, 0.5)
    assert (error.step, error.learning_rate) == (7, 0.5) and math.isnan(error.loss)
    assert str(error) == "loss is nan at step 7 with learning rate 0.5: it must stay finite, a lower rate helps"


def test_all_are_trainer_errors_and_values():
    for kind in (BadData, BadModel, BadSelection, CorruptPicture, TrainingDiverged):
        assert issubclass(kind, TrainerError) and issubclass(kind, ValueError)


@pytest.mark.parametrize("name, known, said", [
    ("lorra", ["full", "lora", "bias"], "lora"), ("x", ["only"], "only"), ("x", [], "none, there are none")])
def test_nearest(name, known, said):
    assert nearest(name, known).startswith(said)


def test_nearest_gives_three_at_most():
    assert nearest("a1", [f"a{n}" for n in range(9)]).count("a") == 3
