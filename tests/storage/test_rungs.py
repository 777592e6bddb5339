"""Rungs: what is recorded is read back, in the order of commits, whoever writes at once; and ten thousand trials are read fast."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from sqlalchemy import text

from storage import trials
from storage.errors import BadValue, StudyFull


def test_a_rung_is_read_back_as_it_was_recorded(study: Callable) -> None:
    made = study()
    draws = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    trial = made.start("h", x=0.1 + 0.2, root="r", repeat=1, method="LoRA", baseline="full", yardstick=True)
    scores = {"copy_excess": (np.float64(0.1) + 0.2, None, np.float32(1), draws[1]), "fd": (2.0, 1.0, 3, draws[0].tolist()), "kid": (1, 0, 2)}
    made.rung(trial, np.float64(2.0), 0.1 + 0.2, steps=np.int64(10), hash="h at 10", scores=scores, seconds=3.5, memory=np.int64(2**40),
              violations={"max_seconds": np.float32(-0.5)})  # fmt: skip
    (row,) = trials.rungs_since(made.store, made.id, 0)
    assert (row.trial_id, row.number, row.steps, row.hash, row.root, row.repeat) == (trial.trial_id, 0, 10, "h at 10", "r", 1)
    assert (row.method, row.values, row.seconds, row.feasible, row.violations) == ("LoRA", (2.0, 0.1 + 0.2), 3.5, True, {"max_seconds": -0.5})
    assert (row.parameters, row.baseline, row.yardstick, row.own_steps, row.again) == ({"x": 0.1 + 0.2}, "full", True, 30, False)
    assert list(json.loads(row.distributions)) == ["x"]
    assert trials.rungs_since(made.store, made.id, row.recorded) == []
    known = trials.known_rungs(made.store, made.id, "r", 1)[10]
    assert (known.trial_id, known.number, known.hash, known.words, known.values) == (trial.trial_id, 0, "h at 10", "a rung", (2.0, 0.1 + 0.2))
    assert (known.seconds, known.memory, known.violations) == (3.5, 2**40, {"max_seconds": -0.5})
    assert known.scores["kid"] == (1, 0, 2, None) and known.scores["copy_excess"][:3] == (0.1 + 0.2, None, 1)
    assert np.array_equal(known.scores["fd"][3], draws[0])
    assert trials.known_rungs(made.store, made.id, "r", 0) == {} == trials.known_rungs(made.store, study().id, "r", 1)


def test_replicates_are_read_of_the_rungs_that_are_asked_for(study: Callable) -> None:
    made = study()
    draws = np.random.default_rng(0).normal(size=(3, 2, 256)).astype(np.float32)
    for both in draws:  # in the order of names that a dictionary happens to have, and with a score that is no objective
        made.rung(made.start(), scores={"copy_excess": (1, 1, 1, both[1]), "kid": (1, 1, 1, both[0]), "fd": (1, 1, 1, both[0])})
    made.rung(made.start(), scores={"fd": (1, 1, 1, draws[0, 0]), "copy_excess": (1, 1, 1)})
    first, second, third, half = (row.recorded for row in trials.rungs_since(made.store, made.id))
    found = trials.replicates_of(made.store, made.id, [third, first, half])
    assert found.keys() == {first, third} and found[first].dtype == np.float32
    assert np.array_equal(found[first], draws[0]) and np.array_equal(found[third], draws[2])
    assert trials.replicates_of(made.store, made.id, [half]) == {} == trials.replicates_of(made.store, made.id, [])
    assert trials.replicates_of(made.store, study().id, [first]) == {}


def test_recording_again_replaces_and_keeps_the_order(study: Callable) -> None:
    made = study()
    one, other = made.start(), made.start()
    made.rung(one, 1.0, 2.0, scores={"fd": (1, 1, 1), "kid": (5, 5, 5)})
    made.rung(other, 3.0, 4.0)
    first, second = trials.rungs_since(made.store, made.id)
    made.rung(one, 7.0, 8.0, scores={"fd": (7, 7, 7)}, violations={"max_memory": 1})
    again = trials.rungs_since(made.store, made.id)
    assert [row.recorded for row in again] == [first.recorded, second.recorded]
    assert (again[0].values, again[0].feasible) == ((7.0, 8.0), False)
    with made.store.engine.connect() as connection:
        query = "SELECT name, value FROM peft_pareto.scores WHERE trial_id = :t"
        assert connection.execute(text(query), {"t": one.trial_id}).all() == [("fd", 7.0)]


def test_known_rungs_are_those_that_were_measured_first(study: Callable) -> None:
    made = study()
    made.finish(made.start("a", root="r", steps=10), 1.0, 1.0, steps=10, hash="a")
    longer = made.start("b", root="r")
    made.rung(longer, 2.0, 2.0, steps=10, hash="a")
    made.rung(longer, 3.0, 3.0, steps=30, hash="b")
    known = trials.known_rungs(made.store, made.id, "r")
    assert {steps: (rung.number, rung.values) for steps, rung in known.items()} == {10: (0, (1.0, 1.0)), 30: (1, (3.0, 3.0))}
    assert [row.again for row in trials.rungs_since(made.store, made.id)] == [False, True, False]


@pytest.mark.parametrize(
    ("rung", "why"),
    [
        ({"values": (float("nan"), 1.0)}, "objective 0=nan"),
        ({"values": (1.0, np.inf)}, "objective 1=inf"),
        ({"values": (1.0,)}, "1 values, its study compares 2"),
        ({"steps": 11}, "steps=11 is no rung .* its rungs are .10,30."),
        ({"scores": {"fd": (np.nan, 1, 1)}}, "fd=nan"),
        ({"scores": {"fd": (1, 1, np.float32("nan"))}}, "bound of fd"),
        ({"scores": {"fd": (1, 1, 1, np.zeros(255))}}, "replicates of fd"),
        ({"scores": {"fd": (1, 1, 1, [float("nan")] * 256)}}, "256 others"),
        ({"violations": {"max_memory": float("nan")}}, "violation of max_memory"),
        ({"seconds": float("inf")}, "seconds=inf"),
    ],
)
def test_what_must_not_reach_a_front_is_refused(study: Callable, rung: dict, why: str) -> None:
    made = study()
    trial = made.start()
    given = {**{"values": (1.0, 1.0), "steps": 10}, **rung}
    with pytest.raises(BadValue, match=why) as caught:
        made.rung(trial, *given.pop("values"), **given)
    assert "\n" not in str(caught.value)
    assert trials.rungs_since(made.store, made.id) == []


def test_no_rung_is_missed_while_others_commit(study: Callable, opened: Callable) -> None:
    """A reader that always asks from the last number on sees every rung of two workers who write at once."""
    made = study(60)
    ended, seen = threading.Event(), []

    def work() -> None:
        mine = made.seen_by(opened())
        try:
            while True:
                mine.finish(mine.start())
        except StudyFull:
            pass

    def read() -> None:
        store = opened()
        last = False
        while not last:
            last = ended.is_set()
            seen.extend(row.recorded for row in trials.rungs_since(store, made.id, seen[-1] if seen else 0))

    reader, writers = threading.Thread(target=read), [threading.Thread(target=work) for _ in range(2)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert len(seen) == 60 and seen == sorted(seen)


def test_a_later_writer_waits_for_an_earlier_commit(study: Callable, opened: Callable) -> None:
    """Numbers are given under the study's lock: who comes second commits second, or its number would be passed over."""
    made = study()
    other = made.seen_by(opened())
    one, two = made.start(), other.start()
    held = made.store.engine.connect()
    made.rung(one, steps=10)
    held.execute(text("SELECT 1 FROM peft_pareto.studies WHERE study_id = :s FOR NO KEY UPDATE"), {"s": made.id})
    late = threading.Thread(target=lambda: other.rung(two, steps=10))
    late.start()
    late.join(0.3)
    assert late.is_alive(), "it did not wait for the lock"
    assert len(trials.rungs_since(made.store, made.id)) == 1
    held.rollback()
    held.close()
    late.join(10)
    assert [row.number for row in trials.rungs_since(made.store, made.id)] == [0, 1]


def test_of_ten_thousand_trials_only_what_is_new_is_read(study: Callable) -> None:
    made = study(20000)
    made.fill(10000)
    start = time.process_time()
    rows = trials.rungs_since(made.store, made.id)
    seconds = time.process_time() - start  # of this process: the server's share cannot be told from other load on the machine
    assert len(rows) == 20000 and len(rows[0].parameters) == 30 and rows[0].distributions is rows[-1].distributions
    start = time.process_time()
    (last,) = trials.rungs_since(made.store, made.id, rows[-2].recorded)
    assert last.recorded == rows[-1].recorded
    assert time.process_time() - start < seconds / 20
