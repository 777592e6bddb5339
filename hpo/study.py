"""Asking and telling: the Optuna study in Postgres with its leases, duplicates, retries and the yardstick. Adapts Optuna."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from hpo import objectives as objective_table
from hpo import spaces
from hpo.errors import BadSetting
from hpo.identity import model_folder
from hpo.samplers import SeededByNumber
from hpo.settings import Settings
from hpo.spaces import BadProposal, Bounds
from hpo.spaces.reference import BASELINES, YARDSTICK_METHOD, reference_candidate
from hpo.spaces.sites import sites_of
from metrics.encoders import PIXELS
from metrics.estimate import Estimate
from metrics.scores import SCORES, Scores
from storage import leases, results
from storage.errors import StudyFull
from storage.store import Store
from trainers.candidate import Candidate

CANDIDATE, BASELINE, ATTEMPT, DUPLICATE_OF, YARDSTICK = "candidate", "baseline", "attempt", "duplicate_of", "yardstick"
SEED_NUMBER = "seed_number"  # on a later attempt: the number of the first
UNDEFINED = "joint_reward_undefined"  # on a yardstick that was measured but by which nothing can be rewarded
FAILED_BEFORE = "failed_before"  # on the study: failures of former launches, which do not count against this one
MOST_ATTEMPTS = 3  # of one candidate whose workers died or lost the database: it may be the one that kills them
MOST_DUPLICATES = 100  # in a row: then the space counts as exhausted
MOST_BAD_PROPOSALS = 10  # in a row: then the launch ends, since a user's function gives nothing else
LEAST_FAILURES, FAILURE_SHARE = 10, 0.2  # DESIGN, decision 1: max(10, N / 5) failed trials are replaced
PATHS = ("model", "encoder", "data", "out")
NO_REWARD = ("joint_reward is not defined: the yardstick does not copy more than the untouched base, or the base is no worse than real pictures; "
             "train longer (--steps) or on fewer pictures (--train-images)")


@dataclass(frozen=True)
class Asked:
    """A trial that this worker holds the lease of."""

    trial: optuna.Trial
    candidate: Candidate
    yardstick: bool

    @property
    def id(self) -> int:
        return self.trial._trial_id

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def seed_number(self) -> int:
        """What seeds the training: the number of the first attempt, so that another one is the same training and may go on from its state."""
        return self.trial.user_attrs.get(SEED_NUMBER, self.number)


@dataclass(frozen=True)
class Wait:
    """Nothing to do now: others run the last trials, or the yardstick that rewards are measured by."""


@dataclass(frozen=True)
class Ended:
    """The study needs no more trials. status 0: all is well; 1: `reason` says why it cannot go on."""

    status: int
    reason: str


def most_failures(trials: int) -> int:
    return max(LEAST_FAILURES, int(trials * FAILURE_SHARE))


class Search:
    """One worker's view of a study. Everything it knows is in the database, so it may be thrown away at any time."""

    def __init__(self, store: Store, settings: Settings):
        self.store, self.settings = store, settings
        self.objectives = objective_table.parse(settings.objectives)
        self.space = spaces.named(settings.space)
        self.bounds = Bounds(settings.step_grid, settings.learning_rate_scale, spaces.methods(settings.methods), settings.protects,
                             sites_of(model_folder(settings)), model_folder(settings))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(storage=store.optuna, study_name=settings.study, directions=self.objectives.directions,
                                         sampler=SeededByNumber(settings.sampler, settings.seed), load_if_exists=True)
        self.id = self.study._study_id

    def register(self, trials: int | None, identity: dict[str, str | int]) -> results.Registered:
        """Create the study's row or join it; trials None: a worker that joins. Raises SettingsDiffer where a setting that means something differs."""
        if trials is not None:
            self.space.check(self.bounds)
        # A user's space is compared by content, like model and data: its path may be another.
        space = {"space": self.space.name} if self.space.content is None else {"space_content": self.space.content}
        binding = {**self.settings.meaning(), **space, **identity}
        binding.pop("objectives"), binding.pop("reward_weight")  # columns of their own
        directions = {name: score.direction for name, score in SCORES.items()}
        registered = results.register(self.store, self.id, trials, binding, self.free(), objectives=self.objectives.names, directions=directions,
                                      quality=self.objectives.quality, memorization=self.objectives.memorization,
                                      reward_weight=self.settings.reward_weight)
        if trials is not None:  # a new launch: whatever made trials fail before may have been mended
            with leases.translated():
                self.study.set_user_attr(FAILED_BEFORE, leases.counts(self.store, self.id).failed)
        return registered

    def free(self) -> dict[str, Any]:
        """The settings that may change between launches. Paths are made absolute, for workers that start in other folders;
        the store's URL is left out, since it may hold a password."""
        given = self.settings.to_json()
        free = {name: value for name, value in given.items() if name not in self.settings.meaning() and name != "storage"}
        for name in PATHS:
            if free[name] is not None and is_place(name, free[name]):
                free[name] = str(Path(free[name]).absolute())
        return {**free, "space": self.space.name}

    def ask(self) -> Asked | Wait | Ended:
        """The next trial to run, under a lease of this worker. One worker of the study asks at a time."""
        bad_proposals = 0
        with leases.translated(), leases.asking(self.store, self.id):
            while bad_proposals < MOST_BAD_PROPOSALS:
                for number in leases.expire(self.store, self.id):
                    self.try_again(number)
                counts = leases.counts(self.store, self.id)
                verdict = self.verdict(counts)
                if verdict:
                    return Wait() if counts.running else verdict
                if counts.finished + counts.running >= counts.trials or self.waits_for_yardstick():
                    return Wait()
                self.enqueue_baseline()
                try:
                    asked = self.start()
                except StudyFull:  # somebody joined who does not ask through us
                    return Wait()
                except BadProposal as error:
                    bad_proposals, said = bad_proposals + 1, str(error)
                    continue
                if asked is not None:
                    return asked
                bad_proposals = 0
        raise BadSetting(f"{said} ({MOST_BAD_PROPOSALS} proposals in a row failed)")

    def start(self) -> Asked | None:
        """Take a proposal and its lease; None if it is a duplicate, which is told at once. A yardstick is run in any case.

        Raises BadProposal, after telling the trial as failed, where the space gives no candidate.
        """
        trial = self.study.ask()
        try:
            with leases.translated():  # a database that is away is no fault of a user's function
                candidate = self.candidate_of(trial)
        except BadProposal as error:
            self.settle(trial, "failed", str(error), own_cause=True)
            raise
        asked = Asked(trial, candidate, trial.user_attrs.get(BASELINE) == YARDSTICK)
        self.record(asked)
        other = None if asked.yardstick else results.find_duplicate(self.store, self.id, candidate.hash, asked.id)
        if other is None:
            return asked
        trial.set_user_attr(DUPLICATE_OF, other)
        self.tell(asked, "duplicate", f"the same candidate as trial {other}")
        return None

    def candidate_of(self, trial: optuna.Trial) -> Candidate:
        """What was enqueued with the trial, else what the space proposes."""
        if CANDIDATE not in trial.user_attrs:
            return self.space.propose(trial, self.bounds)
        candidate = Candidate.from_json(trial.user_attrs[CANDIDATE])
        if self.space.parameters(candidate, self.bounds):
            self.space.propose(trial, self.bounds)  # the enqueued answers are read, so that the sampler learns from them
        return candidate

    def state(self) -> Ended | None:
        """The study's end, if it has come and nothing is running any more."""
        counts = leases.counts(self.store, self.id)
        return None if counts.running else self.verdict(counts)

    def verdict(self, counts: leases.Counts) -> Ended | None:
        """Why no further trial is started, if so. Trials that run now go on, or expire."""
        if counts.finished >= counts.trials:
            return Ended(0, f"all {counts.trials} trials are finished")
        failed = counts.failed - self.study.user_attrs.get(FAILED_BEFORE, 0)
        if failed > most_failures(counts.trials):
            return Ended(1, f"{failed} trials failed, more than max({LEAST_FAILURES}, N/5): {self.reasons()}")
        if counts.duplicates_in_a_row >= MOST_DUPLICATES and not counts.waiting and self.next_baseline() is None:
            return self.exhausted(failed)
        if self.objectives.is_joint_reward:
            spoilt = self.yardsticks("FAIL")
            if any(UNDEFINED in trial.user_attrs for trial in spoilt):
                return Ended(1, NO_REWARD)
            if spoilt and not self.next_yardsticks() and not self.yardsticks("COMPLETE", "RUNNING", "WAITING"):
                return Ended(1, f"no baseline could be the yardstick of joint_reward: {self.reasons()}")
        return None

    def exhausted(self, failed: int) -> Ended:
        """Nothing new is proposed: a good end, unless what was proposed has only failed."""
        said = f"the space is exhausted: {MOST_DUPLICATES} proposals in a row were known already"
        if not failed:
            return Ended(0, said)
        worked = any(trial.state.name == "COMPLETE" and BASELINE not in trial.user_attrs for trial in self.study.get_trials(deepcopy=False))
        return Ended(0 if worked else 1, f"{said}, {failed} trials failed: {self.reasons()}")

    def reasons(self, most: int = 3) -> str:
        """Why trials failed, the most frequent reasons first, on one line."""
        counted = Counter(row["reason"] for row in results.trials(self.store, self.settings.study) if row["outcome"] == "failed")
        named = [f"{count} × {reason}" for reason, count in counted.most_common(most)]
        return "; ".join(named) + (f"; {len(counted) - most} other reasons" if len(counted) > most else "")

    # The yardstick: full fine-tuning for all steps comes first; if it fails for good, the next baseline by name. Then the other baselines.

    def yardsticks(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False)
                if trial.user_attrs.get(BASELINE) == YARDSTICK and trial.state.name in states]

    def next_yardsticks(self) -> list[str]:
        names = [YARDSTICK_METHOD, *sorted(set(BASELINES) - {YARDSTICK_METHOD})]
        spent = {trial.user_attrs[CANDIDATE]["method"] for trial in self.yardsticks("FAIL") if self.is_spent(trial)}
        return [name for name in names if name not in spent]

    def waits_for_yardstick(self) -> bool:
        """Sees to it that a yardstick is finished, running or next; true if this worker must wait for one that runs."""
        if self.yardsticks("COMPLETE"):
            return False
        if self.yardsticks("RUNNING"):
            return self.objectives.is_joint_reward
        if not self.yardsticks("WAITING"):
            left = self.next_yardsticks()
            if left:
                self.enqueue(self.reference(left[0]), {BASELINE: YARDSTICK})
        return False

    def reference(self, method: str) -> Candidate:
        return reference_candidate(method, self.settings.steps, self.settings.learning_rate_scale)

    def enqueue_baseline(self) -> None:
        """The next of the papers' methods, if one is left and nothing else waits: one at a time, so that a yardstick that must
        be replaced comes next, and none is left waiting where --trials are fewer."""
        name = self.next_baseline()
        if name is not None and not any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False)):
            self.enqueue(self.reference(name), {BASELINE: name})

    def next_baseline(self) -> str | None:
        """The first of the papers' methods that was neither run, as a yardstick or not, nor waits or runs, nor failed for good."""
        if not self.settings.baselines:
            return None
        run = {trial.user_attrs[CANDIDATE]["method"] for trial in self.study.get_trials(deepcopy=False)
               if BASELINE in trial.user_attrs and not self.is_lost(trial)}
        return next((name for name in BASELINES if name not in run), None)

    def is_lost(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a trial ended without a result though its candidate may be run again, and whoever found that died before saying so."""
        return trial.state.name == "FAIL" and self.may_retry(trial, leases.read(self.store, trial._trial_id))

    def enqueue(self, candidate: Candidate, attributes: dict[str, Any]) -> None:
        self.study.enqueue_trial(self.space.parameters(candidate, self.bounds), user_attrs={CANDIDATE: candidate.to_json(), **attributes})

    def is_spent(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a trial failed so that its candidate is not run again."""
        lease = leases.read(self.store, trial._trial_id)
        return lease is not None and lease.outcome in ("failed", "expired") and not self.may_retry(trial, lease)

    def may_retry(self, trial: optuna.trial.FrozenTrial, lease: leases.Lease | None) -> bool:
        """Whether the candidate is not to blame: its worker was killed, stopped or lost the database, the disk was full, …"""
        if lease is None or lease.own_cause or lease.outcome == "duplicate":
            return False
        return lease.outcome == "released" or trial.user_attrs.get(ATTEMPT, 1) < MOST_ATTEMPTS

    def try_again(self, number: int) -> None:
        """Enqueue a trial's candidate once more if it may be; being stopped on purpose does not count as an attempt."""
        trial = self.study.get_trials(deepcopy=False)[number]
        recorded, lease = results.candidate(self.store, trial._trial_id), leases.read(self.store, trial._trial_id)
        if recorded is None or not self.may_retry(trial, lease):
            return
        attributes = {ATTEMPT: trial.user_attrs.get(ATTEMPT, 1) + (lease.outcome != "released"), SEED_NUMBER: trial.user_attrs.get(SEED_NUMBER, number)}
        if BASELINE in trial.user_attrs:
            attributes[BASELINE] = trial.user_attrs[BASELINE]
        self.enqueue(Candidate.from_json(recorded), attributes)

    # Telling. Scores are written before the trial is told; if the worker dies in between, the trial expires and they do not show.

    def record(self, asked: Asked, trainable: int | None = None, share: float | None = None) -> None:
        """Note what the trial runs, and again with the size of the subset once that is known. Raises LeaseLost."""
        candidate = asked.candidate
        results.record_candidate(self.store, asked.id, hash=candidate.hash, words=candidate.words, method=candidate.method, steps=candidate.steps,
                                 json=candidate.to_json(), trainable=trainable, trainable_share=share,
                                 baseline=asked.trial.user_attrs.get(BASELINE), yardstick=asked.yardstick)

    def finish(self, asked: Asked, scores: Scores, seconds: float) -> str:
        """Tell a trial that was measured; gives its outcome: failed if its joint reward does not exist. Raises LeaseLost."""
        results.record_scores(self.store, asked.id, plain(scores), seconds)
        if not self.objectives.is_joint_reward:
            values = [float(scores[name].value) for name in self.objectives.names]
        else:
            reward = self.reward(asked, scores)
            if reward is None:
                asked.trial.set_user_attr(UNDEFINED, NO_REWARD)
                self.tell(asked, "failed", NO_REWARD, own_cause=True)
                return "failed"
            values = [reward]
        self.tell(asked, "finished", values=values)
        return "finished"

    def reward(self, asked: Asked, scores: Scores) -> float | None:
        q, m = scores[self.objectives.quality].value, scores[self.objectives.memorization].value
        if not asked.yardstick:
            return results.joint_reward(self.store, self.id, q, m)
        known = results.references(self.store, self.id)
        return None if known is None else objective_table.joint_reward(self.objectives, self.settings.reward_weight, q, m, known.q_base,
                                                                       known.q_real, known.m_base, m_yard=m)

    def fail(self, asked: Asked, reason: str, own_cause: bool) -> None:
        """Tell a failed trial; its candidate is tried again only if it is not to blame. Raises LeaseLost."""
        with leases.asking(self.store, self.id):  # nobody asks between the two: a lost yardstick would be enqueued twice
            self.tell(asked, "failed", reason, own_cause=own_cause)
            self.try_again(asked.number)

    def release(self, asked: Asked) -> None:
        """Give a trial back unfinished, on Ctrl-C: it counts as nothing, and the candidate is tried again. Raises LeaseLost."""
        with leases.asking(self.store, self.id):
            self.tell(asked, "released", "the worker was stopped")
            self.try_again(asked.number)

    def was_told(self, asked: Asked) -> bool:
        """Whether this worker has told the trial as finished already."""
        lease = leases.read(self.store, asked.id)
        state = self.study.get_trials(deepcopy=False)[asked.number].state
        return lease is not None and lease.worker == self.store.worker and state == optuna.trial.TrialState.COMPLETE

    def tell(self, asked: Asked, outcome: str, reason: str | None = None, values: list[float] | None = None, own_cause: bool = False) -> None:
        self.settle(asked.trial, outcome, reason, values, own_cause)

    def settle(self, trial: optuna.Trial, outcome: str, reason: str | None = None, values: list[float] | None = None, own_cause: bool = False) -> None:
        with leases.translated():
            leases.settle(self.store, trial._trial_id, outcome, reason, own_cause)
            state = optuna.trial.TrialState.COMPLETE if values is not None else optuna.trial.TrialState.FAIL
            self.study.tell(trial, values, state=state)


def is_place(name: str, given: str) -> bool:
    """Whether a path among the settings names a place, and not the encoder without files or a model in the hub's cache."""
    return name == "out" or (Path(given).exists() and (name, given) != ("encoder", PIXELS))


def plain(scores: Scores) -> dict[str, tuple[float, float, float]]:
    """Scores as the store takes them."""
    def three(estimate: Estimate) -> tuple[float, float, float]:
        return float(estimate.value), float(estimate.low), float(estimate.high)

    return {name: three(estimate) for name, estimate in scores.items()}
