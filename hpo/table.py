"""The front in rows: as a table for people, as JSON and CSV for programs, and as candidates to be run again. Rows come from the view pareto_front."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpo.objectives import DEFAULT_MEMORIZATION, DEFAULT_QUALITY, objective
from metrics.scores import SCORES

Row = dict[str, Any]  # of the view pareto_front

TITLE = "Pareto front (95 % intervals from patients)"
CANDIDATE_WIDTH = 30  # characters that a candidate's words need at least, to be two or three lines
FORMATS = ("table", "json", "csv", "candidates")
ENDS = ("low", "high")
COLUMNS = ("study", "trial", "candidate", "method", "steps", "trainable", "trainable_share", "joint_reward", "seconds",
           *(name + end for name in SCORES for end in ("", "_low", "_high")), "repeats")


def as_json(rows: list[Row]) -> str:
    return json.dumps([{column: row[column] for column in COLUMNS} for row in rows], indent=2, ensure_ascii=False)


def as_candidates(candidates: Iterable[Mapping[str, Any]]) -> str:
    """A candidate a line, as --enqueue reads them."""
    return "".join(json.dumps(candidate, ensure_ascii=False) + "\n" for candidate in candidates)


def as_csv(rows: list[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def estimate(row: Row, name: str, between: str = " ") -> str:
    """A score and its interval, "0.213 [0.19, 0.24]"; `between` is a line's end in narrow columns."""
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return "–"
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g}{between}[{low:.2g}, {high:.2g}]"


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def share(row: Row) -> str:
    return "–" if row["trainable_share"] is None else f"{row['trainable_share']:.2%}".replace("%", " %")


def ordered(rows: list[Row], objectives: tuple[str, ...]) -> list[Row]:
    """The best of the first objective first."""
    first = objective(objectives[0])
    return sorted(rows, key=lambda row: (row[first.name] is None, row[first.name] is not None and first.oriented(row[first.name])))


def scores_shown(objectives: tuple[str, ...]) -> list[str]:
    """The scores that a point is shown with: the objectives, or what the joint reward is made of."""
    return [name for name in objectives if name in SCORES] or [DEFAULT_QUALITY, DEFAULT_MEMORIZATION]


def others(objectives: tuple[str, ...]) -> list[str]:
    """The scores that are not optimised, which are shown as bare values where there is room."""
    return [name for name in SCORES if name not in scores_shown(objectives)]


def bare(row: Row, name: str) -> str:
    return number(row[name], ".3g")


def as_table(rows: list[Row], objectives: tuple[str, ...], with_others: bool = False) -> Table:
    """One row a point, two lines high. It needs `table_width` columns."""
    shown, more = scores_shown(objectives), others(objectives) if with_others else []
    table = Table(title=TITLE, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("candidate", overflow="fold", min_width=CANDIDATE_WIDTH)
    for name in ("trainable", *shown, *more, "reward", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in ordered(rows, objectives):
        table.add_row(str(row["trial"]), Text(row["candidate"] or "–"), f"{number(row['trainable'], ',')}\n{share(row)}",
                      *(Text(estimate(row, name, "\n")) for name in shown), *(bare(row, name) for name in more),
                      number(row["joint_reward"], ".3f"), number(row["seconds"], ".0f"))
    return table


def table_width(rows: list[Row], objectives: tuple[str, ...], with_others: bool = False) -> int:
    """The columns that `as_table` needs to be readable."""
    def widest(title: str, cells: list[str]) -> int:
        return max(len(line) for cell in (title, *cells) for line in cell.splitlines())

    shown, more = scores_shown(objectives), others(objectives) if with_others else []
    columns = [len("trial"), CANDIDATE_WIDTH, widest("trainable", [number(row["trainable"], ",") for row in rows]), len("reward"),
               widest("s", [number(row["seconds"], ".0f") for row in rows])]
    columns += [widest(name, [estimate(row, name, "\n") for row in rows]) for name in shown]
    columns += [widest(name, [bare(row, name) for row in rows]) for name in more]
    return sum(columns) + 2 * len(columns)


def as_lines(rows: list[Row], objectives: tuple[str, ...]) -> str:
    """The same for narrow screens: a few lines a point."""
    blocks = [TITLE]
    for row in ordered(rows, objectives):
        scores = ", ".join(f"{name} {estimate(row, name)}" for name in scores_shown(objectives))
        rest = ", ".join(f"{name} {bare(row, name)}" for name in others(objectives))
        blocks.append(f"trial {row['trial']}: {row['candidate']}\n  {scores}\n  {rest}\n  {number(row['trainable'], ',')} trainable ({share(row)}), "
                      f"reward {number(row['joint_reward'], '.3f')}, {number(row['seconds'], '.0f')} s")
    return "\n".join(blocks)


def render(rows: list[Row], form: str, objectives: tuple[str, ...], console: Console) -> None:
    """Print the rows as a table, json or csv."""
    if form == "json":
        print(as_json(rows))
    elif form == "csv":
        print(as_csv(rows), end="")
    else:
        with_others = console.width >= table_width(rows, objectives, with_others=True)
        if console.width >= table_width(rows, objectives):
            console.print(as_table(rows, objectives, with_others))
        else:
            console.print(as_lines(rows, objectives), markup=False, highlight=False)
