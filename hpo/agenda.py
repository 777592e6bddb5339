"""What a study runs before it proposes anything of its own: the yardstick, the papers' methods, what was enqueued, repeats of the front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpo.spaces.reference import BASELINES, YARDSTICK_METHOD, reference_candidate
from storage import results, standing
from storage.leases import Counts
from trainers.candidate import Candidate

if TYPE_CHECKING:
    from hpo.study import Search

YARDSTICK = "yardstick"
LIVE = ("RUNNING", "WAITING")
MOST_DUPLICATES = 100  # in a row: then the space counts as exhausted
MOST_INFEASIBLE = 1000  # in a row: then what the constraints allow is exhausted, or they are too hard to go on


@dataclass(frozen=True)
class Entry:
    """A candidate that is run on purpose. baseline: "yardstick", or a method's name where it is one of the papers' methods as published."""

    candidate: Candidate
    baseline: str | None = None
    repeat: int = 0

    @property
    def yardstick(self) -> bool:
        return self.baseline == YARDSTICK


def is_exhausted(counts: Counts) -> bool:
    """Whether what may be run is known already. Where a hard constraint lets little be run, random proposals meet that too rarely for so many
    duplicates in a row; that there are any says that something may be run."""
    return counts.duplicates_in_a_row >= MOST_DUPLICATES or counts.infeasible_in_a_row >= MOST_INFEASIBLE and counts.duplicates > 0


class Agenda:
    """Reads the database only, so that any worker finds the same next entry."""

    def __init__(self, search: Search):
        self.search, self.store, self.settings = search, search.store, search.settings
        self.begun: set[str] = set()  # hashes of queued candidates that need no second look
        self.there = self.all_begun = False  # the yardstick is finished, all baselines were begun: neither is ever undone

    def waits(self) -> bool:
        """Whether nothing may run beside the yardstick, which is running, since rewards are measured by it. One that was left is taken up."""
        if self.there or not self.search.objectives.is_joint_reward:
            return False
        yardsticks = self.yardsticks()
        return not self.is_there(yardsticks) and any(row.state == "RUNNING" for row in yardsticks)

    def next(self, counts: Counts) -> Entry | None:
        """Without the yardstick, which comes before all else."""
        return self.baseline() or self.queued() or self.repeated(counts)

    # The yardstick: full fine-tuning for all steps comes first; if it fails for good, the next baseline by name.

    def yardsticks(self) -> list[standing.Baseline]:
        return [row for row in standing.baselines(self.store, self.search.id) if row.baseline == YARDSTICK]

    def is_there(self, yardsticks: list[standing.Baseline]) -> bool:
        return any(row.state == "COMPLETE" for row in yardsticks)

    def left(self, yardsticks: list[standing.Baseline]) -> list[str]:
        """Methods that may still become the yardstick."""
        spent = {row.method for row in yardsticks if row.state == "FAIL"}
        return [name for name in (YARDSTICK_METHOD, *sorted(set(BASELINES) - {YARDSTICK_METHOD})) if name not in spent]

    def yardstick(self) -> Entry | None:
        if self.there:
            return None
        yardsticks = self.yardsticks()
        self.there = self.is_there(yardsticks)
        if self.there or any(row.state in LIVE for row in yardsticks):
            return None
        return next((Entry(self.reference(name), YARDSTICK) for name in self.left(yardsticks)), None)

    def reference(self, method: str) -> Candidate:
        return reference_candidate(method, self.settings.steps, self.settings.learning_rate_scale)

    def baseline(self) -> Entry | None:
        """The first of the papers' methods that was never begun, as a yardstick or not."""
        if self.all_begun or not self.settings.baselines:
            return None
        begun = {row.method for row in standing.baselines(self.store, self.search.id)}
        self.all_begun = begun.issuperset(BASELINES)
        entries = (Entry(self.reference(name), name) for name in BASELINES if name not in begun)
        return next((entry for entry in entries if self.search.under_way(entry.candidate) is None), None)

    def queued(self) -> Entry | None:
        """The first candidate of --enqueue or of a warm start's front that was never begun."""
        for each in results.queue(self.store, self.search.id):
            candidate = Candidate.from_json(each["candidate"])
            if candidate.hash in self.begun:
                continue
            if standing.is_begun(self.store, self.search.id, candidate.hash):
                self.begun.add(candidate.hash)
            elif self.search.duplicate_of(candidate, 0) is None and self.search.under_way(candidate) is None:
                return Entry(candidate)
        return None

    def repeated(self, counts: Counts) -> Entry | None:
        """A point of the front that was run less often than --repeats says; at most every second trial is a repeat, while anything else is left."""
        if self.settings.repeats < 2:
            return None
        return self.missing() if is_exhausted(counts) or 2 * standing.repeats(self.store, self.search.id) < counts.finished + counts.running else None

    def missing(self) -> Entry | None:
        for candidate, repeats in standing.front_candidates(self.store, self.search.id):
            if repeats < self.settings.repeats:
                point = Candidate.from_json(candidate)
                for repeat in range(1, self.settings.repeats):
                    if self.search.duplicate_of(point, repeat) is None and self.search.under_way(point, repeat) is None:
                        return Entry(point, repeat=repeat)
        return None
