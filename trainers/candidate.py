"""A candidate: one point of the search space as an immutable value with a canonical hash and a line of words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainers.units import REGIONS

HASH_DIGITS = 16
RATE_DIGITS = 3  # significant digits of a learning rate: what words show is what is trained


def rounded(rate: float) -> float:
    """A number to three significant digits, so that a candidate's words name it exactly."""
    return float(f"{rate:.{RATE_DIGITS}g}")


@dataclass(frozen=True)
class Part:
    """Units of a U-Net by where they are and of which kind, as `Units.select` takes both, and an adapter's rank there.

    alpha: an adapter's output is scaled by alpha / rank (rsLoRA: by alpha / √rank); None: as the method has it, mostly by 1.
    """

    regions: tuple[str, ...]
    kinds: tuple[str, ...]
    rank: int | None = None
    alpha: float | None = None

    @property
    def words(self) -> str:
        return f"{listed(self.kinds)} of {where(self.regions)}"

    @property
    def rank_words(self) -> str:
        return "" if self.rank is None else f"rank {self.rank}" + ("" if self.alpha is None else f" alpha {self.alpha:g}")

    def to_json(self) -> dict[str, Any]:
        return {"regions": list(self.regions), "kinds": list(self.kinds), "rank": self.rank, "alpha": self.alpha}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        return cls(**{**data, "regions": tuple(data["regions"]), "kinds": tuple(data["kinds"])})

    def canonical(self) -> dict[str, Any]:
        return {**self.to_json(), "regions": sorted(set(self.regions)), "kinds": sorted(set(self.kinds))}


@dataclass(frozen=True)
class Applied:
    """A mitigation at a strength. mitigation: a name of `trainers.mitigations.MITIGATIONS`; strength: its numbers by name."""

    mitigation: str
    strength: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, mitigation: str, **strength: float) -> Applied:
        return cls(mitigation, tuple(sorted((name, rounded(value)) for name, value in strength.items())))

    def to_json(self) -> dict[str, Any]:
        return {"mitigation": self.mitigation, "strength": dict(self.strength)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Applied:
        return cls(data["mitigation"], tuple(sorted(data["strength"].items())))


@dataclass(frozen=True)
class Candidate:
    """Which parameters become trainable and how they are trained.

    method: a name of `trainers.methods.METHODS`. parts: what it is applied to, together; where parts overlap, the later
    one's rank counts. frozen: parts that are taken out again. learning_rate: of AdamW; norm_rate: of one-dimensional
    parameters where the method trains those at a rate of their own, else None. steps: optimizer steps. mitigations: what is
    used on top.
    """

    method: str
    parts: tuple[Part, ...]
    learning_rate: float
    steps: int
    frozen: tuple[Part, ...] = ()
    norm_rate: float | None = None
    mitigations: tuple[Applied, ...] = ()

    @classmethod
    def of(cls, method: str, regions: tuple[str, ...], kinds: tuple[str, ...], learning_rate: float, steps: int, rank: int | None = None,
           **more: Any) -> Candidate:
        """A candidate of one part."""
        return cls(method, (Part(regions, kinds, rank),), learning_rate, steps, **more)

    @property
    def hash(self) -> str:
        """The same in whatever order regions, kinds, frozen parts and mitigations were named, and however often."""
        canonical = {
            "method": self.method, "parts": [part.canonical() for part in self.parts], "steps": self.steps, "learning_rate": rounded(self.learning_rate),
            "norm_rate": None if self.norm_rate is None else rounded(self.norm_rate),
            "frozen": in_order(part.canonical() for part in self.frozen),
            "mitigations": in_order({"mitigation": each.mitigation, "strength": {name: rounded(value) for name, value in each.strength}}
                                    for each in self.mitigations)}
        if len({(part["rank"], part["alpha"]) for part in canonical["parts"]}) == 1:  # then no part wins over another
            canonical["parts"] = in_order(canonical["parts"])
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:HASH_DIGITS]

    @property
    def root(self) -> str:
        """Hash without the number of steps: what all rungs of one training have in common."""
        return replace(self, steps=0).hash

    @property
    def words(self) -> str:
        """One line: "LoRA rank 8 on cross-attention of up blocks, lr 3e-4, 200 steps"."""
        from trainers.methods import METHODS
        from trainers.mitigations import in_words

        ranks = list(dict.fromkeys(part.rank_words for part in self.parts))
        if len(ranks) == 1:
            chosen = f"{ranks[0]} on " * bool(ranks[0]) or "on "
            chosen += " and ".join(part.words for part in self.parts)
        else:
            chosen = "on " + " and ".join(f"{part.words} ({part.rank_words})" for part in self.parts)
        frozen = f", frozen: {' and '.join(part.words for part in self.frozen)}" if self.frozen else ""
        norms = f" (norms {short(self.norm_rate)})" if self.norm_rate is not None else ""
        on_top = "".join(f", {in_words(each)}" for each in self.mitigations)
        return f"{METHODS[self.method].title} {chosen}{frozen}, lr {short(self.learning_rate)}{norms}, {self.steps} steps{on_top}"

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "parts": [part.to_json() for part in self.parts], "learning_rate": self.learning_rate, "steps": self.steps,
                "frozen": [part.to_json() for part in self.frozen], "norm_rate": self.norm_rate,
                "mitigations": [each.to_json() for each in self.mitigations]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Candidate:
        return cls(**{**data, "parts": tuple(map(Part.from_json, data["parts"])), "frozen": tuple(map(Part.from_json, data["frozen"])),
                      "mitigations": tuple(map(Applied.from_json, data["mitigations"]))})


def in_order(parts: Any) -> list[dict[str, Any]]:
    """Without repeats, in one order."""
    return [json.loads(text) for text in sorted({json.dumps(part, sort_keys=True) for part in parts})]


def short(rate: float) -> str:
    """A learning rate as it is written in papers: 3e-4, 2.17e-3, 1e-2."""
    mantissa, exponent = f"{rate:.{RATE_DIGITS - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def where(regions: tuple[str, ...]) -> str:
    if set(REGIONS) <= set(regions):
        return "all blocks"
    return f"{listed(regions)} blocks" if set(regions) <= set(REGIONS) else listed(regions)
