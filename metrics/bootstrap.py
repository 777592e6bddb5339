"""Bootstrap weights of patients, the same in every evaluation, so that two models' replicates can be compared one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

REPLICATES = 256


@lru_cache(maxsize=100_000)
def _draws(name: Hashable) -> np.ndarray:
    """(256,) how much more often than once a unit is drawn. Poisson with mean 1, so that a unit's draws do not depend on who else is there
    (Hanley and MacGibbon 2006, "Creating non-parametric bootstrap samples using Poisson frequencies")."""
    seed = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).poisson(1.0, REPLICATES) - 1.0


@lru_cache(maxsize=64)
def _matrix(names: tuple[Hashable, ...]) -> np.ndarray:
    return np.stack([_draws(name) for name in names], axis=1)


def excess_draws(names: Sequence[Hashable]) -> np.ndarray:
    """(256, units) how much more often than once each unit (a patient, or a group of them) is drawn in each replicate.

    A unit has the same draws wherever its name stands: in train's and twin's captions, in another metric, in another trial or process.

    >>> excess_draws(["a", "b"]).shape
    (256, 2)
    """
    return _matrix(tuple(names))
