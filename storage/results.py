"""What a study knows beyond Optuna: settings, queue, references, curves, artifacts; and its points, trials and rungs, to be read.
What a trial writes while it lives is in trials.py."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from storage import leases
from storage.errors import BadValue, ForeignStudy, SettingsDiffer, UnknownStudy
from storage.plain import as_stored, dumped, number
from storage.store import Store

LEASE_SECONDS = 60.0
NEWEST_RUNGS = 200  # whose trials say how long a trial takes
NOT_SET = "(not set)"
CONTENT = "_content"  # after the name of a setting: bound is a hash of what it names


@dataclass(frozen=True)
class Registered:
    """A study as it is stored: `trials` asked for in all, `created` whether this call made it, `before` what it replaced."""

    trials: int
    settings: Mapping[str, Any]
    created: bool
    before: Registered | None = None


@dataclass(frozen=True)
class References:
    """What joint_reward is measured against. `scores`: name -> (value, low, high) of the untouched base."""

    q_base: float
    q_real: float
    m_base: float
    scores: Mapping[str, tuple[float, float, float]]
    base: Any


@dataclass(frozen=True)
class Running:
    """One trial that somebody runs now; `seconds` since it was leased."""

    trial_id: int
    number: int
    worker: str
    words: str | None
    stage: str | None
    seconds: float


@dataclass(frozen=True)
class Progress:
    """A study at this moment. `front`: points on it; `seconds`: mean busy seconds of those that finished lately, None if none did."""

    counts: leases.Counts
    running: tuple[Running, ...]
    front: int
    seconds: float | None


def register(
    store: Store,
    study_id: int,
    trials: int | None,
    binding: Mapping[str, Any],
    free: Mapping[str, Any],
    *,
    objectives: Sequence[str],
    directions: Mapping[str, str],
    quality: str,
    memorization: str,
    reward_weight: float = 0.5,
    lease_seconds: float = LEASE_SECONDS,
    queue: Sequence[Mapping[str, Any]] = (),
) -> Registered:
    """Creates the study's row, or joins it; from then on the database watches over its trials.

    `binding`, the objectives and the weight must be what is stored; `free` and `trials` replace what is stored: the
    last one who launches says how many trials there shall be. With trials None (a worker that joins) neither is
    changed. `directions`: score name -> "minimize" or "maximize". `queue`: [{"candidate": JSON, "why": text}] to be run before
    anything is proposed, taken when the study is created.
    Raises SettingsDiffer, CodeDiffers (trials run with another `free["code"]`), ForeignStudy (it has started trials but is not registered),
    BadValue (None trials or no such study, where it must be created).
    """
    given = as_stored({"binding": {**binding, **_fixed(objectives, reward_weight)}, "free": dict(free)})
    with leases.translated(), store.at_once.connect() as connection:  # no lock is held while this process or the network rests
        query = "SELECT o.study_name, s.trials, s.settings FROM studies o LEFT JOIN peft_pareto.studies s USING (study_id) WHERE o.study_id = :id"
        found = connection.execute(text(query), {"id": study_id}).one_or_none()
        if found is None:
            raise BadValue(f"study {study_id} does not exist: create it with Optuna first")
        name, asked_before, stored = found
        if (trials is None and stored is None) or (trials is not None and trials < 1):
            raise BadValue(f"trials={trials!r} must be 1 or more: start study {name!r} with --trials N")
        if stored is None:
            row = {
                "study_id": study_id,
                "trials": int(trials),
                "lease_seconds": float(lease_seconds),
                "settings": given,
                "objectives": list(objectives),
                "directions": dict(directions),
                "reward_weight": float(reward_weight),
                "quality": quality,
                "memorization": memorization,
                "queue": as_stored(list(queue)),
            }
            made = connection.execute(text("SELECT * FROM peft_pareto.register(CAST(:given AS jsonb))"), {"given": dumped(row)}).one_or_none()
            if made is None:
                raise ForeignStudy(name)
            if made.created:
                return Registered(int(trials), given, created=True)
            stored = made.settings
        _compare(stored, given)  # what binds never changes
        if trials is None:  # a worker that joins: its machine's paths are not the study's
            return Registered(asked_before, stored, created=False)
        query = "SELECT peft_pareto.relaunch(:id, :trials, CAST(:settings AS jsonb))"
        connection.execute(text(query), {"id": study_id, "trials": int(trials), "settings": json.dumps(given)})
        return Registered(int(trials), given, created=False, before=None if asked_before is None else Registered(asked_before, stored, created=False))


def discard(store: Store, study_id: int) -> None:
    """Deletes Optuna's study if it is not registered and has no trial, which nobody can change meanwhile; else it stays."""
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text("SELECT peft_pareto.discard(:study)"), {"study": study_id})


def compare(store: Store, study_id: int, binding: Mapping[str, Any], free: Mapping[str, Any], *, objectives: Sequence[str], reward_weight: float) -> None:
    """Raises SettingsDiffer where `register` would for a study that is registered; writes nothing."""
    _compare(settings(store, study_id), as_stored({"binding": {**binding, **_fixed(objectives, reward_weight)}, "free": dict(free)}))


def is_foreign(store: Store, name: str) -> bool:
    """Whether an unregistered study has trials that were started, so that `register` would raise ForeignStudy."""
    query = "SELECT EXISTS (SELECT FROM studies s JOIN trials t USING (study_id) WHERE s.study_name = :name AND t.state <> 'WAITING')"
    with leases.translated(), store.at_once.connect() as connection:
        return connection.scalar(text(query), {"name": name})


def study_id(store: Store, name: str) -> int:
    """The id of a registered study. Raises UnknownStudy."""
    query = "SELECT o.study_id FROM peft_pareto.studies s JOIN studies o USING (study_id) WHERE o.study_name = :name"
    with leases.translated(), store.at_once.connect() as connection:
        found = connection.scalar(text(query), {"name": name})
    if found is None:
        raise UnknownStudy(name, study_names(store))
    return found


def settings(store: Store, study_id: int) -> Mapping[str, Any] | None:
    """The stored {"binding": …, "free": …}, None if the study is not registered."""
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT settings FROM peft_pareto.studies WHERE study_id = :id"
        return connection.scalar(text(query), {"id": study_id})


def token(store: Store, study_id: int) -> str:
    """By which the study is told from one of the same name in another store: when it was registered, in hex. Raises BadValue."""
    query = "SELECT to_hex(CAST(1000000 * extract(epoch FROM created_at) AS bigint)) FROM peft_pareto.studies WHERE study_id = :id"
    with leases.translated(), store.at_once.connect() as connection:
        found = connection.scalar(text(query), {"id": study_id})
    if found is None:
        raise BadValue(f"study {study_id} is not registered: call results.register first")
    return found


def queue(store: Store, study_id: int) -> list[dict[str, Any]]:
    """The study's queue, [{"candidate": JSON, "why": text}], whole and in order: what of it was run is found by
    `trials.find_duplicate`."""
    with leases.translated(), store.at_once.connect() as connection:
        return list(connection.scalar(text("SELECT queue FROM peft_pareto.studies WHERE study_id = :id"), {"id": study_id}) or [])


def append_to_queue(store: Store, study_id: int, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Appends what the queue does not hold yet; gives the whole queue. Raises BadValue."""
    given = {"study": study_id, "entries": dumped(as_stored(list(entries)))}
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT peft_pareto.append_to_queue(:study, CAST(:entries AS jsonb))"
        return connection.scalar(text(query), given)


def candidate(store: Store, trial_id: int) -> Mapping[str, Any] | None:
    """The candidate's JSON as it was recorded, None if the trial has none yet."""
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT json FROM peft_pareto.candidates WHERE trial_id = :trial"
        return connection.scalar(text(query), {"trial": trial_id})


def record_curve(store: Store, trial_id: int, curve: Mapping[int, tuple[float, float]]) -> None:
    """The stable validation loss by step: (mean on train, mean on twin). Again, it replaces. Raises BadValue, LeaseLost."""
    given = {
        "trial": trial_id, "steps": [int(step) for step in curve], "train": [number("train loss", train) for train, _ in curve.values()],
        "twin": [number("twin loss", twin) for _, twin in curve.values()],
    }  # fmt: skip
    query = (
        "INSERT INTO peft_pareto.loss_curves (trial_id, step, train, twin) SELECT :trial, given.step, given.train, given.twin "
        "FROM unnest(CAST(:steps AS integer[]), CAST(:train AS double precision[]), CAST(:twin AS double precision[])) AS given (step, train, twin) "
        "ON CONFLICT (trial_id, step) DO UPDATE SET train = excluded.train, twin = excluded.twin"
    )
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(query), given)


def curve(store: Store, trial_id: int) -> dict[int, tuple[float, float]]:
    """What `record_curve` wrote, by step."""
    query = "SELECT step, train, twin FROM peft_pareto.loss_curves WHERE trial_id = :trial ORDER BY step"
    with leases.translated(), store.at_once.connect() as connection:
        return {step: (train, twin) for step, train, twin in connection.execute(text(query), {"trial": trial_id})}


def record_references(
    store: Store,
    study_id: int,
    *,
    q_base: float,
    q_real: float,
    m_base: float,
    scores: Mapping[str, tuple[float, float, float]],
    base: Any = None,
) -> References:
    """Scores of the base and of real pictures. The first writer wins; gives what is stored. Raises BadValue."""
    given = {
        "q_base": number("q_base", q_base),
        "q_real": number("q_real", q_real),
        "m_base": number("m_base", m_base),
        "scores": {name: [number(name, one) for one in score] for name, score in scores.items()},
        "base": base,
    }
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT * FROM peft_pareto.record_references(:study, CAST(:given AS jsonb))"
        row = connection.execute(text(query), {"study": study_id, "given": dumped(given)}).one_or_none()
    if row is None:
        raise BadValue(f"study {study_id} is not registered: call results.register first")
    return _references(row)


def references(store: Store, study_id: int) -> References | None:
    """The stored references, None until somebody has measured them."""
    query = "SELECT * FROM peft_pareto.studies WHERE study_id = :id AND reference_scores IS NOT NULL"
    with leases.translated(), store.at_once.connect() as connection:
        row = connection.execute(text(query), {"id": study_id}).one_or_none()
    return None if row is None else _references(row)


def joint_reward(store: Store, study_id: int, q: float, m: float) -> float | None:
    """The reward of quality q and memorization m by the study's references; None until its yardstick is finished,
    or if the references leave no room (sql/front.sql)."""
    with leases.translated(), store.at_once.connect() as connection:
        query = "SELECT peft_pareto.joint_reward(CAST(:study AS integer), :q, :m)"
        return connection.scalar(text(query), {"study": study_id, "q": number("q", q), "m": number("m", m)})


def front(store: Store, study_name: str) -> list[dict[str, Any]]:
    """The rows of the view pareto_front for this study, one a point, by trial number and steps. Raises UnknownStudy."""
    return _view(store, "pareto_front", study_name)


def trials(store: Store, study_name: str) -> list[dict[str, Any]]:
    """The rows of the view trial_scores for this study, by trial number. Raises UnknownStudy."""
    return _view(store, "trial_scores", study_name)


def rungs(store: Store, study_name: str) -> list[dict[str, Any]]:
    """The rows of the view rung_scores for this study, by trial number and steps. Raises UnknownStudy."""
    return _view(store, "rung_scores", study_name)


def study_names(store: Store) -> tuple[str, ...]:
    """Names of the registered studies, the newest first."""
    query = "SELECT study_name FROM peft_pareto.studies s JOIN studies o USING (study_id) ORDER BY s.created_at DESC"
    with leases.translated(), store.at_once.connect() as connection:
        return tuple(connection.scalars(text(query)))


def progress(store: Store, study_id: int) -> Progress:
    """Counts, running trials, size of the front and mean duration, for the display."""
    counts = leases.counts(store, study_id)
    mean = (
        "SELECT avg(seconds) FROM (SELECT max(r.seconds) AS seconds FROM (SELECT trial_id, seconds FROM peft_pareto.rungs "
        "WHERE study_id = :id ORDER BY recorded DESC LIMIT :newest) AS r JOIN trials t USING (trial_id) "
        "WHERE t.state IN ('COMPLETE', 'PRUNED') GROUP BY r.trial_id) AS finished"
    )
    with leases.translated(), store.at_once.connect() as connection:
        rows = connection.execute(text("SELECT * FROM peft_pareto.running(:id)"), {"id": study_id}).all()
        size = connection.scalar(text("SELECT count(*) FROM peft_pareto.front_of(:id)"), {"id": study_id})
        seconds = connection.scalar(text(mean), {"id": study_id, "newest": NEWEST_RUNGS})
    return Progress(counts, tuple(Running(**row._mapping) for row in rows), int(size), seconds)


def record_artifact(store: Store, trial_id: int, kind: str, path: str) -> None:
    """Notes a file that the trial has written ("weights", "picture", …). Raises LeaseLost."""
    row = {"trial_id": trial_id, "kind": kind, "path": path}
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text(_insert("artifacts", row) + " ON CONFLICT DO NOTHING"), row)


def artifacts(store: Store, study_id: int, kind: str) -> dict[int, list[str]]:
    """Paths of that kind by trial number."""
    query = (
        "SELECT t.number, a.path FROM peft_pareto.artifacts a JOIN trials t USING (trial_id) "
        "WHERE t.study_id = :id AND a.kind = :kind ORDER BY t.number, a.path"
    )
    found: dict[int, list[str]] = {}
    with leases.translated(), store.at_once.connect() as connection:
        for number, path in connection.execute(text(query), {"id": study_id, "kind": kind}):
            found.setdefault(number, []).append(path)
    return found


def forget_artifact(store: Store, path: str) -> None:
    """Removes the note of a file that was deleted; anybody may, also after the trial's end."""
    with leases.translated(), store.at_once.connect() as connection:
        connection.execute(text("DELETE FROM peft_pareto.artifacts WHERE path = :path"), {"path": path})


def _view(store: Store, view: str, study_name: str) -> list[dict[str, Any]]:
    names = study_names(store)
    if study_name not in names:
        raise UnknownStudy(study_name, names)
    with leases.translated(), store.at_once.connect() as connection:
        rows = connection.execute(text(f"SELECT * FROM {view} WHERE study = :name"), {"name": study_name})
        return [dict(row) for row in rows.mappings()]


def _references(row: Any) -> References:
    scores = {name: tuple(score) for name, score in row.reference_scores.items()}
    return References(row.q_base, row.q_real, row.m_base, scores, row.base)


def _fixed(objectives: Sequence[str], reward_weight: float) -> dict[str, Any]:
    return {"objectives": list(objectives), "reward_weight": float(reward_weight)}


def _compare(stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    one, other = ({name.removesuffix(CONTENT): value for name, value in each["binding"].items()} for each in (stored, given))
    # In the order that was given: contents come last, since they follow from other settings.
    for name in (*other, *(name for name in one if name not in other)):
        if one.get(name, NOT_SET) != other.get(name, NOT_SET):
            # A setting that is both is bound by its content, and free as to where that lies.
            places = (_place(stored, name), _place(given, name)) if name in given["free"] else None
            raise SettingsDiffer(name, one.get(name, NOT_SET), other.get(name, NOT_SET), places)


def _place(settings: Mapping[str, Any], name: str) -> str:
    return settings["free"].get(name) or "the default"


def _insert(table: str, columns: Iterable[str]) -> str:
    names = tuple(columns)
    return f"INSERT INTO peft_pareto.{table} ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})"
