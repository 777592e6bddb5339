"""The door of the package: what an array must be before arithmetic starts. No arithmetic of its own."""

from __future__ import annotations

import numpy as np

from metrics.errors import BadArray


def finite(name: str, values: np.ndarray, dimensions: int) -> np.ndarray:
    """`values` as a float64 array with that many axes.

    Raises:
        BadArray: a wrong number of axes, no rows, NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or len(array) == 0:
        raise BadArray(f"{name} has shape {array.shape}, needs {dimensions} axes and at least one row")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if len(bad):
        raise BadArray(
            f"{name} holds NaN or infinity in {len(bad)} of {len(array)} rows, first in row {bad[0]}: "
            "leave such pictures out, or see why the model made them (a diverged training does)"
        )
    return array


def same_length(name: str, values: np.ndarray, other: str, others: np.ndarray) -> None:
    """Raises BadArray unless both have one row a picture."""
    if len(values) != len(others):
        raise BadArray(f"{name} has {len(values)} rows, {other} has {len(others)}: give one row a picture to both")


def row_indices(name: str, own: np.ndarray, rows: int) -> np.ndarray:
    """`own` as (G,) integers, each the row of the reference picture whose caption called a generated picture up.

    Raises:
        BadArray: not whole numbers, or outside 0..rows-1.
    """
    array = np.asarray(own)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise BadArray(f"{name} has shape {array.shape} and type {array.dtype}, needs whole numbers, one a picture")
    if array.min() < 0 or array.max() >= rows:
        raise BadArray(f"{name} holds {array.min()} to {array.max()}, needs rows of the {rows} reference pictures")
    return array
