"""Which files stay on disk: front, all or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_study import scores

from hpo import keeping
from hpo.settings import Settings
from hpo.study import Search
from storage import results

POINTS = [(3.0, 3.0), (1.0, 2.0), (2.0, 1.0), (2.0, 2.0)]  # the first is dominated by all, the last by the two before it


@pytest.fixture
def tried(searching: Callable[..., Search], tmp_path) -> Callable[[str], tuple[Search, list[Path | None]]]:
    """Finishes four trials, one fails, one still runs; each with a file. Gives the search and the six paths."""
    def make(keep: str) -> tuple[Search, list[Path | None]]:
        search = searching(Settings(study=f"{keep}-{tmp_path.name}", steps=40, out=str(tmp_path), keep=keep), trials=9)
        paths = []
        for number in range(len(POINTS) + 2):
            asked = search.ask()
            paths.append(keeping.path_for(search, asked))
            if paths[-1] is not None:
                keeping.record(search, asked, paths[-1])
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                paths[-1].write_bytes(b"tensors")
            if number < len(POINTS):
                search.finish(asked, scores(*POINTS[number]), 1.0)
            elif number == len(POINTS):
                search.fail(asked, "why", own_cause=True)
        keeping.tidy(search)
        return search, paths

    return make


def test_front_keeps_what_nothing_dominates_and_what_still_runs(tried: Callable) -> None:
    search, paths = tried("front")
    assert [path.exists() for path in paths] == [False, True, True, False, False, True]
    assert list(results.artifacts(search.store, search.id, keeping.WEIGHTS)) == [1, 2, 5], "and nothing else is said to be there"


def test_all_keeps_every_finished_trial(tried: Callable) -> None:
    _, paths = tried("all")
    assert [path.exists() for path in paths] == [True] * 4 + [False, True]


def test_none_gives_no_file_at_all(tried: Callable) -> None:
    search, paths = tried("none")
    assert paths == [None] * 6 and not keeping.folder(search).exists()


def test_a_later_point_that_dominates_has_the_earlier_files_deleted(tried: Callable) -> None:
    search, paths = tried("front")
    search.finish(search.ask(), scores(0.5, 0.5), 1.0)
    keeping.tidy(search)
    assert [path.exists() for path in paths] == [False] * 5 + [True]


def test_files_of_another_machine_are_left_to_it(tried: Callable) -> None:
    search, paths = tried("front")
    """Whether or not there is such a folder here."""
    for path in paths:
        path.unlink(missing_ok=True)
    search.finish(search.ask(), scores(0.5, 0.5), 1.0)
    keeping.tidy(search)
    assert list(results.artifacts(search.store, search.id, keeping.WEIGHTS)) == [1, 2, 5]
    paths[0].parent.rmdir()
    keeping.tidy(search)
    assert list(results.artifacts(search.store, search.id, keeping.WEIGHTS)) == [1, 2, 5]


def test_a_trial_that_failed_leaves_neither_file_nor_note(tried: Callable) -> None:
    search, paths = tried("all")
    keeping.drop(search, paths[5]), keeping.drop(search, None)
    assert 5 not in results.artifacts(search.store, search.id, keeping.WEIGHTS) and not paths[5].exists()


def test_a_file_that_cannot_be_deleted_ends_no_search(tried: Callable, caplog) -> None:
    search, paths = tried("front")
    paths[1].unlink()
    paths[1].mkdir()
    search.finish(search.ask(), scores(0.5, 0.5), 1.0)
    keeping.tidy(search)
    assert "cannot be deleted" in caplog.text and not paths[2].exists()


def test_discard_takes_a_half_written_file_too(tmp_path) -> None:
    path = tmp_path / "trial.safetensors"
    for each in (path, path.with_suffix(".unfinished")):
        each.write_bytes(b"")
    keeping.discard(path), keeping.discard(path), keeping.discard(None)
    assert not list(tmp_path.iterdir())


def test_the_need_for_disk_is_that_of_the_whole_unet_in_fp32(model, tmp_path) -> None:
    """803,204 elements; a second copy of the weights, in half precision, is not counted too."""
    folder = shutil.copytree(model / "base", tmp_path / "base")
    (weights,) = (folder / "unet").glob("*.safetensors")
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert keeping.disk_need(folder, "all", 2000) == "disk: kept tensors (--keep all) take at most 0.003 GB a point, 6.43 GB for 2000 points"
    assert "0.06 GB for 20 points" in keeping.disk_need(folder, "front", 200) and "0.01 GB for 2 points" in keeping.disk_need(folder, "front", 2)
    assert "no tensors" in keeping.disk_need(folder, "none", 200)
