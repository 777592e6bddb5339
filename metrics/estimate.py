"""A number with its interval, the only thing that this package hands out about a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from metrics.errors import BadArray


@dataclass(frozen=True)
class Estimate:
    """`value` with the ends of its 95 % interval, all in the unit of its score.

    Attributes:
        replicates: (256,) the value in bootstrap replicates over patients, who are drawn alike in all estimates; None where
            they are not known. Not compared, and not in `to_json`.

    Raises:
        BadArray: a number is NaN or infinite, or the value lies outside its interval.

    >>> Estimate(0.25, 0.16, 0.34).excludes(0.0)
    True
    """

    value: float
    low: float
    high: float
    replicates: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            # numpy's scalars become plain floats: psycopg2 writes them as `np.float64(...)`.
            object.__setattr__(self, name, float(getattr(self, name)))
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)) or not np.isfinite(self.replicates if self.replicates is not None else 0).all():
            raise BadArray(f"{self} is not finite: leave the score out and store the reason instead")
        if not self.low <= self.value <= self.high:
            raise BadArray(f"{self} has its value outside its interval: give low <= value <= high")

    def excludes(self, number: float) -> bool:
        """True where `number` lies outside the interval."""
        return not self.low <= number <= self.high

    def to_json(self) -> dict[str, float]:
        """Plain floats by name, for `json.dumps`."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, stored: Mapping[str, float]) -> Estimate:
        """The inverse of `to_json`."""
        return cls(stored["value"], stored["low"], stored["high"])
