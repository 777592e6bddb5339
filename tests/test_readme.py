"""README against the code: its commands exist, its flags are known, and every score and column is explained."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from commands import FLAG, blocks, check_shell_lines, help_of, modules, unknown_flags

import hpo
from hpo.launch import Found
from hpo.settings import Settings, read_toml
from hpo.table import COLUMNS
from metrics.scores import SCORES
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)
OTHERS = {"--build", "--scale", "--dist"}  # of docker compose and pytest


def tables() -> dict[str, list[str]]:
    """Rows of all tables: the first cell -> the others."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("module", modules(README))
def test_every_command_exists_and_answers_help(module: str) -> None:
    assert "usage" in help_of(module).lower()


def test_the_commands_that_users_need_are_there() -> None:
    assert {"hpo.launch", "hpo.worker", "hpo.front", "hpo.dashboard", "storage"} <= set(modules(README))


def test_flags_in_commands_are_those_of_the_command() -> None:
    assert check_shell_lines(README) >= 4


def test_every_flag_in_the_text_is_known_to_one_of_the_commands() -> None:
    assert not unknown_flags(README, OTHERS)


def test_every_flag_of_launch_is_in_the_table_of_flags() -> None:
    table = " ".join(cell for row in tables().values() for cell in row)
    missing = {f"--{name.replace('_', '-')}" for name in Settings().to_json()} - set(FLAG.findall(table))
    assert not missing
    assert "--config" in README


def test_every_score_is_explained_with_unit_and_direction() -> None:
    rows = tables()
    for name, score in SCORES.items():
        _, unit, better, null = rows[f"`{name}`"]
        assert unit == score.unit and better == {"minimize": "lower", "maximize": "higher"}[score.direction] and null


def test_every_method_and_mitigation_has_a_line_with_its_paper() -> None:
    rows = {name: words for cell, words in tables().items() for name in re.findall(r"`([\w-]+)`", cell)}
    for name, each in {**METHODS, **MITIGATIONS}.items():
        number = re.search(r"\d{4}\.\d{5}", each.paper)
        assert (number[0] if number else each.paper.split()[0]) in rows[name][-1], f"{name}: {each.paper}"


def test_every_column_of_the_view_is_explained() -> None:
    first_cells = set(re.findall(r"`(\w+)`", " ".join(tables())))
    for column in COLUMNS:
        score, _, end = column.rpartition("_")
        if end in ("low", "high") and score in SCORES:
            assert f"s_{end}" in first_cells
        else:
            assert column in first_cells, column


@pytest.mark.parametrize("mark", ["main command", "test command"])
def test_the_two_commands_are_where_ci_looks_for_them(mark: str) -> None:
    found = re.search(rf"<!-- {mark} -->\n```bash\n(.*)\n```", README)
    assert found
    steps = [shlex.split(step) for step in found[1].split("&&")]
    assert steps[0] == ["python3", "-m", "venv", ".venv"] and len(steps) == 3
    assert steps[1][:3] == [".venv/bin/pip", "install", "-q"] and steps[2][0] == ".venv/bin/python"


def test_the_toml_example_can_be_read(tmp_path: Path) -> None:
    (example,) = [body for language, body in BLOCKS if language == "toml"]
    (tmp_path / "search.toml").write_text(example)
    settings = Settings.from_json(read_toml(tmp_path / "search.toml")).check()
    assert (settings.trials, settings.study, settings.batch_size) == (200, "cxr", 16)


def test_the_python_example_has_three_lines_and_names_that_exist() -> None:
    (example,) = [body for language, body in BLOCKS if language == "python"]
    lines = ast.parse(example).body
    assert len(lines) == 3
    assert all(hasattr(hpo, each.name) for each in lines[0].names)
    (call,) = [each for each in ast.walk(lines[1]) if isinstance(each, ast.Call) and each.func.id == "Settings"]
    Settings(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}).check()
    used = {each.attr for each in ast.walk(lines[2]) if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "found"}
    assert used and used <= {field.name for field in fields(Found)}


def test_files_that_it_links_to_are_there(repository: Path) -> None:
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target}
    missing = {target for target in linked if not (repository / target).exists()}
    assert linked and not missing
