"""One trial, really trained, rung by rung: finished, failed by its own fault or another's, given back, lost, and told through an outage."""

from __future__ import annotations

import errno
import gc
import queue
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from finished_study import result
from launching import until
from optuna.trial import Trial
from optuna_dashboard._note import get_note
from told import asks, beside, run, rung

from hpo import keeping, stopping
from hpo.agenda import Entry
from hpo.errors import DiskTrouble
from hpo.inner_loop import InnerLoop
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from hpo.stopping import Stopped
from hpo.study import Asked, Search
from hpo.trial import fail, is_own_cause, reason_of, release, run_trial, write
from hpo.tuning import Tuning
from metrics.errors import BadArray
from metrics.estimate import Estimate
from metrics.scores import Scores
from storage import embedded, leases, results, trials
from storage.errors import BadValue, LeaseLost, StorageUnreachable
from storage.store import open_store, worker_name
from trainers import checkpoint
from trainers.candidate import Candidate
from trainers.errors import BadSelection, TrainingDiverged

RUNGS = (2, 4)


@pytest.fixture(scope="module")
def inner(model, data) -> InnerLoop:
    small = Settings(model=str(model / "base"), encoder=str(model / "clip"), data=str(data), train_images=12, generated=20, steps=4, rungs=2, reduction=2,
                     batch_size=8, sampling_steps=2, device="cpu")
    assert small.ladder == RUNGS
    torch.set_num_threads(1)
    return InnerLoop(small, "cpu")


@pytest.fixture
def search(searching: Callable[..., Search], inner: InnerLoop, tmp_path) -> Search:
    return searching(replace(inner.settings, study=f"trial-{tmp_path.name}", out=str(tmp_path / "out")), trials=4)


def ended(trial: Generator[int, None, str]) -> tuple[list[int], str]:
    """Run a trial to its end; the rungs after which it went on, and its outcome."""
    rungs = []
    while True:
        try:
            rungs.append(next(trial))
        except StopIteration as end:
            return rungs, end.value


def outcome(search: Search, query: Callable, number: int) -> tuple:
    return query("SELECT state, outcome, reason FROM trial_scores WHERE study = :s AND trial = :n", s=search.settings.study, n=number)[0]


def stored(search: Search, asked: Asked) -> dict[int, tuple[float, float]]:
    """fd and copy_excess of the trial's rungs as they are stored, to the last digit."""
    return {row["steps"]: (row["fd"], row["copy_excess"]) for row in results.rungs(search.store, search.settings.study) if row["trial"] == asked.number}


def unbroken(inner: InnerLoop, candidate: Candidate, repeat: int = 0) -> dict[int, tuple[float, float]]:
    """The same of trainings of each rung's candidate that nobody disturbs."""
    measured = {steps: inner.evaluate(replace(candidate, steps=steps), repeat).scores for steps in RUNGS if steps <= candidate.steps}
    return {steps: (float(scores["fd"].value), float(scores["copy_excess"].value)) for steps, scores in measured.items()}


def files(search: Search, kind: str) -> list[str]:
    """What lies there and what the store says lies there, which must agree."""
    folder = keeping.folder(search) if kind == keeping.WEIGHTS else keeping.states(search.settings)
    there = sorted(path.name for path in folder.glob("*"))
    assert there == sorted(Path(path).name for paths in results.artifacts(search.store, search.id, kind).values() for path in paths)
    return there


def test_a_finished_trial_has_scores_words_and_tensors_at_each_rung(search: Search, inner: InnerLoop, query: Callable) -> None:
    asked = search.ask()
    assert ended(run_trial(search, inner, asked)) == ([2], "finished") and outcome(search, query, 0) == ("COMPLETE", "finished", None)
    assert stored(search, asked) == unbroken(inner, asked.candidate), "a rung is the candidate with fewer steps"
    for row in results.front(search.store, search.settings.study):
        assert row["candidate"] == asked.at(row["steps"]).words and row["trainable"] == inner.units.total and row["trainable_share"] == 1
        assert all(row[name] is not None and row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in ("fd", "copy_excess", "loss_gap"))
        subset = checkpoint.load(keeping.path_for(search, asked, row["steps"]), inner.pipeline.unet, inner.units, inner.pipeline.hash, inner.cache)
        try:
            assert checkpoint.read(keeping.path_for(search, asked, row["steps"])).candidate == asked.at(row["steps"])
        finally:
            subset.restore()
    assert len(files(search, keeping.WEIGHTS)) == len(results.front(search.store, search.settings.study)), "and no other file"


def test_a_new_yardstick_that_was_trained_as_another_trial_is_finished_with_what_is_known(searching: Callable, inner: InnerLoop, opened: Callable, tmp_path,
                                                                                         query: Callable) -> None:
    """The other was evaluated at its last rung only, and a yardstick is at each."""
    search = searching(replace(inner.settings, study="taken over", out=str(tmp_path / "out")), trials=6, space="reference", evaluated_rungs=1, baselines=False, sampler="tpe")
    first, other = asks(search), beside(search, opened)
    search.study.enqueue_trial({"method": "attention", "steps": 4})
    trained = asks(other)
    assert trained.rungs == (4,) and ended(run_trial(other, inner, trained)) == ([], "finished")
    search.fail(first, "TrainingDiverged: the loss is NaN", own_cause=True)
    yardstick = asks(search)
    assert (yardstick.candidate, yardstick.baseline, yardstick.rungs, yardstick.left) == (trained.candidate, "yardstick", (2, 4), ())
    assert ended(run_trial(search, inner, yardstick)) == ([], "finished")
    assert outcome(search, query, yardstick.number)[:2] == ("COMPLETE", "finished")
    assert stored(search, yardstick)[4] == stored(search, trained)[4]


def test_what_was_given_back_goes_on_elsewhere_from_its_last_rung_to_the_same_scores(search: Search, inner: InnerLoop, opened: Callable, query: Callable) -> None:
    asked = search.ask()
    trial = run_trial(search, inner, asked)
    assert next(trial) == 2
    state = keeping.state_path(search, asked)
    assert inner.kept_step(asked.candidate, 0, state) == 2
    trial.close()
    assert outcome(search, query, 0)[0] == "WAITING"
    other = Search(opened(), search.settings)
    again = other.ask()
    assert (again.number, again.candidate, list(again.known)) == (asked.number, asked.candidate, [2]), "one Optuna trial"
    seen = []
    inner_steps = inner.training
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "training", lambda *given, on_step, **more: inner_steps(*given, on_step=lambda step: (seen.append(step), on_step(step)), **more))
        assert ended(run_trial(other, inner, again)) == ([], "finished")
    assert seen == [3, 4], "nothing is trained twice"
    assert stored(search, asked) == unbroken(inner, asked.candidate)
    assert leases.counts(search.store, search.id).finished == 1 and len(search.study.trials) == 1


def test_one_whose_worker_died_before_it_was_stopped_is_stopped_where_it_is_taken_up(searching: Callable, inner: InnerLoop, opened: Callable, tmp_path,
                                                                                    query: Callable) -> None:
    search = searching(replace(inner.settings, study="died", out=str(tmp_path / "out")), trials=6, baselines=False, sampler="tpe")
    other = beside(search, opened)
    for _ in range(4):
        run(other, lambda asked, steps: (1.0, 1.0))
    asked = other.ask()
    assert rung(other, asked, 2, 50.0, 50.0), "it is to be stopped"
    other.release(asked)
    again = search.ask()
    assert again.number == asked.number and ended(run_trial(search, inner, again)) == ([], "stopped")
    assert outcome(search, query, again.number) == ("PRUNED", "finished", None)


def test_without_its_state_it_begins_anew_to_the_same_scores(search: Search, inner: InnerLoop) -> None:
    asked = search.ask()
    trial = run_trial(search, inner, asked)
    next(trial), trial.close()
    keeping.state_path(search, asked).write_bytes(b"damaged")
    assert ended(run_trial(search, inner, search.ask()))[1] == "finished" and stored(search, asked) == unbroken(inner, asked.candidate)


def test_a_state_beyond_the_last_stored_rung_is_begun_anew(search: Search, inner: InnerLoop) -> None:
    """A fail-over of the database to a standby that lagged behind has lost the rung; its scores are not those of the rung before it."""
    asked = search.ask()
    with Tuning(inner, asked.candidate, state=keeping.state_path(search, asked)) as tuning:
        tuning.train(4)
        tuning.save()
    assert ended(run_trial(search, inner, asked)) == ([2], "finished") and stored(search, asked) == unbroken(inner, asked.candidate)


@pytest.mark.parametrize(("keep", "kept"), [("all", True), ("none", False)])
def test_a_state_goes_with_its_trial_unless_it_is_kept(keep: str, kept: bool, searching: Callable, inner: InnerLoop, tmp_path) -> None:
    search = searching(replace(inner.settings, study=f"{keep}-{tmp_path.name}", out=str(tmp_path / "out"), checkpoints=str(tmp_path / "shared"), keep=keep), trials=2)
    asked = search.ask()
    ended(run_trial(search, inner, asked))
    assert (len(files(search, keeping.STATE)), len(files(search, keeping.WEIGHTS))) == ((1, 2) if kept else (0, 0))
    assert keeping.states(search.settings).is_relative_to(tmp_path / "shared" / search.settings.study), "other studies have theirs beside it"


def test_a_longer_candidate_goes_on_from_what_a_shorter_one_kept(searching: Callable, inner: InnerLoop, tmp_path) -> None:
    search = searching(replace(inner.settings, study=f"longer-{tmp_path.name}", out=str(tmp_path / "out"), keep="all"), trials=3)
    short = replace(reference_candidate("bias", 4, 1.0), steps=2)
    ended(run_trial(search, inner, search.begin(Entry(short))))
    before = keeping.state_path(search, search.begin(Entry(reference_candidate("norm", 4, 1.0)))).parent.glob("*")
    (first,) = before
    written = first.read_bytes()
    longer = search.begin(Entry(replace(short, steps=4)))
    assert list(longer.known) == [2]
    seen = []
    inner_steps = inner.training
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "training", lambda *given, on_step, **more: inner_steps(*given, on_step=lambda step: (seen.append(step), on_step(step)), **more))
        assert ended(run_trial(search, inner, longer)) == ([], "finished")
    assert seen == [3, 4] and stored(search, longer) == {4: unbroken(inner, longer.candidate)[4]}, "the shared rung is never paid for again"
    assert first.read_bytes() == written and len(files(search, keeping.STATE)) == 2, "each keeps its own"


def test_a_state_that_is_written_every_few_steps_is_known_of_and_goes_too(searching: Callable, inner: InnerLoop, tmp_path, query: Callable) -> None:
    often = replace(inner.settings, study=f"often-{tmp_path.name}", out=str(tmp_path / "out"), checkpoint_every=1)
    search = searching(often, trials=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "settings", often)
        asked = search.ask()
        trial = run_trial(search, inner, asked)
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(inner, "measure_all", lambda *_: (_ for _ in ()).throw(ConnectionResetError("gone")))
            assert ended(trial) == ([], "left") and leases.read(search.store, asked.id).reason == "ConnectionResetError: gone"
        assert files(search, keeping.STATE) and inner.kept_step(asked.candidate, 0, keeping.state_path(search, asked)) == 2
        with Tuning(inner, asked.candidate, state=keeping.state_path(search, asked)) as tuning:
            trained = tuning.training.fit().seconds
            assert (tuning.carried(0), tuning.carried(1), tuning.carried(2)) == (trained, trained / 2, 0.0) and trained > 0
        real = Tuning.carried
        patched.setattr(Tuning, "carried", lambda tuning, reached: 1000 + real(tuning, reached))
        assert ended(run_trial(search, inner, search.ask())) == ([2], "finished") and stored(search, asked) == unbroken(inner, asked.candidate)
    found = query("SELECT seconds FROM peft_pareto.rungs WHERE trial_id = :t", t=asked.id)
    assert len(found) == 2 and min(found)[0] > 1000 + trained, "those of the worker that died count too"


def test_a_candidate_that_diverges_fails_by_its_own_fault_and_is_not_tried_again(search: Search, inner: InnerLoop, query: Callable) -> None:
    asked = search.ask()
    wild = replace(asked, candidate=replace(asked.candidate, learning_rate=1e9))
    before = {name: tensor.clone() for name, tensor in inner.pipeline.unet.state_dict().items()}
    assert ended(run_trial(search, inner, wild)) == ([], "failed")
    state, how, reason = outcome(search, query, 0)
    assert (state, how) == ("FAIL", "failed") and reason.startswith("TrainingDiverged: loss is nan at step 2 with learning rate 1e+09")
    assert leases.read(search.store, asked.id).own_cause and search.ask().candidate.method != asked.candidate.method
    assert all(torch.equal(tensor, before[name]) for name, tensor in inner.pipeline.unet.state_dict().items()), "the base is untouched"
    assert not files(search, keeping.WEIGHTS) and not files(search, keeping.STATE)


def test_a_held_out_loss_that_is_not_finite_is_the_candidate_s_own_fault_too(search: Search, inner: InnerLoop, query: Callable) -> None:
    """It is measured after a step, before the next one's own loss would say so."""
    asked = search.ask()
    wild = replace(asked, candidate=replace(asked.candidate, learning_rate=1e20))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "settings", replace(inner.settings, held_out_every=1))
        assert ended(run_trial(search, inner, wild)) == ([], "failed")
    state, how, reason = outcome(search, query, 0)
    assert (state, how) == ("FAIL", "failed") and reason.startswith("TrainingDiverged: loss is nan at step 1 with learning rate 1e+20")
    assert leases.read(search.store, asked.id).own_cause and list(results.curve(search.store, asked.id)) == [0]


def test_a_score_that_cannot_be_stored_is_the_candidate_s_own_fault_too(search: Search, inner: InnerLoop, query: Callable) -> None:
    """Replicates are stored in four bytes each."""
    asked, real, large = search.ask(), inner.scores, np.full(256, 1e300)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "scores", lambda measured: Scores({**real(measured), "kid": Estimate(1e300, 1e300, 1e300, large)}))
        assert ended(run_trial(search, inner, asked)) == ([], "failed")
    state, how, reason = outcome(search, query, 0)
    assert (state, how) == ("FAIL", "failed") and reason.startswith("BadValue: replicates of kid must be 256 finite numbers")
    assert leases.read(search.store, asked.id).own_cause and not stored(search, asked)


@pytest.mark.parametrize(("place", "times"), [("weights", 4), ("states", 2)])
def test_a_disk_that_refuses_ends_the_worker_and_costs_the_candidate_nothing(place: str, times: int, search: Search, inner: InnerLoop, query: Callable) -> None:
    """However often it happens: else the yardstick would be given up for another method's. Scores are written before states, so that it gets on."""
    folder = keeping.folder(search) if place == "weights" else keeping.states(search.settings)
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    for _ in range(times):
        asked = search.ask()
        with pytest.raises(DiskTrouble, match="cannot be written .*: free some space or choose another folder"):
            ended(run_trial(search, inner, asked))
        assert (asked.number, asked.yardstick) == (0, True) and outcome(search, query, 0)[0] == "WAITING"
    folder.unlink()
    assert ended(run_trial(search, inner, search.ask()))[1] == "finished" and stored(search, asked) == unbroken(inner, asked.candidate)


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
        ended(run_trial(search, inner, asked))
    assert outcome(search, query, 0)[0] == "WAITING" and leases.read(search.store, asked.id).losses == 0
    assert search.ask().candidate == asked.candidate


def run_out(query: Callable, asked: Asked) -> None:
    """Let the lease run out, as if this worker had been asleep; a trigger guards it, so that is taken off for a moment."""
    query("ALTER TABLE peft_pareto.leases DISABLE TRIGGER guard")
    query("UPDATE peft_pareto.leases SET expires_at = clock_timestamp() - interval '1 s' WHERE trial_id = :id", id=asked.id)
    query("ALTER TABLE peft_pareto.leases ENABLE TRIGGER guard")


def test_one_that_hangs_loses_its_trial_to_another_and_its_process_is_to_end(searching: Callable, inner: InnerLoop, opened: Callable, query: Callable, tmp_path,
                                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    search = searching(replace(inner.settings, study="hangs", out=str(tmp_path / "out"), stalled_after=0.02), trials=1)
    query("UPDATE peft_pareto.studies SET lease_seconds = 2 WHERE study_id = :s", s=search.id)
    asked, told, goes_on, outcomes = search.ask(), queue.Queue(), threading.Event(), []
    monkeypatch.setattr(stopping, "end_hung", told.put)  # a real one ends the tests
    measure = inner.measure_all

    def hang(*given: object) -> object:
        goes_on.wait()
        return measure(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inner, "measure_all", hang)
        hanging = threading.Thread(target=lambda: outcomes.append(ended(run_trial(search, inner, asked))))
        hanging.start()
        try:
            assert re.fullmatch(r"trial 0: no sign of life for \d+ s at: step 2 of 4", told.get(timeout=120))
            other = beside(search, opened)
            until(lambda: isinstance(found := other.ask(), Asked) and found.number == 0, 120, "another takes the trial up")
        finally:
            goes_on.set()
            hanging.join()
    assert outcomes == [([], "lost")] and not stored(search, asked)


def test_a_trial_whose_lease_ran_out_is_lost_and_writes_nothing(search: Search, inner: InnerLoop, query: Callable, opened: Callable) -> None:
    asked = search.ask()
    run_out(query, asked)
    assert ended(run_trial(search, inner, asked)) == ([], "lost")
    assert not query("SELECT 1 FROM peft_pareto.scores WHERE trial_id = :id", id=asked.id)
    assert Search(opened(), search.settings).ask().candidate == asked.candidate


def test_one_that_is_lost_between_two_rungs_leaves_the_other_worker_s_files_alone(search: Search, inner: InnerLoop, query: Callable, opened: Callable) -> None:
    asked = search.ask()
    sleeper = run_trial(search, inner, asked)
    next(sleeper)
    run_out(query, asked)
    other = Search(opened(), search.settings)
    trials.expire(other.store, other.id)
    again = other.ask()
    assert again.number == asked.number
    trial = run_trial(other, inner, again)
    state = keeping.state_path(search, asked)
    before = state.read_bytes()
    assert ended(sleeper) == ([], "lost") and state.read_bytes() == before
    assert ended(trial) == ([], "finished") and stored(search, asked) == unbroken(inner, asked.candidate)


def test_a_trial_that_a_fail_over_of_the_database_has_lost_ends_and_leaves_no_file(search: Search, inner: InnerLoop, query: Callable) -> None:
    """To a standby that lagged behind, and knows nothing of it."""
    run(search, lambda *_: (0.0, 0.0))
    asked = search.ask()
    trial = run_trial(search, inner, asked)
    next(trial)
    assert keeping.state_path(search, asked).exists()
    for table in ("scores", "rungs", "artifacts", "loss_curves", "candidates", "leases"):
        query(f"SET session_replication_role = replica; DELETE FROM peft_pareto.{table} WHERE trial_id = :t; SET session_replication_role = DEFAULT", t=asked.id)
    for table in ("trial_params", "trial_user_attributes", "trial_system_attributes", "trials"):
        query(f"SET session_replication_role = replica; DELETE FROM {table} WHERE trial_id = :t; SET session_replication_role = DEFAULT", t=asked.id)
    assert ended(trial) == ([], "lost") and not files(search, keeping.WEIGHTS) and not files(search, keeping.STATE)
    assert search.ask().number == asked.number


def meanwhile(search: Search, asked: Asked, other: Search, query: Callable) -> None:
    """While this worker sleeps its lease runs out, and another one takes the trial up, finishes it and tidies up: it is dominated."""
    run_out(query, asked)
    again = asks(other)
    assert again.number == asked.number
    keeping.note_state(other, again)
    paths = [keeping.path_for(other, again, steps) for steps in again.rungs]
    for path in paths:
        results.record_artifact(other.store, again.id, keeping.WEIGHTS, str(path))
    for path in (*paths, keeping.state_path(other, again)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"the other's")
    run(other, lambda *_: (9.0, 9.0), again)
    keeping.tidy(other)


@contextmanager
def sleeping(place: str, sleep: Callable[[], None]) -> Iterator[None]:
    """Workers do this between their last look at the lease and the writing of weights, or of a state."""
    keep, note_state = Tuning.keep, keeping.note_state
    with pytest.MonkeyPatch.context() as patched:
        if place == "weights":
            patched.setattr(Tuning, "keep", lambda *given: (sleep(), keep(*given)))
        else:
            patched.setattr(keeping, "note_state", lambda *given: (note_state(*given), sleep()))
        yield


@pytest.mark.parametrize("place", ["weights", "states"])
def test_what_is_written_after_another_has_finished_the_trial_and_tidied_up_is_deleted(place: str, search: Search, inner: InnerLoop, query: Callable,
                                                                                        opened: Callable) -> None:
    """The worker sleeps between its last look at the lease and the writing of a file."""
    run(search, lambda *_: (0.0, -9.0))
    other, asked, slept = beside(search, opened), asks(search), []

    def sleep() -> None:
        if not slept:
            slept.append(True)
            meanwhile(search, asked, other, query)
            assert not keeping.state_path(search, asked).exists() and not results.artifacts(search.store, search.id, keeping.STATE).get(asked.number)

    with sleeping(place, sleep):
        assert ended(run_trial(search, inner, asked))[1] == "lost" and slept
    assert not [name for kind in (keeping.WEIGHTS, keeping.STATE) for name in files(search, kind) if name.startswith(f"trial-{asked.number:05d}-")]


@pytest.mark.parametrize("place", ["weights", "states"])
def test_what_is_half_written_is_deleted_unless_it_is_of_who_has_the_trial_now(place: str, search: Search, inner: InnerLoop, query: Callable, opened: Callable) -> None:
    """The other worker has taken the trial up and writes the same file when this one, which slept before it wrote, wakes: it must find its own there in the end."""
    other, asked, slept = beside(search, opened), asks(search), []
    path = keeping.path_for(search, asked, asked.rungs[0]) if place == "weights" else keeping.state_path(search, asked)
    dead, begun = (path.with_name(f"{path.name}.{name}{checkpoint.UNFINISHED}") for name in ("dead", "begun"))
    path.parent.mkdir(parents=True, exist_ok=True)
    dead.write_bytes(b"half")

    def sleep() -> None:
        if not slept:
            slept.append(True)
            run_out(query, asked)
            assert asks(other).number == asked.number
            begun.write_bytes(b"half")

    with sleeping(place, sleep):
        assert ended(run_trial(search, inner, asked))[1] == "lost" and slept
    assert begun.exists() and not dead.exists()


def test_what_another_worker_writes_of_a_lost_trial_is_left_alone(search: Search, opened: Callable, query: Callable) -> None:
    """Whether or not it has noted it yet: it goes on with the trial."""
    asked = asks(search)
    run_out(query, asked)
    again = asks(beside(search, opened))
    written = [keeping.path_for(search, asked, again.rungs[0]), keeping.state_path(search, asked)]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"the other's")
    assert fail(search, asked, ValueError("why")) == "lost" and all(path.exists() for path in written)


def test_a_worker_that_lost_its_trial_leaves_the_note_of_who_has_it(search: Search, opened: Callable, query: Callable) -> None:
    asked = asks(search)
    run_out(query, asked)
    other = beside(search, opened)
    again = asks(other)
    write(other, again, replace(result(1.0, 1.0), steps=2, curve={}), 1.0)
    with pytest.raises(LeaseLost):
        write(search, asked, replace(result(7.0, 7.0), steps=2, curve={}), 1.0)
    assert "| fd | 1 |" in get_note(Trial(search.study, asked.id))


def test_a_worker_survives_that_it_may_not_tell_a_failure_or_give_back_any_more(search: Search, query: Callable, caplog) -> None:
    asked = search.ask()
    run_out(query, asked)
    assert fail(search, asked, ValueError("why")) == "lost"
    release(search, asked)
    assert "was not given back" in caplog.text and leases.read(search.store, asked.id).outcome is None


def test_a_measured_trial_is_told_though_the_database_was_away(inner: InnerLoop, tmp_path, monkeypatch) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pp"))  # short: a socket's path has 107 characters
    try:
        search = Search(open_store(embedded.start(folder), worker_name()), replace(inner.settings, study="outage", out=str(tmp_path), keep="none"))
        search.register(1, inner.identity)
        asked = search.ask()
        real, away = inner.scores, threading.Event()

        def scores(measured):
            """The real ones, while the server restarts."""
            if not away.is_set():
                away.set()
                embedded.stop(folder)
                threading.Timer(2.0, embedded.start, (folder,)).start()
            return real(measured)

        monkeypatch.setattr(inner, "scores", scores)
        assert ended(run_trial(search, inner, asked)) == ([2], "finished") and away.is_set()
        assert leases.counts(search.store, search.id).finished == 1 and stored(search, asked).keys() == set(RUNGS)
        search.store.close()
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def tensors() -> int:
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


def test_after_a_trial_no_tensor_and_no_process_is_left(search: Search, inner: InnerLoop) -> None:
    """Nor until garbage is next collected: on a GPU the next trial would not have that memory."""
    ended(run_trial(search, inner, search.ask()))  # whatever is loaded once is loaded now
    gc.collect()
    before, processes = tensors(), psutil.Process().children(recursive=True)
    gc.disable()
    try:
        ended(run_trial(search, inner, search.ask()))
        assert tensors() == before
        broken = search.ask()
        assert ended(run_trial(search, inner, replace(broken, candidate=replace(broken.candidate, learning_rate=1e9))))[1] == "failed"
        assert tensors() == before
        given_back = run_trial(search, inner, search.ask())
        next(given_back)
        given_back.close()
        assert tensors() == before
    finally:
        gc.enable()
    assert psutil.Process().children(recursive=True) == processes


@pytest.mark.parametrize(("error", "own"), [(TrainingDiverged(2, float("nan"), 1.0), True), (BadSelection("x"), True), (BadArray("x"), True), (BadValue("x"), True),
                                            (torch.OutOfMemoryError("x"), True), (ZeroDivisionError(), True), (AssertionError(), True),
                                            (OSError(errno.ENOSPC, "full"), False), (ConnectionResetError(), False), (MemoryError(), False),
                                            (StorageUnreachable("away"), False), (RuntimeError("CUDA error: unspecified launch failure"), False)])
def test_who_is_to_blame(error: Exception, own: bool) -> None:
    assert is_own_cause(error) == own


def test_a_reason_is_one_line_of_bearable_length() -> None:
    assert reason_of(ValueError("first\nsecond")) == "ValueError: first" and reason_of(KeyError()) == "KeyError: no message"
    assert len(reason_of(ValueError("x" * 9000))) == 500
