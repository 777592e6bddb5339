"""When a study ends: its trials are finished, its time is over, its space is exhausted, or it cannot go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hpo import agenda
from storage import leases, results, standing

if TYPE_CHECKING:
    from hpo.study import Search

FAILED_BEFORE = "failed_before"  # on the study: failures of former launches, which do not count against this one
LEAST_FAILURES, FAILURE_SHARE = 10, 0.2  # DESIGN, decision 1: max(10, N / 5) failed trials are replaced
STABLE_TRIALS, STABLE_GROWTH = 20, 0.01  # --until-stable: finished trials, and how much the hypervolume must grow over them
NO_REWARD = ("joint_reward is not defined: the yardstick does not copy more than the untouched base, or the base is no worse than real pictures; "
             "train longer (--steps) or on fewer pictures (--train-images), in a study of another name (--study)")


@dataclass(frozen=True)
class Ended:
    """The study needs no more trials. status 0: all is well; 1: `reason` says why it cannot go on."""

    status: int
    reason: str


def most_failures(trials: int) -> int:
    return max(LEAST_FAILURES, int(trials * FAILURE_SHARE))


class Ending:
    """Reads the database only, so that any worker finds the same."""

    def __init__(self, search: Search):
        self.search = search

    def verdict(self, counts: leases.Counts) -> Ended | None:
        """Why no further trial is started, if so. Trials that run now go on, or expire."""
        if counts.finished >= counts.trials:
            return Ended(0, f"all {counts.trials} trials are finished")
        if counts.overdue:
            return Ended(0, f"the time of --hours is over, with {counts.finished} of {counts.trials} trials finished")
        failed = counts.failed and counts.failed - self.search.study.user_attrs.get(FAILED_BEFORE, 0)  # which Optuna asks the database for
        if failed > most_failures(counts.trials):
            return Ended(1, f"{failed} trials failed, more than max({LEAST_FAILURES}, N/5): {self.reasons()}")
        known, too_hard = agenda.is_exhausted(counts), counts.infeasible_in_a_row >= agenda.MOST_INFEASIBLE
        if (known or too_hard) and not counts.waiting and self.search.agenda.next(counts) is None:
            if known:
                return self.exhausted(counts, failed)
            return Ended(1, f"{counts.infeasible_in_a_row} proposals in a row violated --{self.search.constraints.size.name}: loosen it or take another "
                            "--space, in a study of another name (--study)")
        if self.search.settings.until_stable and (said := self.stable()):
            return Ended(0, said)
        return self.rewardless() if self.search.objectives.is_joint_reward else None

    def rewardless(self) -> Ended | None:
        """The end of a study of which the only objective can never be known."""
        yardsticks = self.search.agenda.yardsticks()
        if any(row.reason == NO_REWARD for row in yardsticks):
            return Ended(1, NO_REWARD)
        alive = any(row.state != "FAIL" for row in yardsticks)
        if yardsticks and not alive and not self.search.agenda.left(yardsticks):
            return Ended(1, f"no baseline could be the yardstick of joint_reward: {self.reasons()}")
        return None

    def stable(self) -> str | None:
        """In words that the front has stopped growing: see STABLE_TRIALS. Counted from the yardstick's end on. Where it shrank, since a repeat lowered the
        mean of a point of it, only what grew is counted. A front that is not there yet is not stable."""
        volumes = standing.hypervolumes(self.search.store, self.search.id)[-1 - STABLE_TRIALS:]
        grown = sum(max(after - before, 0.0) for before, after in pairwise(volumes))
        if len(volumes) <= STABLE_TRIALS or not volumes[-1] or grown > STABLE_GROWTH * volumes[0]:
            return None
        return f"the front is stable: its hypervolume grew by less than {STABLE_GROWTH:.0%} over the last {STABLE_TRIALS} finished trials"

    def exhausted(self, counts: leases.Counts, failed: int) -> Ended:
        """Nothing new is proposed: a good end, unless what was proposed has only failed."""
        said = f"the space is exhausted: {agenda.MOST_DUPLICATES} proposals in a row were known already"
        if counts.duplicates_in_a_row < agenda.MOST_DUPLICATES:
            said = (f"the space is exhausted: the last {counts.infeasible_in_a_row} proposals but those that were known already violated "
                    f"--{self.search.constraints.size.name}")
        if not failed:
            return Ended(0, said)
        worked = standing.has_worked(self.search.store, self.search.id)
        return Ended(0 if worked else 1, f"{said}, {failed} trials failed: {self.reasons()}")

    def reasons(self, most: int = 3) -> str:
        """Why trials failed, the most frequent reasons first, on one line."""
        counted = Counter(row["reason"] for row in results.trials(self.search.store, self.search.settings.study) if row["outcome"] == "failed")
        named = [f"{count} × {reason}" for reason, count in counted.most_common(most)]
        return "; ".join(named) + (f"; {len(counted) - most} other reasons" if len(counted) > most else "")
