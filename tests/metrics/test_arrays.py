"""What arrays are refused, and in which words."""

import numpy as np
import pytest

from metrics.arrays import finite, row_indices, same_length
from metrics.errors import BadArray


def test_a_nan_is_refused_with_its_row():
    features = np.ones((4, 2))
    features[2, 1] = np.nan
    with pytest.raises(BadArray, match="train holds NaN or infinity in 1 of 4 rows, first in row 2"):
        finite("train", features, 2)


@pytest.mark.parametrize("values", [np.ones(3), np.ones((0, 3)), np.ones((2, 3, 1))])
def test_wrong_arity_is_refused(values):
    with pytest.raises(BadArray, match="needs 2 axes and at least one row"):
        finite("train", values, 2)


@pytest.mark.parametrize("own", [np.array([0, 3]), np.array([-1, 0]), np.array([0.0, 1.0]), np.array([], dtype=int)])
def test_rows_that_do_not_exist_are_refused(own):
    with pytest.raises(BadArray, match="^own "):
        row_indices("own", own, 3)


def test_lengths_must_agree():
    with pytest.raises(BadArray, match="a has 2 rows, b has 3"):
        same_length("a", np.ones(2), "b", np.ones(3))
