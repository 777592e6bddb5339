"""The life of a trial as Python calls it, a function a step. Each is one transaction by one call of a SQL function.

    (nothing) -- enqueued   -> WAITING   by anybody (Optuna's study.enqueue_trial)
    (nothing) -- started    -> RUNNING   `start`, by a named worker that has the study's code, if finished + running < trials asked for and nothing is
                                         in the way; lease to it
    (nothing) -- refused    -> FAIL      `start` with an outcome, duplicate | infeasible: never run, in one go; counts
                                         neither as finished, running nor failed
    WAITING   -- taken up   -> RUNNING   `take`, by a named worker, the same admission; lease to the taker
    WAITING   -- withdrawn  -> FAIL      by anybody, if it was never taken up
    RUNNING   -- heartbeat, rung -> RUNNING   `leases.heartbeat`, `record_rung`, by the holder in time; a NEW rung resets
                                         losses to 0
    RUNNING   -- told       -> COMPLETE | PRUNED (outcome finished), FAIL (failed, or, of an enqueued trial that turned out
                               so, duplicate | infeasible)   `tell`, by the holder in time
    RUNNING   -- left       -> WAITING   `leave`, by the holder in time: released (not counted), or for a reason (a loss)
    RUNNING   -- expired    -> WAITING   `expire`, by anybody, once the lease has run out by the server's clock; a loss
    RUNNING   -- left or expired, as the third loss without a new rung -> FAIL   outcome failed, the reason says so

COMPLETE, PRUNED and FAIL are ends. The database enforces this (sql/leases.sql). Every function here may be repeated blindly
after a lost answer (`storage.retrying`), and raises StorageUnreachable if there is none, besides what it names.

    with leases.asking(store, study_id):
        trials.expire(store, study_id)
        taken = trials.take(store, study_id, request) or trials.start(store, study_id, request=request, …)
    with leases.Heartbeat(store, taken.trial_id):
        trials.record_rung(store, taken.trial_id, …)
        trials.tell(store, taken.trial_id, "finished", state="COMPLETE", values=[…])
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import text

from storage import leases, schema
from storage.errors import BadValue
from storage.plain import as_stored, clean, dumped, number, optional
from storage.rungs import KnownRung, RungRow, known_rungs, record_rung, replicates_of, rungs_since
from storage.store import Store

__all__ = ["CandidateRow", "KnownRung", "RunningTrial", "RungRow", "Started", "Taken", "describe", "expire", "find_duplicate",
           "is_held", "known_rungs", "leave", "next_number", "record_hypervolume", "record_rung", "replicates_of", "rungs_since",
           "running_and_failed", "start", "take", "tell"]  # fmt: skip

#: How a proposal ends that is never run.
REFUSALS = ("duplicate", "infeasible", "failed")
#: outcome -> Optuna's states that go with it.
ENDS = {"finished": ("COMPLETE", "PRUNED"), "failed": ("FAIL",), "duplicate": ("FAIL",), "infeasible": ("FAIL",)}


@dataclass(frozen=True)
class CandidateRow:
    """A candidate as it is stored. `root`: its hash without steps; `rungs`: numbers of steps, ascending, the last = steps;
    `trainable`: parameters that are trained, `trainable_share` 0..1 of the U-Net; `baseline`: name, for the papers' methods."""

    hash: str
    root: str
    repeat: int
    words: str
    method: str
    steps: int
    rungs: Sequence[int]
    json: Mapping[str, Any]
    trainable: int | None = None
    trainable_share: float | None = None
    baseline: str | None = None
    yardstick: bool = False


@dataclass(frozen=True)
class Started:
    """A new trial: RUNNING under this worker's lease, or refused, which `outcome` then says."""

    trial_id: int
    number: int
    outcome: str | None = None


@dataclass(frozen=True)
class Taken:
    """A trial that waited and is now this worker's. Enqueued by plain Optuna: candidate and parameters are None, and
    `fixed_params` holds what was enqueued. `ahead`: steps at which it is to be evaluated; `rungs`: those that are -> busy seconds until then."""

    trial_id: int
    number: int
    candidate: Mapping[str, Any] | None
    repeat: int
    baseline: str | None
    yardstick: bool
    parameters: Mapping[str, Any] | None
    user_attrs: Mapping[str, Any]
    fixed_params: Mapping[str, Any]
    ahead: Sequence[int] | None
    rungs: Mapping[int, float]
    losses: int


@dataclass(frozen=True)
class RunningTrial:
    """A trial under way, or left and waiting to be taken up; or one that failed. `distributions`: as in RungRow."""

    trial_id: int
    number: int
    root: str
    repeat: int
    steps: int
    parameters: Mapping[str, Any] | None
    distributions: str | None


def next_number(store: Store, study_id: int) -> int:
    """What the next new trial's number will be; it stays true while `leases.asking` is held and nobody enqueues."""
    with leases.translated(), store.at_once.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM trials WHERE study_id = :study"), {"study": study_id}))


def start(
    store: Store,
    study_id: int,
    *,
    request: str,
    candidate: CandidateRow | None,
    parameters: Mapping[str, Any],
    distributions: Mapping[str, str],
    internal: Mapping[str, float],
    user_attrs: Mapping[str, Any] | None = None,
    system_attrs: Mapping[str, Any] | None = None,
    outcome: str | None = None,
    reason: str | None = None,
    code: str | None = None,
) -> Started:
    """A new trial under this worker's lease, or one that is refused at once: with an outcome (infeasible, failed), or as a duplicate, which is
    found out in the same transaction: `find_duplicate` and `standing.under_way` say what is one. The yardstick never is: it has its last rung from the
    start where another trial evaluated that; another baseline only where its last rung is evaluated. It has no candidate (None) only where it failed since
    nothing could be made of what was proposed.

    request: a uuid that the caller makes; the same again gives the same trial. parameters: external values by name,
    internal: Optuna's internal representation, distributions: Optuna's distribution_to_json, of the same names, in the
    order in which they were suggested. Optuna reads the trial as its own.
    code: of the caller's program, where it must be the one that the study was last launched with.
    Raises StudyFull, NoWorker, BadValue, CodeDiffers, SchemaError (the rules are others than this version's), and NotNow for a yardstick beside
    one that has not failed, for it or a baseline while the same is trained, and for a repeat of a point that is dominated for good.
    """
    if outcome is not None and outcome not in REFUSALS:
        raise BadValue(f"outcome={outcome!r} is no refusal of a proposal: use one of {', '.join(REFUSALS)}, or None to run it")
    values = {
        "study": study_id, "request": request, "outcome": outcome, "reason": clean(reason),
        **_described(candidate, parameters, distributions, internal),
        "user_keys": list(user_attrs or {}), "user_values": [json.dumps(value) for value in (user_attrs or {}).values()],
        "system_keys": list(system_attrs or {}), "system_values": [json.dumps(value) for value in (system_attrs or {}).values()],
        "code": code, "rules": schema.digest(),
    }  # fmt: skip
    query = (
        "SELECT trial, place, outcome FROM peft_pareto.start(:study, :request, :outcome, :reason, CAST(:candidate AS jsonb), "
        "CAST(:names AS text[]), CAST(:internal AS double precision[]), CAST(:kinds AS text[]), CAST(:user_keys AS text[]), "
        "CAST(:user_values AS text[]), CAST(:system_keys AS text[]), CAST(:system_values AS text[]), :code, :rules)"
    )
    with leases.translated(), store.at_once.connect() as connection:
        return Started(*connection.execute(text(query), values).one())


def take(store: Store, study_id: int, request: str, code: str | None = None) -> Taken | None:
    """The oldest trial that waits, first those that were left, then enqueued ones, now under this worker's lease.

    None if none waits. The same request again gives the same trial while this worker holds it. code: as in `start`.
    Raises StudyFull (one waits, but its place is taken), NoWorker, CodeDiffers, SchemaError.
    """
    query = "SELECT * FROM peft_pareto.take(:study, :request, :code, :rules)"
    with leases.translated(), store.at_once.connect() as connection:
        row = connection.execute(text(query), {"study": study_id, "request": request, "code": code, "rules": schema.digest()}).one_or_none()
    if row is None:
        return None
    given = dict(row._mapping)
    given["user_attrs"] = {name: json.loads(value) for name, value in row.user_attrs.items()}
    given["fixed_params"] = json.loads(row.fixed_params) if row.fixed_params else {}
    given["rungs"] = dict(map(tuple, row.rungs))
    return Taken(**given)


def is_held(store: Store, request: str) -> bool:
    """Whether this worker holds a trial that it got by this request: then `take` gives it, once more."""
    query = "SELECT EXISTS (SELECT FROM peft_pareto.leases WHERE request = :request AND worker = peft_pareto.worker() AND outcome IS NULL)"
    with leases.translated(), store.at_once.connect() as connection:
        return bool(connection.scalar(text(query), {"request": request}))


def describe(
    store: Store,
    trial_id: int,
    candidate: CandidateRow,
    parameters: Mapping[str, Any],
    distributions: Mapping[str, str],
    internal: Mapping[str, float],
    outcome: str | None = None,
    reason: str | None = None,
) -> str | None:
    """What a taken trial that had no candidate is going to run; again, it replaces. With an outcome, or if it is a duplicate, as in `start`,
    it ends with that at once. Gives the outcome then, else None. Raises LeaseLost, BadValue."""
    query = (
        "SELECT peft_pareto.describe(:trial, :outcome, :reason, CAST(:candidate AS jsonb), CAST(:names AS text[]), "
        "CAST(:internal AS double precision[]), CAST(:kinds AS text[]))"
    )
    with leases.translated(), store.at_once.connect() as connection:
        described = _described(candidate, parameters, distributions, internal)
        return connection.scalar(text(query), {"trial": trial_id, "outcome": outcome, "reason": clean(reason), **described})


def tell(
    store: Store,
    trial_id: int,
    outcome: str,
    *,
    state: str,
    values: Sequence[float] | None = None,
    reason: str | None = None,
    own_cause: bool = False,
) -> None:
    """Ends the trial: "finished" as COMPLETE or PRUNED, "failed" as FAIL; also an enqueued one as "duplicate" or "infeasible".

    values: one for each of the study's objectives as Optuna knows them (one reward in a joint_reward study), None if it has
    none. own_cause: the candidate itself is to blame (NaN loss), and is not tried again. Telling the same again by the same
    worker is no error. Raises LeaseLost, BadValue (NaN, wrong number of values, a state that does not go with the outcome).
    """
    if state not in ENDS.get(outcome, ()):
        pairs = ", ".join(f"{name} as {' or '.join(states)}" for name, states in ENDS.items())
        raise BadValue(f"outcome={outcome!r} with state={state!r} is no end of a trial: tell {pairs}")
    given = {
        "trial": trial_id, "outcome": outcome, "state": state, "reason": clean(reason), "own": bool(own_cause),
        "values": None if values is None else [number(f"value {place}", value) for place, value in enumerate(values)],
    }  # fmt: skip
    query = "SELECT peft_pareto.tell(:trial, :outcome, :state, CAST(:values AS double precision[]), :reason, :own)"
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(query), given)


def leave(store: Store, trial_id: int, reason: str | None = None) -> bool:
    """Gives the trial back, so that another worker goes on with it. reason None: released, no loss; else a loss.

    True if that was the last loss and the trial is now FAIL. Again by the same worker, it does nothing. Raises LeaseLost.
    """
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT peft_pareto.leave(:trial, :reason)"
        return bool(connection.scalar(text(query), {"trial": trial_id, "reason": clean(reason)}))


def expire(store: Store, study_id: int) -> list[int]:
    """Takes all trials of the study from workers whose lease has run out; gives their numbers. Any number may call it."""
    with leases.translated(), store.at_once.connect() as connection:
        return list(connection.scalars(text("SELECT peft_pareto.expire(:study)"), {"study": study_id}))


def find_duplicate(store: Store, study_id: int, root: str, steps: int, repeat: int = 0) -> int | None:
    """Number of a trial of the same root and repeat by which running `steps` is useless, None if there is none.

    That is a trial which has evaluated a rung at these steps (it counts first); which runs, or was left, and will be
    evaluated there; which was stopped (PRUNED) though it was to go there or beyond; or which failed by its own cause and had
    no more steps than these: a training that diverges does so again. `start` asks the same.
    """
    query = "SELECT peft_pareto.duplicate_of(:study, :root, :steps, :repeat)"
    with leases.translated(), store.at_once.connect() as connection:
        return connection.scalar(text(query), {"study": study_id, "root": root, "steps": int(steps), "repeat": int(repeat)})


def running_and_failed(
    store: Store, study_id: int, live: Collection[int] = (), failed: Collection[int] = ()
) -> tuple[list[RunningTrial], list[RunningTrial]]:
    """Trials with a candidate that run, or were left and wait to be taken up; and those that failed by their own cause and whose parameters
    are known. Both by number, as they were at one moment. live: numbers of those of which parameters and distributions are not read again,
    and are None; failed: of those that are left out."""
    query = (
        "SELECT t.trial_id, t.number, c.root, c.repeat, c.steps, CASE WHEN d.json IS NOT NULL THEN c.parameters END AS parameters, "
        "d.json AS distributions, false AS failed FROM trials t JOIN peft_pareto.candidates c USING (trial_id) "
        "LEFT JOIN peft_pareto.distributions d ON d.distributions_id = c.distributions_id AND t.number <> ALL (CAST(:live AS integer[])) "
        "WHERE t.study_id = :study AND t.state IN ('RUNNING', 'WAITING') UNION ALL "
        "SELECT t.trial_id, t.number, c.root, c.repeat, c.steps, c.parameters, d.json, true FROM peft_pareto.leases l "
        "JOIN trials t USING (trial_id) JOIN peft_pareto.candidates c USING (trial_id) JOIN peft_pareto.distributions d USING (distributions_id) "
        "WHERE l.study_id = :study AND l.outcome = 'failed' AND l.own_cause AND t.number <> ALL (CAST(:failed AS integer[])) "
        "AND c.parameters <> '{}' ORDER BY number"
    )
    found: tuple[list[RunningTrial], list[RunningTrial]] = ([], [])
    with leases.translated(), store.at_once.connect() as connection:
        for *row, has_failed in connection.execute(text(query), {"study": study_id, "live": list(live), "failed": list(failed)}):
            found[has_failed].append(RunningTrial(*row))
    return found


def record_hypervolume(store: Store, trial_id: int, hypervolume: float) -> None:
    """The front's hypervolume when this trial was finished; anybody may, and again replaces. Raises BadValue."""
    query = "SELECT peft_pareto.record_hypervolume(:trial, :hypervolume)"
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(query), {"trial": trial_id, "hypervolume": number("hypervolume", hypervolume)})


def _described(
    candidate: CandidateRow | None, parameters: Mapping[str, Any], distributions: Mapping[str, str], internal: Mapping[str, float]
) -> dict[str, Any]:
    if candidate is None:
        return {"candidate": None, "names": [], "internal": [], "kinds": []}
    if not parameters.keys() == distributions.keys() == internal.keys():
        names = sorted({*parameters, *distributions, *internal} - (parameters.keys() & distributions.keys() & internal.keys()))
        raise BadValue(f"parameters {', '.join(names)} must each have a value, an internal value and a distribution: give all three")
    row = {
        **asdict(candidate),
        "steps": int(candidate.steps),
        "rungs": [int(steps) for steps in candidate.rungs],
        "trainable": None if candidate.trainable is None else int(candidate.trainable),
        "trainable_share": optional("trainable_share", candidate.trainable_share),
        "json": as_stored(candidate.json),
        "parameters": as_stored(parameters),
        "distributions": json.dumps(dict(distributions), sort_keys=True),
    }
    if list(row["rungs"]) != sorted(set(row["rungs"])) or row["rungs"][-1:] != [row["steps"]]:
        raise BadValue(f"rungs={list(candidate.rungs)} must grow and end at the candidate's steps={candidate.steps}: correct them")
    return {
        "candidate": dumped(row),
        "names": list(internal),
        "internal": [number(name, value) for name, value in internal.items()],
        "kinds": [distributions[name] for name in internal],
    }
