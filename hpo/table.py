"""The front in rows: as a table for people, as JSON and CSV for programs. Rows come from the view pareto_front."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from metrics.scores import SCORES

FORMATS = ("table", "json", "csv")
ENDS = ("low", "high")
COLUMNS = ("study", "trial", "candidate", "method", "steps", "trainable", "trainable_share", "joint_reward", "seconds",
           *(name + end for name in SCORES for end in ("", "_low", "_high")))


def as_json(rows: list[dict[str, Any]]) -> str:
    return json.dumps([{column: row[column] for column in COLUMNS} for row in rows], indent=2, ensure_ascii=False)


def as_csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def estimate(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if value is None:
        return "–"
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def as_table(rows: list[dict[str, Any]], objectives: tuple[str, ...]) -> Table:
    """One row a point, the best quality first; objectives come before the other scores."""
    shown = [*(name for name in objectives if name in SCORES), *(name for name in SCORES if name not in objectives)]
    table = Table(title="Pareto front (95 % intervals from patients)", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("candidate", overflow="fold", min_width=28)
    table.add_column("trainable", justify="right")
    for name in shown:
        table.add_column(name, overflow="fold")
    table.add_column("reward", justify="right")
    table.add_column("s", justify="right")
    first = shown[0]
    for row in sorted(rows, key=lambda row: (row[first] is None, row[first])):
        table.add_row(str(row["trial"]), row["candidate"], f"{row['trainable'] or 0:,} ({number(row['trainable_share'], '.2%')})",
                      *(estimate(row, name) for name in shown), number(row["joint_reward"], ".3f"), number(row["seconds"], ".0f"))
    return table


def render(rows: list[dict[str, Any]], form: str, objectives: tuple[str, ...], console: Console) -> None:
    """Print the rows in one of FORMATS."""
    if form == "json":
        print(as_json(rows))
    elif form == "csv":
        print(as_csv(rows), end="")
    else:
        console.print(as_table(rows, objectives))
