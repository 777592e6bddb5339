"""Asking and telling: the Optuna study in Postgres with its leases, the yardstick, duplicates, rungs and what stops trials."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import distribution_to_json

from hpo import code, constraints, spaces, stopping, warm_start
from hpo import objectives as objective_table
from hpo.agenda import Agenda, Entry
from hpo.ending import FAILED_BEFORE, NO_REWARD, Ended, Ending
from hpo.errors import BadSetting
from hpo.identity import model_folder
from hpo.proposer import STUCK, Proposal, internal
from hpo.recall import Recall
from hpo.settings import Settings
from hpo.spaces import BadProposal, Bounds
from hpo.spaces.base import Trained
from hpo.spaces.sites import sites_of
from metrics.encoders import PIXELS
from metrics.scores import SCORES, Scores
from storage import leases, results, standing, trials
from storage.errors import BadValue, CodeDiffers, NotNow, StudyFull
from storage.life import Life
from storage.retrying import retrying
from storage.store import Store
from trainers.candidate import Candidate
from trainers.errors import BadSelection

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_BAD_PROPOSALS = 10  # in a row: then the launch ends, since a user's function gives nothing else
PATHS = ("model", "encoder", "data", "out", "checkpoints")


@dataclass(frozen=True)
class Asked:
    """A trial that this worker holds the lease of. rungs: the numbers of steps at which it is to be evaluated; known: seconds until each that is,
    by whatever trial."""

    id: int
    number: int
    candidate: Candidate
    rungs: tuple[int, ...]
    repeat: int = 0
    baseline: str | None = None
    known: Mapping[int, float] | None = None

    @property
    def yardstick(self) -> bool:
        return self.baseline == "yardstick"

    @property
    def exempt(self) -> bool:
        """Whether it is never stopped: others are measured by it, or its last rung was asked for."""
        return self.baseline is not None or self.repeat > 0

    @property
    def left(self) -> tuple[int, ...]:
        """Rungs that are still to be evaluated. None below one that is: whoever trains for that would train again what has been trained."""
        reached = max(self.known or (), default=0)
        return tuple(steps for steps in self.rungs if steps > reached)

    def at(self, steps: int) -> Candidate:
        """The candidate that a rung of this trial is."""
        return replace(self.candidate, steps=steps)


@dataclass(frozen=True)
class Wait:
    """Nothing to do now: others run the last trials, or the yardstick that rewards are measured by."""


def optunas(store: Store, settings: Settings, directions: Sequence[str]) -> optuna.Study:
    """Optuna's study of this name, made where there is none. One that a refused launch left, without a trial and not registered, is made anew if it
    was for objectives of other directions."""
    create = partial(optuna.create_study, storage=store.optuna, study_name=settings.study, directions=directions,
                     sampler=optuna.samplers.RandomSampler(seed=settings.seed), load_if_exists=True)
    with leases.translated():
        study = create()
        if [each.name.lower() for each in study.directions] != list(directions):
            results.discard(store, study._study_id)
            study = create()
        return study


class Search:
    """One worker's view of a study. Everything it knows is in the database, so it may be thrown away at any time."""

    def __init__(self, store: Store, settings: Settings, study: optuna.Study | None = None):
        """study: what is asked in place of the store's study of that name, which is not made then."""
        self.store, self.settings = store, settings
        self.objectives = objective_table.parse(settings.objectives)
        self.constraints = constraints.parse(settings)
        self.space = spaces.named(settings.space)
        self.bounds = Bounds(settings.ladder, settings.learning_rate_scale, spaces.methods(settings.methods), settings.protects,
                             sites_of(model_folder(settings)), model_folder(settings))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = study or optunas(store, settings, self.objectives.directions)
        self.id = self.study._study_id
        self.agenda, self.ending = Agenda(self), Ending(self)
        self.turn: leases.Turn | None = None  # to ask, while this worker has it
        self.tidied: standing.Moment | None = None  # when this worker last deleted what need not be kept
        self.counted: dict[tuple, int | None] = {}  # trainable parameters by what is trained
        self.request: str | None = None  # by which this worker asked for a trial that it has not taken up yet

    @cached_property
    def recall(self) -> Recall:
        """Made when it is first needed: a launch only watches."""
        return Recall(self)

    @cached_property
    def token(self) -> str:
        """In the names of the study's files: a study of the same name in another store may have the same folder."""
        return retrying(lambda: results.token(self.store, self.id))

    @cached_property
    def trained(self) -> Trained:
        """What a candidate trains, by the shapes of the U-Net."""
        return Trained(model_folder(self.settings))

    def register(self, asked_for: int | None, identity: dict[str, str | int], queue: Sequence[Mapping[str, Any]] = ()) -> results.Registered:
        """Create the study's row or join it; None: a worker that joins. queue: what is run before anything is proposed. Raises SettingsDiffer where a setting
        that means something differs."""
        if asked_for is not None:
            self.check_others(asked_for)
            self.check()
        directions = {name: score.direction for name, score in SCORES.items()}
        try:
            registered = results.register(self.store, self.id, asked_for, self.binding(identity), self.free(), objectives=self.objectives.names,
                                          directions=directions, quality=self.objectives.quality, memorization=self.objectives.memorization,
                                          reward_weight=self.settings.reward_weight, queue=queue)
        except (CodeDiffers, BadValue):  # a trial was begun since this was asked
            if asked_for is not None:
                self.check_others(asked_for)
            raise
        if queue and not registered.created:
            results.append_to_queue(self.store, self.id, queue)
        if asked_for is not None:  # a new launch: whatever made trials fail before may have been mended
            with leases.translated():
                self.study.set_user_attr(FAILED_BEFORE, leases.counts(self.store, self.id).failed)
        warm_start.settle(self, launches=asked_for is not None)
        return registered

    def check_others(self, asked_for: int) -> None:
        """Raises BadSetting where others run trials of this study that a launch would spoil: with another version of this program, whose scores would be
        taken for this one's, or for more trials than it asks for."""
        if results.settings(self.store, self.id) is None:
            return
        trials.expire(self.store, self.id)
        counts = leases.counts(self.store, self.id)
        if counts.running and counts.code not in (None, code.content_hash()):
            raise BadSetting(f"study {self.settings.study!r} has {counts.running} trials that run with another version of this program ({counts.code}, this one "
                             f"is {code.content_hash()}): wait until they have ended, or stop its workers, then launch again")
        if counts.running and asked_for < counts.trials:
            raise BadSetting(f"--trials {asked_for}: study {self.settings.study!r} runs now for {counts.trials} trials, {counts.finished} of them finished and "
                             f"{counts.running} running, and would be cut down: give --trials {counts.trials} or more, or stop the other launch and its "
                             "workers first (trials of a killed one are given up within a minute)")

    def check(self) -> None:
        """Raises BadSetting where nothing can be proposed, or nothing that meets what is known before a training."""
        self.space.check(self.bounds)
        constraints.check_reachable(self)

    def binding(self, identity: dict[str, str | int]) -> dict[str, Any]:
        """What a study is bound to. A user's space is compared by content, like model and data: its path may be another."""
        space = {"space": self.space.name} if self.space.content is None else {"space_content": self.space.content}
        binding = {**self.settings.meaning(), **space, **identity}
        binding.pop("objectives"), binding.pop("reward_weight")  # columns of their own
        return binding

    def free(self) -> dict[str, Any]:
        """The settings that may change between launches. Paths are made absolute, for workers that start in other folders;
        the store's URL is left out, since it may hold a password."""
        given = self.settings.to_json()
        free = {name: value for name, value in given.items() if name not in self.settings.meaning() and name != "storage"}
        for name in PATHS:
            if free[name] is not None and is_place(name, free[name]):
                free[name] = str(Path(free[name]).absolute())
        deadline = None if self.settings.hours is None else leases.now(self.store) + 3600 * self.settings.hours
        return {**free, "space": self.space.name, "code": code.content_hash(), "deadline": deadline}

    def life(self, name: str) -> Life:
        """Of this worker's thread while it works at that: where it hangs for --stalled-after, the process ends."""
        return Life(name, 60 * self.settings.stalled_after, stopping.end_hung)

    # Asking.

    def ask(self) -> Asked | Wait | Ended:
        """The next trial to run, under a lease of this worker. One worker of the study asks at a time. Raises OtherCode."""
        bad_proposals = 0
        with leases.translated(), leases.asking(self.store, self.id, self.life("the turn to propose a trial"), stopping.check) as self.turn:
            while bad_proposals < MOST_BAD_PROPOSALS:
                trials.expire(self.store, self.id)
                counts = leases.counts(self.store, self.id)
                code.check(self.settings.study, counts.code)  # it may have been launched with another since this worker joined
                try:
                    held = self.held()
                    if held is None:
                        verdict = self.ending.verdict(counts)
                        if verdict:
                            return Wait() if counts.running else verdict
                        if counts.finished + counts.running >= counts.trials or self.agenda.waits():
                            return Wait()
                    asked = self.start(counts) if held is None else self.taken(held)
                except (StudyFull, NotNow):  # somebody joined who does not ask through us, or this worker slept through its turn
                    return Wait()
                except CodeDiffers:  # it was launched with another while this worker proposed: said above
                    continue
                except BadProposal as error:
                    bad_proposals, said = bad_proposals + 1, str(error)
                    continue
                if asked is not None:
                    return asked
                bad_proposals = 0
        raise BadSetting(f"{said} ({MOST_BAD_PROPOSALS} proposals in a row failed)")

    def start(self, counts: leases.Counts) -> Asked | Wait | None:
        """Begin the yardstick, else take up what was left or enqueued, else begin what is on the agenda, else what is proposed; None if that is not
        worth running. While what is going to be the yardstick is trained as another trial, whose rungs it takes over, only what was left is taken up.

        Raises BadProposal, after noting the trial as failed, where the space gives no candidate.
        """
        yardstick = self.agenda.yardstick()
        is_trained = yardstick is not None and self.under_way(yardstick.candidate) is not None
        taken = self.asked_for(trials.take) if yardstick is None or is_trained else None
        if taken is not None:
            return self.taken(taken)
        if is_trained:
            return Wait()
        entry = yardstick or self.agenda.next(counts)
        return self.begin(entry) if entry is not None else self.propose(trials.next_number(self.store, self.id), counts)

    def asked_for(self, call: Callable[..., T]) -> T:
        """The answer to a call by which this worker gets a trial to run. Where it is lost, or what is read after it, the next `ask` finds out whether it did."""
        self.request = request()
        return call(self.store, self.id, request=self.request, code=code.content_hash())

    def held(self) -> trials.Taken | None:
        """The trial that this worker got when an answer was lost, if it has not lost it since."""
        if self.request is None:
            return None
        found = trials.take(self.store, self.id, self.request, code=code.content_hash()) if trials.is_held(self.store, self.request) else None
        self.request = None if found is None else self.request
        return found

    def taken(self, taken: trials.Taken) -> Asked | None:
        """A trial that another worker left, or that a user enqueued through Optuna."""
        if taken.candidate is None:
            asked = self.enqueued(taken)
        else:
            candidate = Candidate.from_json(taken.candidate)
            known = self.paid(candidate, taken.repeat) | dict(taken.rungs)
            asked = Asked(taken.trial_id, taken.number, candidate, tuple(taken.ahead), taken.repeat, taken.baseline, known)
        self.request = None
        return asked

    def enqueued(self, taken: trials.Taken) -> Asked | None:
        """A trial that a user enqueued through Optuna, described as one of ours; None if it is not worth running."""
        self.recall.refresh()
        try:
            proposal = self.recall.proposer.propose(taken.number, taken.fixed_params)
        except BadProposal as error:
            trials.tell(self.store, taken.trial_id, "failed", state="FAIL", values=None, reason=str(error), own_cause=True)
            raise
        candidate = proposal.candidate
        outcome, reason = self.infeasible(candidate) or (None, None)
        if trials.describe(self.store, taken.trial_id, self.row(candidate), *described(proposal), outcome=outcome, reason=reason) is not None:
            return None
        return Asked(taken.trial_id, taken.number, candidate, self.rungs_of(candidate), known=self.paid(candidate))

    def begin(self, entry: Entry) -> Asked | None:
        """A trial of a candidate that was not proposed by the sampler. Yardstick, baselines and repeats are run whatever the constraints say."""
        candidate = entry.candidate
        fixed = self.space.fixed(candidate, self.bounds)
        answers = ({}, {}, {}) if fixed is None else (dict(fixed.params), fixed.distributions, internal(fixed))
        return self.write(Proposal(candidate, *answers, {}, {}), entry, None if entry.baseline or entry.repeat else self.infeasible(candidate))

    def propose(self, number: int, counts: leases.Counts) -> Asked | None:
        self.recall.refresh()
        try:
            proposal = self.recall.proposer.propose(number, at_random=counts.duplicates_in_a_row + counts.infeasible_in_a_row >= STUCK)
        except BadProposal as error:
            trials.start(self.store, self.id, request=request(), candidate=None, parameters={}, distributions={}, internal={}, user_attrs={}, system_attrs={},
                         outcome="failed", reason=str(error), code=code.content_hash())
            raise
        return self.write(proposal, Entry(proposal.candidate), self.infeasible(proposal.candidate))

    def write(self, proposal: Proposal, entry: Entry, why: tuple[str, str] | None) -> Asked | None:
        """Begin the trial, or only note that it was not worth running: why, or since the store knows it by now."""
        candidate = entry.candidate
        parameters, distributions, internal = described(proposal)
        outcome, reason = why or (None, None)
        if self.turn is not None:
            self.turn.check()
        attributes = {**proposal.user_attrs, **({"baseline": entry.baseline} if entry.baseline else {}), **({"repeat": entry.repeat} if entry.repeat else {})}
        given = dict(candidate=self.row(candidate, entry), parameters=parameters, distributions=distributions, internal=internal, user_attrs=attributes,
                     system_attrs=proposal.system_attrs)
        if why is not None:
            trials.start(self.store, self.id, request=request(), outcome=outcome, reason=reason, code=code.content_hash(), **given)
            return None
        started = self.asked_for(partial(trials.start, **given))
        asked = None
        if started.outcome is None:
            known = self.paid(candidate, entry.repeat, entry.yardstick)
            asked = Asked(started.trial_id, started.number, candidate, self.rungs_of(candidate, entry.baseline), entry.repeat, entry.baseline, known)
        self.request = None
        return asked

    def paid(self, candidate: Candidate, repeat: int = 0, yardstick: bool = False) -> dict[int, float]:
        """Rungs below the candidate's own steps that another trial has evaluated: never measured again, and trained again only where no state was kept. A
        new yardstick has taken the last one over too."""
        known = trials.known_rungs(self.store, self.id, candidate.root, repeat)
        return {steps: 0.0 for steps in known if steps < candidate.steps or yardstick and steps == candidate.steps}

    def row(self, candidate: Candidate, entry: Entry | None = None) -> trials.CandidateRow:
        entry, trainable = entry or Entry(candidate), self.trainable(candidate)
        share = None if trainable is None else trainable / self.trained.units.total
        return trials.CandidateRow(candidate.hash, candidate.root, entry.repeat, candidate.words, candidate.method, candidate.steps,
                                   self.rungs_of(candidate, entry.baseline), candidate.to_json(), trainable, share, entry.baseline, entry.yardstick)

    def is_small_enough(self, candidate: Candidate) -> bool:
        """Whether it can be trained, within what is known before a training; without such a bound its own trial says whether it can."""
        return self.constraints.size is None or (self.trainable(candidate) is not None and self.infeasible(candidate) is None)

    def trainable(self, candidate: Candidate) -> int | None:
        """Parameters that it trains, None where it cannot be trained on this model, which its trial says in its own words."""
        what = candidate.method, candidate.parts, candidate.frozen, candidate.norm_rate is None
        if what not in self.counted:
            try:
                self.counted[what] = self.trained.check(candidate)
            except BadSelection:
                self.counted[what] = None
        return self.counted[what]

    def rungs_of(self, candidate: Candidate, baseline: str | None = None) -> tuple[int, ...]:
        """Where it is evaluated as a trial of this study. baseline: as in Asked."""
        return self.settings.rungs_of(candidate.steps, baseline is not None)

    def infeasible(self, candidate: Candidate) -> tuple[str, str] | None:
        """Outcome and reason where a candidate is beyond what is allowed."""
        trainable = self.trainable(candidate)
        if trainable is not None and (told := constraints.told(self.constraints.before(trainable, self.trained.units.total))):
            return "infeasible", f"{trainable:,} trainable parameters violate {told}"
        return None

    def duplicate_of(self, candidate: Candidate, repeat: int) -> int | None:
        return trials.find_duplicate(self.store, self.id, candidate.root, candidate.steps, repeat)

    def under_way(self, candidate: Candidate, repeat: int = 0) -> int | None:
        """A trial that trains the same, to whichever steps: two at a time would pay twice for the same rungs, and write one file of states."""
        return standing.under_way(self.store, self.id, candidate.root, repeat)

    def state(self) -> Ended | None:
        """The study's end, if it has come and nothing is running any more."""
        with leases.translated():
            trials.expire(self.store, self.id)
            counts = leases.counts(self.store, self.id)
            return None if counts.running else self.ending.verdict(counts)

    # Telling. A rung is written as soon as it is measured, and stays whatever becomes of its trial.

    def report(self, asked: Asked, steps: int, scores: Scores, trainable: int, seconds: float, memory: int | None) -> bool:
        """Write an evaluated rung; whether the trial is to be stopped there. Raises LeaseLost."""
        candidate = asked.at(steps)
        measured = [self.objectives.quality, self.objectives.memorization] if self.objectives.is_joint_reward else self.objectives.names
        violations = self.constraints.after(scores, trainable, self.trained.units.total, seconds, memory)
        trials.record_rung(self.store, asked.id, steps, candidate.hash, candidate.words, [scores[name].value for name in measured],
                           {name: (*ends, scores[name].replicates) for name, ends in plain(scores).items()}, seconds, memory, violations)
        return self.stops(asked, steps)

    def stops(self, asked: Asked, steps: int) -> bool:
        """Whether the trial is to be stopped at this rung, which is written. The same again gives the same, unless others have written rungs."""
        if self.settings.pruner == "none" or asked.exempt or steps == asked.candidate.steps:
            return False
        decision = self.recall.decide(asked.number, steps)
        if decision.stop:
            log.info("trial %d is stopped at %d steps: in %.0f %% of the replicates it is not among the best of %d", asked.number, steps,
                     100 * decision.share, decision.peers)
        return decision.stop

    def finish(self, asked: Asked, stopped: bool = False) -> str:
        """Tell a trial whose last rung is written; gives its outcome: failed if its joint reward does not exist. Raises LeaseLost, RungLost."""
        values = None if stopped else standing.values_at(self.store, asked.id, asked.candidate.steps)
        if not stopped and self.objectives.is_joint_reward:
            reward = self.reward(asked, *values)
            if reward is None:
                trials.tell(self.store, asked.id, "failed", state="FAIL", values=None, reason=NO_REWARD, own_cause=True)
                return "failed"
            values = [reward]
        trials.tell(self.store, asked.id, "finished", state="PRUNED" if stopped else "COMPLETE", values=values)
        self.note_volume(asked)
        return "stopped" if stopped else "finished"

    def note_volume(self, asked: Asked) -> None:
        self.recall.refresh()
        found = self.recall.volume()
        if found is not None:
            trials.record_hypervolume(self.store, asked.id, found)

    def reward(self, asked: Asked, q: float, m: float) -> float | None:
        if not asked.yardstick:
            return results.joint_reward(self.store, self.id, q, m)
        known = results.references(self.store, self.id)
        return None if known is None else objective_table.joint_reward(self.objectives, self.settings.reward_weight, q, m, known.q_base,
                                                                       known.q_real, known.m_base, m_yard=m)

    def fail(self, asked: Asked, reason: str, own_cause: bool) -> str:
        """A trial whose own fault it was has failed; another goes on elsewhere from its last rung, up to MOST_LOSSES times. Raises LeaseLost."""
        if own_cause:
            trials.tell(self.store, asked.id, "failed", state="FAIL", values=None, reason=reason, own_cause=True)
            return "failed"
        return "failed" if trials.leave(self.store, asked.id, reason) else "left"

    def release(self, asked: Asked) -> None:
        """Give a trial back unfinished, on Ctrl-C: it goes on from its last rung when somebody takes it up. Raises LeaseLost."""
        trials.leave(self.store, asked.id)


def request() -> str:
    """By which a call that is made again, since its answer was lost, is known as the same."""
    return str(uuid.uuid4())


def described(proposal: Proposal) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """A proposal's answers as the store takes them."""
    return proposal.parameters, {name: distribution_to_json(each) for name, each in proposal.distributions.items()}, proposal.internal


def is_place(name: str, given: str) -> bool:
    """Whether a path among the settings names a place, and not the encoder without files or a model in the hub's cache."""
    return name in ("out", "checkpoints") or (Path(given).exists() and (name, given) != ("encoder", PIXELS))


def plain(scores: Scores) -> dict[str, tuple[float, float, float]]:
    """Scores as the store takes them: value, low, high."""
    return {name: (float(each.value), float(each.low), float(each.high)) for name, each in scores.items()}
