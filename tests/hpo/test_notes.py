"""Notes of trials: the grid of generated pictures, the text, and that writing one twice leaves one picture."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import finished_study
import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard._note import get_note
from PIL import Image

from hpo import notes
from hpo.study import Asked, Search
from metrics.scores import SCORES
from storage import trials
from storage.embedded import HOME_VARIABLE
from storage.errors import LeaseLost


@pytest.fixture(scope="module")
def database() -> str:
    return finished_study.new_database()


@pytest.fixture
def search(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    """A study of its own, and an artifact folder of its own."""
    made = finished_study.begin(database, tmp_path.name, 3)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    yield made
    made.store.close()


def trial_of(search: Search, asked: Asked) -> optuna.trial.Trial:
    return optuna.trial.Trial(search.study, asked.id)


def note_of(search: Search, asked: Asked) -> str:
    return get_note(trial_of(search, asked))


def test_the_grid_shows_every_picture_once_in_reading_order() -> None:
    pictures = np.stack([np.full((16, 16), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = np.asarray(notes.grid(pictures, columns=2, rows=4))
    side = notes.LEAST_SIDE
    assert sheet.shape == (3 * side, 2 * side)
    assert [sheet[y * side + 5, x * side + 5] for y in range(3) for x in range(2)] == [10, 20, 30, 40, 50, 0]


@pytest.mark.parametrize(("resolution", "shown"), [(64, 96), (128, 128), (512, 192)])
def test_small_pictures_are_enlarged_and_large_ones_made_smaller(resolution: int, shown: int) -> None:
    assert notes.grid(np.zeros((30, resolution, resolution), np.uint8)).size == (8 * shown, 3 * shown)


@pytest.mark.parametrize(("height", "width", "shown"), [(48, 72, (96, 64)), (72, 48, (64, 96)), (512, 448, (168, 192)), (120, 80, (80, 120)), (8, 2000, (192, 1))])
def test_pictures_that_are_not_square_keep_their_shape(height: int, width: int, shown: tuple[int, int]) -> None:
    pictures = np.stack([np.full((height, width), value, np.uint8) for value in (10, 20, 30)])
    pictures[0, :, width // 2 :] = 200
    sheet = notes.grid(pictures, columns=2, rows=4)
    assert sheet.size == (2 * shown[0], 2 * shown[1])
    tiles = np.asarray(sheet)
    assert tiles[shown[1] - 1, shown[0]] == 20 and tiles[shown[1], 0] == 30 and tiles[-1, -1] == 0
    assert shown[0] < 2 or (tiles[0, 0] == 10 and tiles[0, shown[0] - 1] == 200)


def test_a_note_has_words_every_score_with_its_interval_and_the_picture(search: Search) -> None:
    asked = finished_study.ask(search)
    notes.write(search, asked, finished_study.result(0.5, 0.125))
    note = note_of(search, asked)
    assert asked.candidate.words in note and "1,234 trainable parameters (5.000% of the U-Net), 2.50 s (training 1.00), training loss 0.5000" in note
    assert "| fd | 0.5 | 0.4 … 0.6 |" in note and "| copy_excess | 0.125 | 0.025 … 0.225 |" in note
    assert all(f"| {name} |" in note for name in SCORES)
    (artifact,) = get_all_artifact_meta(trial_of(search, asked))
    assert f"(/artifacts/{search.id}/{asked.id}/{artifact.artifact_id})" in note and artifact.mimetype == "image/png"
    with Image.open(notes.artifact_folder() / artifact.artifact_id) as picture:
        assert picture.size == (768, 288)
    assert [file.name for file in notes.artifact_folder().iterdir()] == [artifact.artifact_id], "nothing else is left behind"


def test_writing_twice_leaves_one_picture(search: Search) -> None:
    asked = finished_study.ask(search)
    for _ in range(2):
        notes.write(search, asked, finished_study.result(0.5, 0.125))
    assert len(get_all_artifact_meta(trial_of(search, asked))) == 1
    assert note_of(search, asked).count("![") == 1


def test_a_picture_that_a_killed_worker_did_not_finish_is_written_anew(search: Search) -> None:
    asked = finished_study.ask(search)
    notes.write(search, asked, finished_study.result(0.5, 0.125))
    (picture,) = notes.artifact_folder().iterdir()
    whole = picture.read_bytes()
    picture.write_bytes(whole[:100])
    notes.write(search, asked, finished_study.result(0.5, 0.125))
    assert list(notes.artifact_folder().iterdir()) == [picture] and len(get_all_artifact_meta(trial_of(search, asked))) == 1
    assert picture.read_bytes() == whole


def test_a_picture_is_noted_before_anything_of_it_is_written(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, opened = finished_study.ask(search), []
    actual = io.open

    def watched(file: object, *given: object, **named: object) -> object:
        if Path(str(file)).parent == notes.artifact_folder():
            opened.append(Path(str(file)).name in {each.artifact_id for each in get_all_artifact_meta(trial_of(search, asked))})
        return actual(file, *given, **named)

    monkeypatch.setattr(io, "open", watched)
    monkeypatch.setattr(builtins, "open", watched)
    notes.write(search, asked, finished_study.result(0.5, 0.125))
    assert opened == [True]


def test_who_has_lost_the_trial_writes_no_note(search: Search, database: str) -> None:
    asked = finished_study.ask(search)
    trials.leave(search.store, asked.id)
    with pytest.raises(LeaseLost):
        notes.write(search, asked, finished_study.result(0.5, 0.125))
    assert note_of(search, asked) == "" and get_all_artifact_meta(trial_of(search, asked)) == [] and not notes.artifact_folder().exists()


def test_a_note_costs_no_more_where_there_are_many(search: Search) -> None:
    read = []
    for engine in (search.store.engine, search.store.optuna.engine):
        sqlalchemy.event.listen(engine, "after_cursor_execute", lambda _connection, cursor, *_: read.append(cursor.rowcount))
    first, second = finished_study.ask(search), finished_study.ask(search)
    notes.write(search, first, finished_study.result(0.5, 0.125))
    read.clear()
    notes.write(search, second, finished_study.result(0.5, 0.125))
    few = list(read)
    for number in range(50):
        search.study._storage.set_study_system_attr(search.id, f"dashboard:{number + 10_000}:note_ver", 1)
    third = finished_study.ask(search)
    read.clear()
    notes.write(search, third, finished_study.result(0.5, 0.125))
    assert read == few and len(read) <= 4


def test_each_rung_has_a_picture_and_the_note_is_the_last_one_s(search: Search) -> None:
    asked = finished_study.ask(search)
    for steps in asked.rungs:
        notes.write(search, asked, replace(finished_study.result(0.5, 0.125), steps=steps))
    assert {known.filename for known in get_all_artifact_meta(trial_of(search, asked))} == {f"generated at {steps} steps.png" for steps in asked.rungs}
    assert asked.at(asked.rungs[-1]).words in note_of(search, asked) and note_of(search, asked).count("![") == 1


def test_a_disk_that_refuses_the_picture_costs_only_the_picture(search: Search) -> None:
    notes.artifact_folder().parent.mkdir(parents=True)
    notes.artifact_folder().write_text("a file where the folder should be")
    asked = finished_study.ask(search)
    notes.write(search, asked, finished_study.result(0.5, 0.125))
    note = note_of(search, asked)
    assert "could not be written" in note and "| fd | 0.5 |" in note and "![" not in note


def test_objectives_have_their_names_in_plots(search: Search) -> None:
    notes.write(search, finished_study.ask(search), finished_study.result(0.5, 0.125))
    assert optuna.load_study(study_name=search.settings.study, storage=search.store.optuna).metric_names == ["fd", "copy_excess"]

