"""Which files stay on disk: front, all or none, rung by rung; and training states."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_study import new_database, scores

from benchmarks.faults_counts import front_hashes
from hpo import keeping
from hpo.agenda import Entry
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from hpo.study import Asked, Search
from metrics.estimate import Estimate
from metrics.scores import Scores
from storage import results, trials
from storage.errors import NotNow
from storage.store import open_store, worker_name
from trainers.checkpoint import UNFINISHED

# What trials come to at their rungs of 20 and 40 steps: the first is dominated by all, the last by the two before it, at both.
POINTS = [(3.0, 3.0), (1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]
WORSE = 0.5  # at 20 steps, in both
METHODS = ("full", "attention", "norm", "bias", "lora", "svdiff")


def note(search: Search, asked: Asked, steps: int) -> Path | None:
    """As if the tensors of that rung had been written."""
    path = keeping.path_for(search, asked, steps)
    if path is not None:
        results.record_artifact(search.store, asked.id, keeping.WEIGHTS, str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"tensors")
    return path


def note_state(search: Search, asked: Asked) -> Path:
    keeping.note_state(search, asked)
    state = keeping.state_path(search, asked)
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_bytes(b"state")
    return state


def reach(search: Search, asked: Asked, steps: int, fd: float, copy_excess: float) -> Path | None:
    path = note(search, asked, steps)
    search.report(asked, steps, scores(fd, copy_excess), 1234, 1.0, None)
    return path


def begin(search: Search, method: str) -> Asked:
    return search.begin(Entry(reference_candidate(method, 40, 1.0)))


@pytest.fixture
def tried(searching: Callable[..., Search], tmp_path) -> Callable[[str], tuple[Search, list[tuple[Path | None, Path | None]], list[Path]]]:
    """Four trials finish, one fails after its first rung, one is still before its own. Gives the search, the files of both rungs of each, and the states."""
    def make(keep: str):
        search = searching(Settings(study=f"{keep}-{tmp_path.name}", steps=40, rungs=2, reduction=2, pruner="none", out=str(tmp_path), keep=keep), trials=9)
        paths, states = [], []
        for method, point in zip(METHODS, [*POINTS, (9.0, 9.0), None]):
            asked = begin(search, method)
            states.append(note_state(search, asked))
            if point is None:
                paths.append((note(search, asked, 20), None))
                continue
            first = reach(search, asked, 20, point[0] + WORSE, point[1] + WORSE)
            if method == "lora":
                paths.append((first, note(search, asked, 40)))
                search.fail(asked, "why", own_cause=True)
            else:
                paths.append((first, reach(search, asked, 40, *point)))
                search.finish(asked)
        keeping.tidy(search)
        return search, paths, states

    return make


def there(paths: list[tuple[Path | None, Path | None]]) -> list[tuple[bool, bool]]:
    return [tuple(path is not None and path.exists() for path in pair) for pair in paths]


def test_front_keeps_what_nothing_dominates_and_what_still_runs(tried: Callable) -> None:
    search, paths, states = tried("front")
    assert there(paths) == [(False, False), (False, True), (False, True), (False, False), (False, False), (True, False)]
    noted = results.artifacts(search.store, search.id, keeping.WEIGHTS)
    assert noted == {1: [str(paths[1][1])], 2: [str(paths[2][1])], 5: [str(paths[5][0])]}, "and nothing else is said to be there"
    assert [state.exists() for state in states] == [False, True, True, False, False, True]
    assert list(results.artifacts(search.store, search.id, keeping.STATE)) == [1, 2, 5]


def test_all_keeps_every_evaluated_rung(tried: Callable) -> None:
    _, paths, states = tried("all")
    assert there(paths) == [(True, True)] * 4 + [(True, False), (True, False)], "what a failed trial never measured is of no use"
    assert [state.exists() for state in states] == [True] * 6


def test_none_keeps_the_states_of_running_trials_only(tried: Callable) -> None:
    search, paths, states = tried("none")
    assert there(paths) == [(False, False)] * 6 and not keeping.folder(search).exists()
    assert [state.exists() for state in states] == [False] * 5 + [True]


def test_none_clears_the_state_of_a_trial_that_ended_without_a_worker(searching: Callable[..., Search], query: Callable, tmp_path) -> None:
    """Its third lost lease is noted by whoever looks next."""
    search = searching(Settings(study=f"lost-{tmp_path.name}", steps=40, out=str(tmp_path), keep="none"), trials=9)
    asked = search.ask()
    reach(search, asked, asked.rungs[0], 1.0, 1.0)
    state = note_state(search, asked)
    for _ in range(3):
        trials.leave(search.store, asked.id, "it crashed")
        if query("SELECT 1 FROM trials WHERE trial_id = :t AND state = 'WAITING'", t=asked.id):
            assert search.ask().id == asked.id
    keeping.tidy(search)
    assert not state.exists() and not results.artifacts(search.store, search.id, keeping.STATE)


def test_rungs_of_running_and_of_stopped_trials_that_are_on_the_front_have_their_files(tried: Callable) -> None:
    search, paths, _ = tried("front")
    running = begin(search, "difffit")
    best = reach(search, running, 20, 0.5, 0.5)
    keeping.tidy(search)
    assert best.exists() and there(paths)[:5] == [(False, False)] * 5
    search.finish(running, stopped=True)
    keeping.tidy(search)
    assert best.exists(), "though its trial is PRUNED"
    assert [row["state"] for row in results.rungs(search.store, search.settings.study) if row["on_front"]] == ["PRUNED"]


def bare(search: Search) -> set[str]:
    """Hashes of the front's points of which no tensors are on disk."""
    there = {path.stem.rpartition("-")[2] for path in keeping.folder(search).glob("*.safetensors")}
    front = front_hashes(search)
    assert front
    return front - there


def finish(search: Search, asked: Asked, fd: float, copy_excess: float) -> None:
    reach(search, asked, asked.candidate.steps, fd, copy_excess)
    search.finish(asked)
    keeping.tidy(search)


@pytest.mark.parametrize("spoilt", [{"fd": 2.3, "copy_excess": 2.3}, {"fd": 1.9, "copy_excess": 1.9, "spoils": True}], ids=["worse", "infeasible"])
def test_a_point_that_returns_to_the_front_has_its_tensors(searching: Callable[..., Search], tmp_path, spoilt: dict) -> None:
    """A repeat takes the point that dominated it off the front: its mean gets worse, or it violates a measured bound."""
    search = searching(Settings(study=f"back-{tmp_path.name}", steps=40, rungs=2, reduction=2, pruner="none", out=str(tmp_path), repeats=3,
                                require="kid<=0.5"), trials=9)
    finish(search, begin(search, "full"), 2.0, 2.0)
    lucky = reference_candidate("bias", 40, 1.0)
    finish(search, search.begin(Entry(lucky)), 1.9, 1.9)
    assert not bare(search)
    asked = search.begin(Entry(lucky, repeat=1))
    note(search, asked, 40)
    measured = scores(spoilt["fd"], spoilt["copy_excess"])
    measured = Scores({**measured, "kid": Estimate(9.0, 8.9, 9.1)}) if spoilt.get("spoils") else measured
    search.report(asked, 40, measured, 1234, 1.0, None)
    search.finish(asked)
    keeping.tidy(search)
    assert [row["trial"] for row in results.front(search.store, search.settings.study)] == [0] and not bare(search)
    if spoilt.get("spoils"):  # for good
        with pytest.raises(NotNow):
            search.begin(Entry(lucky, repeat=2))
    else:
        finish(search, search.begin(Entry(lucky, repeat=2)), 0.1, 0.1)
    assert not bare(search)


def test_a_joint_reward_s_yardstick_that_is_interrupted_keeps_its_rung_s_tensors(searching: Callable[..., Search], tmp_path) -> None:
    search = searching(Settings(study=f"joint-{tmp_path.name}", steps=40, rungs=2, reduction=2, pruner="none", out=str(tmp_path),
                                objectives="joint_reward"), trials=9)
    yardstick = search.ask()
    early = reach(search, yardstick, 20, 1.0, 0.2)
    assert search.fail(yardstick, "ConnectionError", own_cause=False) == "left"
    keeping.tidy(search)
    assert early.exists()
    again = search.ask()
    assert again.id == yardstick.id
    finish(search, again, 3.0, 3.0)
    assert [row["steps"] for row in results.front(search.store, search.settings.study)] == [20] and not bare(search)


def test_files_of_another_machine_are_left_to_it(tried: Callable) -> None:
    """Whether or not there is such a folder here."""
    search, paths, _ = tried("front")
    for pair in paths:
        for path in pair:
            if path is not None:
                path.unlink(missing_ok=True)
    best = begin(search, "difffit")
    search.report(best, 40, scores(0.5, 0.5), 1234, 1.0, None)
    for _ in range(2):
        keeping.tidy(search)
        assert list(results.artifacts(search.store, search.id, keeping.WEIGHTS)) == [1, 2, 5]
        shutil.rmtree(keeping.folder(search), ignore_errors=True)


def test_a_file_that_cannot_be_deleted_ends_no_search(tried: Callable, caplog) -> None:
    search, paths, _ = tried("front")
    paths[1][1].unlink()
    paths[1][1].mkdir()
    search.report(begin(search, "difffit"), 40, scores(0.5, 0.5), 1234, 1.0, None)
    keeping.tidy(search)
    assert "cannot be deleted" in caplog.text and not paths[2][1].exists()


def test_discard_takes_half_written_files_too_and_no_other(tmp_path) -> None:
    path, other = tmp_path / "trial-1.safetensors", tmp_path / "trial-11.safetensors"
    for each in (path, path.with_name(f"{path.name}.a1.unfinished"), path.with_name(f"{path.name}.b2.unfinished"), other):
        each.write_bytes(b"")
    keeping.discard(path), keeping.discard(path)
    assert list(tmp_path.iterdir()) == [other]


def test_noted_files_are_seen_where_they_are_if_only_half_written(tmp_path) -> None:
    whole, half, gone = tmp_path / "trial-1.safetensors", tmp_path / "trial-2.safetensors", tmp_path / "trial-3.safetensors"
    whole.touch()
    half.with_name(f"{half.name}.a1{UNFINISHED}").touch()
    assert keeping.seen([whole, half, gone, tmp_path / "elsewhere" / "trial-1.safetensors"]) == [whole, half]


def test_a_folder_that_cannot_be_read_is_said_and_one_that_is_not_there_is_not(tmp_path, caplog) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert keeping.seen([tmp_path / "nowhere" / "trial-1.safetensors"]) == [] and not caplog.text
    assert keeping.seen([loop / "trial-1.safetensors", loop / "trial-2.safetensors"]) == []
    assert caplog.text.count(f"{loop} cannot be read, so nothing is deleted there") == 1


def test_studies_that_share_a_folder_of_states_share_no_file(searching: Callable[..., Search], tmp_path) -> None:
    """A state of other data would be deleted by who finds it: it is of no use to him."""
    searches = [searching(Settings(study=f"{name}-{tmp_path.name}", steps=40, checkpoints=str(tmp_path / "shared")), trials=2) for name in "ab"]
    paths = {keeping.state_path(search, search.ask()) for search in searches}
    assert len(paths) == 2 and all(path.is_relative_to(tmp_path / "shared") for path in paths)


def test_a_study_of_the_same_name_in_another_store_leaves_the_tensors_of_the_first_alone(tmp_path) -> None:
    """Its trials have the same numbers and hashes, and both are kept under one folder by default."""
    searches = []
    for train_images in (20, 30):
        search = Search(open_store(new_database(), worker_name()), Settings(study="same", steps=40, rungs=1, baselines=False, sampler="random", pruner="none",
                                                                            train_images=train_images, out=str(tmp_path)))
        search.register(3, {"model": "m", "encoder": "e", "data": "d"})
        searches.append(search)
    one, two = searches
    yardstick, again = one.ask(), two.ask()
    assert (yardstick.number, yardstick.candidate.hash) == (again.number, again.candidate.hash)
    states = [note_state(one, yardstick), note_state(two, again)]
    best = reach(one, yardstick, 40, 1.0, 1.0)
    one.finish(yardstick)
    keeping.tidy(one)
    finish(two, again, 2.0, 2.0)
    finish(two, two.ask(), 1.0, 1.0)
    assert best.exists() and results.artifacts(one.store, one.id, keeping.WEIGHTS) == {0: [str(best)]}
    assert [state.exists() for state in states] == [True, False]
    for search in searches:
        search.store.close()


def test_files_of_a_study_of_before_are_tidied_by_their_notes(searching: Callable[..., Search], tmp_path) -> None:
    """Their names had nothing of the study in them. A state of that name is not gone on from."""
    search = searching(Settings(study=f"before-{tmp_path.name}", steps=40, rungs=1, pruner="none", out=str(tmp_path)), trials=9)
    asked = begin(search, "full")
    old = []
    for kind, path in ((keeping.WEIGHTS, keeping.path_for(search, asked, 40)), (keeping.STATE, keeping.state_path(search, asked))):
        old.append(path.with_name(path.name.replace(f"-{search.token}", "")))
        keeping.note(search, asked, kind, old[-1])
        old[-1].parent.mkdir(parents=True, exist_ok=True)
        old[-1].touch()
    search.report(asked, 40, scores(2.0, 2.0), 1234, 1.0, None)
    search.finish(asked)
    keeping.tidy(search)
    assert all(path.exists() for path in old)
    finish(search, begin(search, "bias"), 1.0, 1.0)
    assert not any(path.exists() for path in old)


def test_the_need_for_disk_is_that_of_the_whole_unet_in_fp32(model, tmp_path) -> None:
    """803,204 elements; a second copy of the weights, in half precision, is not counted too."""
    folder = shutil.copytree(model / "base", tmp_path / "base")
    (weights,) = (folder / "unet").glob("*.safetensors")
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert keeping.disk_need(folder, "all", 2000) == "disk: kept tensors (--keep all) take at most 0.003 GB a point, 6.43 GB for 2000 points"
    assert "0.06 GB for 20 points" in keeping.disk_need(folder, "front", 200) and "0.01 GB for 2 points" in keeping.disk_need(folder, "front", 2)
    assert "no tensors" in keeping.disk_need(folder, "none", 200)
