"""One trial, really trained: finished, failed by its own fault or another's, given back, lost, and told through an outage."""

from __future__ import annotations

import errno
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpo import keeping, stopping
from hpo.errors import DiskTrouble
from hpo.inner_loop import InnerLoop
from hpo.stopping import Stopped
from hpo.study import MOST_ATTEMPTS, Asked, Search
from hpo.trial import SECONDS, fail, is_own_cause, reason_of, release, run_trial
from metrics.errors import BadArray
from storage import embedded, leases, results
from storage.errors import StorageUnreachable
from storage.store import open_store, worker_name
from trainers.errors import BadSelection, TrainingDiverged


@pytest.fixture(scope="module")
def inner(model, data) -> InnerLoop:
    from hpo.settings import Settings

    small = Settings(model=str(model / "base"), encoder=str(model / "clip"), data=str(data), train_images=12, generated=20, steps=4, batch_size=8,
                     sampling_steps=2, device="cpu")
    torch.set_num_threads(1)
    return InnerLoop(small, "cpu")


@pytest.fixture
def search(searching: Callable[..., Search], inner: InnerLoop, tmp_path) -> Search:
    return searching(replace(inner.settings, study=f"trial-{tmp_path.name}", out=str(tmp_path / "out")), trials=3)


def outcome(search: Search, query: Callable, number: int) -> tuple:
    return query("SELECT state, outcome, reason FROM trial_scores WHERE study = :s AND trial = :n", s=search.settings.study, n=number)[0]


def test_a_finished_trial_has_scores_words_and_tensors(search: Search, inner: InnerLoop, query: Callable) -> None:
    asked = search.ask()
    assert run_trial(search, inner, asked) == "finished"
    row = results.front(search.store, search.settings.study)[0]
    assert row["candidate"] == asked.candidate.words and row["trainable"] == inner.units.total and row["trainable_share"] == 1
    assert all(row[name] is not None and row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in ("fd", "copy_excess", "loss_gap"))
    assert keeping.path_for(search, asked).exists() and outcome(search, query, 0) == ("COMPLETE", "finished", None)


def test_a_finished_trial_says_what_its_time_went_to(search: Search, inner: InnerLoop) -> None:
    run_trial(search, inner, search.ask())
    spent = search.study.trials[0].user_attrs[SECONDS]
    assert spent.keys() == {"training", "generating", "scoring", "total"} and min(spent.values()) > 0
    assert spent["training"] + spent["generating"] + spent["scoring"] < spent["total"]


def test_a_candidate_that_diverges_fails_by_its_own_fault_and_is_not_tried_again(search: Search, inner: InnerLoop, query: Callable) -> None:
    asked = search.ask()
    wild = Asked(asked.trial, replace(asked.candidate, learning_rate=1e9), asked.yardstick)
    before = {name: tensor.clone() for name, tensor in inner.pipeline.unet.state_dict().items()}
    assert run_trial(search, inner, wild) == "failed"
    state, how, reason = outcome(search, query, 0)
    assert (state, how) == ("FAIL", "failed") and reason.startswith("TrainingDiverged: loss is nan at step 2 with learning rate 1e+09")
    assert leases.read(search.store, asked.id).own_cause and search.ask().candidate.method != asked.candidate.method
    assert all(torch.equal(tensor, before[name]) for name, tensor in inner.pipeline.unet.state_dict().items()), "the base is untouched"
    assert not keeping.path_for(search, asked).exists()


def test_a_disk_that_refuses_ends_the_worker_and_costs_the_candidate_nothing(search: Search, inner: InnerLoop, query: Callable) -> None:
    """However often it happens: else the yardstick would be given up for another method's."""
    keeping.folder(search).parent.mkdir(parents=True)
    keeping.folder(search).write_text("a file where the folder should be")
    for _ in range(MOST_ATTEMPTS + 1):
        asked = search.ask()
        with pytest.raises(DiskTrouble, match="cannot be written .*: free some space or choose another folder"):
            run_trial(search, inner, asked)
        assert asked.yardstick and outcome(search, query, asked.number)[1] == "released"
    keeping.folder(search).unlink()
    again = search.ask()
    assert again.candidate == asked.candidate and run_trial(search, inner, again) == "finished"


@pytest.fixture
def stoppable() -> Iterator[None]:
    former = signal.getsignal(signal.SIGUSR1)
    stopping.on_signals(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, former)
    stopping.requested.clear()


def test_a_stopped_trial_is_given_back(search: Search, inner: InnerLoop, query: Callable, stoppable: None) -> None:
    asked = search.ask()
    threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
    with pytest.raises(Stopped):
        run_trial(search, inner, asked)
    assert outcome(search, query, 0) == ("FAIL", "released", "the worker was stopped")
    assert search.ask().candidate == asked.candidate and not keeping.path_for(search, asked).exists()
    assert not results.artifacts(search.store, search.id, keeping.WEIGHTS), "nor is there said to be a file"


def run_out(query: Callable, asked: Asked) -> None:
    """Let the lease run out, as if this worker had been asleep; a trigger guards it, so that is taken off for a moment."""
    query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
    query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE trial_id = :id", id=asked.id)
    query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")


def test_a_trial_whose_lease_ran_out_is_lost_and_writes_nothing(search: Search, inner: InnerLoop, query: Callable, opened: Callable) -> None:
    asked = search.ask()
    run_out(query, asked)
    assert run_trial(search, inner, asked) == "lost"
    assert not query("SELECT 1 FROM peft_pareto.scores WHERE trial_id = :id", id=asked.id)
    assert Search(opened(), search.settings).ask().candidate == asked.candidate


def test_a_worker_survives_that_it_may_not_tell_a_failure_or_give_back_any_more(search: Search, query: Callable, caplog) -> None:
    asked = search.ask()
    run_out(query, asked)
    assert fail(search, asked, ValueError("why")) == "lost"
    release(search, asked)
    assert "was not given back" in caplog.text and leases.read(search.store, asked.id).outcome is None


def test_a_measured_trial_is_told_though_the_database_was_away(inner: InnerLoop, tmp_path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pp"))  # short: a socket's path has 107 characters
    try:
        search = Search(open_store(embedded.start(folder), worker_name()), replace(inner.settings, study="outage", out=str(tmp_path), keep="none"))
        search.register(1, inner.identity)
        asked = search.ask()

        def stop_after_generating(stage: str) -> None:
            if stage == "scoring":
                embedded.stop(folder)
                threading.Timer(2.0, embedded.start, (folder,)).start()

        class Watched:
            """The real inner loop, which says when it comes to the scores."""
            def evaluate(self, candidate, number, on_stage, keep, state, on_loss):
                return inner.evaluate(candidate, number, lambda stage: (on_stage(stage), stop_after_generating(stage)), keep, state, on_loss)

        assert run_trial(search, Watched(), asked) == "finished"
        assert leases.counts(search.store, search.id).finished == 1 and search.was_told(asked)
        search.store.close()
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(("error", "own"), [(TrainingDiverged(2, float("nan"), 1.0), True), (BadSelection("x"), True), (BadArray("x"), True),
                                            (torch.OutOfMemoryError("x"), True), (ZeroDivisionError(), True), (AssertionError(), True),
                                            (OSError(errno.ENOSPC, "full"), False), (ConnectionResetError(), False), (MemoryError(), False),
                                            (StorageUnreachable("away"), False), (RuntimeError("CUDA error: unspecified launch failure"), False)])
def test_who_is_to_blame(error: Exception, own: bool) -> None:
    assert is_own_cause(error) == own


def test_a_reason_is_one_line_of_bearable_length() -> None:
    assert reason_of(ValueError("first\nsecond")) == "ValueError: first" and reason_of(KeyError()) == "KeyError: no message"
    assert len(reason_of(ValueError("x" * 9000))) == 500
