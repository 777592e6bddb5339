"""Draws of patients: how often, and alike everywhere."""

import subprocess
import sys

import numpy as np

from metrics.bootstrap import REPLICATES, excess_draws


def test_a_patient_is_drawn_once_on_average_with_a_variance_of_one():
    drawn = excess_draws([f"p{number}" for number in range(400)])
    assert drawn.shape == (REPLICATES, 400) and drawn.min() == -1.0
    assert abs(drawn.mean()) < 0.01 and abs(drawn.var() - 1.0) < 0.02


def test_patients_are_drawn_independently():
    drawn = excess_draws(["one", "other"])
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.25


def test_draws_do_not_depend_on_who_else_is_there_nor_on_the_process():
    assert np.array_equal(excess_draws(["a", "b"])[:, 1], excess_draws(["b"])[:, 0])
    code = "from metrics.bootstrap import excess_draws; print(excess_draws(['b']).sum(), excess_draws(['b'])[:9, 0].tolist())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert float(said[0]) == excess_draws(["b"]).sum() and said[1].strip() == str(excess_draws(["b"])[:9, 0].tolist())
