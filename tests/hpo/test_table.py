"""The front in rows: readable from 72 to 160 columns, whole numbers and names intact."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from hpo.table import COLUMNS, render
from metrics.scores import SCORES

WORDS = ["full fine-tuning on everything of all blocks, lr 2e-3, 200 steps",
         "LoRA rank 8 on self-attention, cross-attention and feed-forward of down and mid blocks, lr 3e-4, 150 steps", "norm tuning on norm of [up] blocks"]


def row(trial: int, words: str, fd: float, reward: float | None = 0.5, trainable: int | None = 803_204) -> dict:
    measured = {name + end: value for name in SCORES for end, value in (("", 0.0123), ("_low", -0.0346), ("_high", 0.0456))}
    return {"study": "s", "trial": trial, "candidate": words, "method": "full", "steps": 200, "trainable": trainable,
            "trainable_share": None if trainable is None else trainable / 859_520_964, "joint_reward": reward, "seconds": 31.4, **measured, "fd": fd, "repeats": 1}


ROWS = [row(3, WORDS[0], 0.3), row(12, WORDS[1], 0.1), row(101, WORDS[2], 0.2, None, None)]


def printed(width: int, objectives: tuple[str, ...] = ("fd", "copy_excess"), rows: list[dict] = ROWS) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    render(rows, "table", objectives, console)
    return console.export_text()


@pytest.mark.parametrize("width", [72, 80, 100, 120, 160, 250])
def test_nothing_is_cut_and_nothing_is_wider_than_the_screen(width: int) -> None:
    shown = printed(width)
    assert max(len(line) for line in shown.splitlines()) <= width and "…" not in shown
    for text in ("803,204", "0.09 %", "[-0.035, 0.046]", "0.500", "31", "101", "0.1", "0.0123"):
        assert text in shown, text
    words = " ".join(shown.split())
    assert all(word in words for text in WORDS for word in text.split())


@pytest.mark.parametrize("width", [72, 100, 160])
def test_the_best_of_the_first_objective_comes_first(width: int) -> None:
    shown = printed(width)
    assert shown.index("LoRA") < shown.index("norm tuning") < shown.index("full fine-tuning")


def test_the_best_is_the_largest_where_more_is_better() -> None:
    rows = [{**row(i, words, 0.1), "amd_train": value} for i, (words, value) in enumerate(zip(WORDS, (0.1, 0.3, 0.2)))]
    shown = printed(250, ("amd_train", "fd"), rows)
    assert shown.index("LoRA") < shown.index("norm tuning") < shown.index("full fine-tuning")


def test_a_joint_reward_is_shown_with_what_it_is_made_of() -> None:
    rows = [row(0, WORDS[0], 0.3, 0.1), row(1, WORDS[1], 0.1, 0.4)]
    shown = printed(120, ("joint_reward",), rows)
    assert shown.index("LoRA") < shown.index("full") and "fd" in shown and "copy_excess" in shown and "0.400" in shown


def test_other_scores_stand_beside_where_there_is_room() -> None:
    assert all(name in printed(160) for name in SCORES) and all(name in printed(80) for name in SCORES)


def test_many_objectives_become_lines() -> None:
    assert "trial 12: LoRA rank 8" in printed(100, ("fd", "kid", "loss_gap", "copy_excess", "amd_twin"))


def test_an_unmeasured_score_is_a_dash() -> None:
    bare = {**row(0, WORDS[0], 0.3), "copy_excess": None, "copy_excess_low": None, "copy_excess_high": None}
    assert "–" in printed(100, rows=[bare])


def test_json_and_csv_have_the_views_columns(capsys) -> None:
    render(ROWS, "json", ("fd",), Console())
    assert [list(each) for each in json.loads(capsys.readouterr().out)] == [list(COLUMNS)] * 3
    render(ROWS, "csv", ("fd",), Console())
    assert capsys.readouterr().out.splitlines()[0] == ",".join(COLUMNS)
