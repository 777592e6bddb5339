"""A candidate: one point of the search space as an immutable value with a canonical hash and a line of words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from trainers.units import REGIONS

HASH_DIGITS = 16
RATE_DIGITS = 3  # significant digits of a learning rate: what words show is what is trained


def rounded(rate: float) -> float:
    """A learning rate to three significant digits, so that a candidate's words name it exactly."""
    return float(f"{rate:.{RATE_DIGITS}g}")


@dataclass(frozen=True)
class Candidate:
    """Which parameters become trainable and how they are trained.

    method: a name of `trainers.methods.METHODS`; regions and kinds: what `Units.select` takes; rank: of an adapter, else
    None; learning_rate: of AdamW; steps: optimizer steps.
    """

    method: str
    regions: tuple[str, ...]
    kinds: tuple[str, ...]
    learning_rate: float
    steps: int
    rank: int | None = None

    @property
    def hash(self) -> str:
        """The same whatever the order in which regions and kinds were named, and however often."""
        canonical = {**asdict(self), "regions": sorted(set(self.regions)), "kinds": sorted(set(self.kinds)), "learning_rate": rounded(self.learning_rate)}
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]

    @property
    def words(self) -> str:
        """One line: "LoRA rank 8 on cross-attention of up blocks, lr 3e-4, 200 steps"."""
        from trainers.methods import METHODS

        rank = f" rank {self.rank}" if self.rank is not None else ""
        return (f"{METHODS[self.method].title}{rank} on {listed(self.kinds)} of {where(self.regions)}, "
                f"lr {short(self.learning_rate)}, {self.steps} steps")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        return cls(**{**data, "regions": tuple(data["regions"]), "kinds": tuple(data["kinds"])})


def short(rate: float) -> str:
    """A learning rate as it is written in papers: 3e-4, 2.17e-3, 1e-2."""
    mantissa, exponent = f"{rate:.{RATE_DIGITS - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def where(regions: tuple[str, ...]) -> str:
    return "all blocks" if set(REGIONS) <= set(regions) else f"{listed(regions)} blocks"
