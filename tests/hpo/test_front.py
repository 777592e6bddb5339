"""`python -m hpo.front`: the same rows and columns as the view, in three formats, and one line for what is wrong."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import finished_study
import psycopg2
import pytest

from hpo import front
from hpo.command import one_line_errors
from hpo.table import COLUMNS

NAME = "it's a \"study\" 🩻"
POINTS = [(2.0, 0.9), (1.0, 0.5), (3.0, 0.1), (3.0, 0.6)]


@pytest.fixture(scope="module")
def database() -> str:
    """A store with two studies, the newer of them without a finished trial."""
    url = finished_study.new_database()
    search = finished_study.begin(url, NAME, len(POINTS))
    finished_study.finish(search, POINTS)
    search.store.close()
    finished_study.begin(url, "newest", 2).store.close()
    return url


def run(*arguments: str) -> int:
    return one_line_errors(lambda: front.main(list(arguments)))


def test_json_is_a_list_of_objects_with_the_views_keys(database: str, capsys: pytest.CaptureFixture) -> None:
    assert run("--study", NAME, "--storage", database, "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(each["trial"], each["fd"], each["copy_excess"]) for each in rows] == [(1, 1.0, 0.5), (2, 3.0, 0.1)]
    with psycopg2.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM pareto_front LIMIT 0")
        assert [list(each) for each in rows] == [[column.name for column in cursor.description]] * 2 == [list(COLUMNS)] * 2
    assert rows[0]["study"] == NAME and rows[0]["trainable"] > 0 and rows[0]["repeats"] == 1 and rows[0]["fd_high"] == pytest.approx(1.1)


def test_csv_has_the_same_rows(database: str, capsys: pytest.CaptureFixture) -> None:
    assert run("--study", NAME, "--storage", database, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(each["study"], each["trial"], float(each["copy_excess_low"])) for each in rows] == [(NAME, "1", 0.4), (NAME, "2", 0.0)]


def test_the_table_is_for_people(database: str, capsys: pytest.CaptureFixture) -> None:
    assert run("--study", NAME, "--storage", database) == 0
    shown = capsys.readouterr().out
    assert run("--study", NAME, "--storage", database, "--format", "json") == 0
    trainable = json.loads(capsys.readouterr().out)[0]["trainable"]
    assert "Pareto front" in shown and f"{trainable:,}" in shown and "[0.4, 0.6]" in shown


def test_without_a_name_it_is_the_newest_study(database: str, capsys: pytest.CaptureFixture) -> None:
    assert run("--storage", database, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("--storage", database) == 0
    assert capsys.readouterr().out == "no rung of study 'newest' is on a front: none is evaluated yet, or none meets its constraints\n"


@pytest.mark.parametrize(("arguments", "said"), [
    (("--study", "nope"), "'newest'"), (("--study", ""), "'newest'"), (("--format", "jsn"), "take json"), (("--stud", "a"), "--study")])
def test_what_is_wrong_is_one_line(database: str, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], said: str) -> None:
    assert run("--storage", database, *arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and said in error


def test_a_store_without_studies_says_how_to_begin(capsys: pytest.CaptureFixture) -> None:
    assert run("--storage", finished_study.new_database()) == 2
    assert "python -m hpo.launch" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(database: str) -> None:
    command = [sys.executable, "-m", "hpo.front", "--study", NAME, "--storage", database, "--format", "csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 0)
