"""What a candidate must keep to: bounds on its size, known before it is trained, and on what is measured. Violated bounds keep a point off the front."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.command import items
from hpo.errors import BadSetting, SearchError
from metrics.scores import SCORES, Scores
from trainers.errors import nearest

if TYPE_CHECKING:
    from hpo.settings import Settings
    from hpo.study import Search

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ENDS = ("value", "low", "high")
PROPOSALS = 1000  # random ones of which one must be within what is known before a training
LEAST_LIMIT = 1e-9  # of which shares are taken; those of 0 are infinite
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Bound:
    """One bound. name: as messages and the store call it; end: which end of a score's interval is bounded."""

    name: str
    quantity: str
    limit: float
    at_most: bool = True
    end: str = "value"

    def violation(self, value: float) -> float:
        """How far a value is beyond the bound; 0 or less: it is kept to."""
        return value - self.limit if self.at_most else self.limit - value


@dataclass(frozen=True)
class Constraints:
    """size: on the number of trainable parameters, its limit a number or, where `share`, a share of the U-Net. measured: all others."""

    size: Bound | None = None
    share: bool = False
    measured: tuple[Bound, ...] = ()

    def __bool__(self) -> bool:
        return self.size is not None or bool(self.measured)

    def shares(self, violations: Mapping[str, float]) -> list[float]:
        """Violations in the order of their names, each as a share of its limit: TPE and NSGA-II add up bytes, seconds and scores."""
        bounds = self.measured if self.size is None else (self.size, *self.measured)
        limits = {bound.name: abs(bound.limit) for bound in bounds if abs(bound.limit) >= LEAST_LIMIT}
        return [violations[name] / limits.get(name, 1.0) for name in sorted(violations)]

    def before(self, trainable: int, total: int) -> dict[str, float]:
        """What is known before a training: violations by name. trainable, total: parameters of the candidate and of the U-Net."""
        return {} if self.size is None else {self.size.name: self.size.violation(trainable / total if self.share else trainable)}

    def foreseen(self, trainable: int, total: int, values: Mapping[str, float]) -> dict[str, float]:
        """All violations by name of what another study measured, as far as that tells them: values are those scores that are known on this study's
        scale; what is not known counts as met."""
        known = {bound.name: bound.violation(values[bound.quantity]) if bound.quantity in values else 0.0 for bound in self.measured}
        return self.before(trainable, total) | known

    def after(self, scores: Scores, trainable: int, total: int, seconds: float, memory: float | None) -> dict[str, float]:
        """All violations by name of a rung. seconds: of the trial until it; memory: bytes at its peak, None where it cannot be read."""
        found = self.before(trainable, total)
        for bound in self.measured:
            if bound.quantity in SCORES:
                found[bound.name] = bound.violation(getattr(scores[bound.quantity], bound.end))
            else:
                value = seconds if bound.quantity == "seconds" else memory
                if value is None:
                    raise BadSetting(f"--{bound.name}: this machine does not say how much memory a trial took, leave the flag out")
                found[bound.name] = bound.violation(value)
        return found


def parse(settings: Settings) -> Constraints:
    """The constraints of the settings. Raises BadSetting naming the flag."""
    size, share, measured = None, False, []
    if settings.max_trainable is not None:
        limit, share = amount(settings.max_trainable)
        size = Bound(f"max-trainable {settings.max_trainable}", "trainable", limit)
    if settings.max_memory is not None:
        measured.append(Bound(f"max-memory {settings.max_memory}", "memory", bytes_of(settings.max_memory)))
    if settings.max_seconds is not None:
        measured.append(Bound(f"max-seconds {settings.max_seconds:g}", "seconds", settings.max_seconds))
    if settings.require is not None:
        measured += [requirement(text) for text in items("--require", settings.require)]
    return Constraints(size, share, tuple(measured))


def check_reachable(search: Search) -> None:
    """Raises BadSetting where none of PROPOSALS random proposals meets what is known before a training. Most studies need one proposal to see that."""
    import numpy as np

    from hpo.flat import AsAsked
    from hpo.proposer import Wished

    if search.constraints.size is None:
        return
    generator, total, counts = np.random.RandomState(search.settings.seed), search.trained.units.total, []
    view = AsAsked(search.settings.ladder)
    for _ in range(PROPOSALS):
        try:
            candidate = search.space.propose(Wished({}, generator, (), view, search.study), search.bounds)
        except SearchError:  # a trial that is proposed says why
            continue
        if search.is_small_enough(candidate):
            return
        count = search.trainable(candidate)
        counts += [] if count is None else [count]
    if counts:
        raise BadSetting(f"--{search.constraints.size.name}: none of {PROPOSALS:,} random proposals meets it, the smallest trains {min(counts):,} parameters "
                         f"({allowing(min(counts), total)} of the U-Net): allow as many, or take another --space or --methods")


def allowing(count: int, total: int) -> str:
    """A share of `total` that allows `count`, rounded up, as --max-trainable takes it."""
    return f"{min(count * 100_000 // total + 1, 100_000) / 1000:.3f}%"


def amount(text: str) -> tuple[float, bool]:
    """A number of parameters, or a share of them: "500000", "1%"."""
    found = re.fullmatch(rf"\s*({NUMBER})\s*(%?)\s*", text)
    if found is None or not 0 < float(found[1]) < math.inf or (found[2] and float(found[1]) > 100):
        raise BadSetting(f"--max-trainable {text}: it is a number of parameters above 0, or a share up to 100%, write 500000 or 1%")
    return (float(found[1]) / 100, True) if found[2] else (float(found[1]), False)


def bytes_of(text: str) -> float:
    """Bytes of "24GiB"."""
    found = re.fullmatch(rf"\s*({NUMBER})\s*([A-Za-z]*)\s*", text)
    size = 0.0 if found is None else float(found[1]) * UNITS.get(found[2].upper(), 0)
    if not 0 < size < math.inf:
        raise BadSetting(f"--max-memory {text}: it is a number of bytes above 0 and finite with a unit, also B, write one like 24GiB or 512MiB")
    return size


def requirement(text: str) -> Bound:
    """A bound on a score: "copy_rate_high<=0.05"; the score's name alone is its value, with _low and _high an end of its interval."""
    found = re.fullmatch(rf"(\w+)\s*(<=|>=)\s*({NUMBER})", text)
    if found is None:
        raise BadSetting(f"--require {text!r}: it is a score, <= or >=, and a number, write one like 'copy_rate_high<=0.05'")
    name, sign, limit = found.groups()
    score, end = name, "value"
    if name not in SCORES and name.rpartition("_")[2] in ENDS:
        score, _, end = name.rpartition("_")
    if score not in SCORES:
        raise BadSetting(f"--require {text!r}: score {score!r} is unknown: take {nearest(score, SCORES)}")
    if not math.isfinite(float(limit)):
        raise BadSetting(f"--require {text!r}: the number must be finite, take one that such a score may have, or leave the bound out")
    return Bound(f"require {name}{sign}{limit}", score, float(limit), sign == "<=", end)


def told(violations: Mapping[str, float]) -> str:
    """The violated bounds in words, empty if there are none."""
    return ", ".join(name for name, violation in violations.items() if violation > 0)
