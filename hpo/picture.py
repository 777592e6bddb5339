"""The front as a picture: a PNG for documents and an HTML page that works offline. Points and scores only, no X-rays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpo.objectives import Objectives
from metrics.scores import SCORES

COLOURS = {"full": "#d62728", "attention": "#1f77b4", "lora": "#2ca02c", "bias": "#9467bd", "norm": "#8c564b"}
OTHER_COLOUR = "#7f7f7f"


def axes(objectives: Objectives) -> tuple[str, str]:
    """The two scores that are drawn: memorization to the right, quality upwards."""
    return objectives.memorization, objectives.quality


def label(name: str) -> str:
    score = SCORES[name]
    return f"{name} ({score.meaning}; {'lower' if score.direction == 'minimize' else 'higher'} is better)"


def half_widths(row: dict[str, Any], name: str) -> tuple[float, float]:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return (0.0 if low is None else value - low, 0.0 if high is None else high - value)


def drawable(rows: list[dict[str, Any]], objectives: Objectives) -> list[dict[str, Any]]:
    return [row for row in rows if row["state"] in ("COMPLETE", "PRUNED") and all(row[name] is not None for name in axes(objectives))]


def write_png(path: Path, rows: list[dict[str, Any]], objectives: Objectives, base: dict[str, tuple], title: str) -> None:
    """All finished trials, the front's with 95 % intervals and joined, the untouched base as a cross."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = axes(objectives)
    figure, axis = plt.subplots(figsize=(8, 5.5), dpi=120)
    points = drawable(rows, objectives)
    for method in dict.fromkeys(row["method"] for row in points):
        own = [row for row in points if row["method"] == method]
        colour = COLOURS.get(method, OTHER_COLOUR)
        axis.scatter([row[x] for row in own], [row[y] for row in own], s=22, color=colour, alpha=0.45, label=method, linewidths=0)
        front = [row for row in own if row["on_front"]]
        if front:
            errors = [list(zip(*(half_widths(row, name) for row in front))) for name in (x, y)]
            axis.errorbar([row[x] for row in front], [row[y] for row in front], xerr=errors[0], yerr=errors[1], fmt="o", color=colour,
                          markersize=7, elinewidth=0.8, capsize=2, markeredgecolor="black")
    front = sorted((row for row in points if row["on_front"]), key=lambda row: row[x])
    axis.plot([row[x] for row in front], [row[y] for row in front], color="black", linewidth=0.8, zorder=0)
    for row in front:
        axis.annotate(str(row["trial"]), (row[x], row[y]), textcoords="offset points", xytext=(6, 5), fontsize=8)
    if x in base and y in base:
        axis.scatter([base[x][0]], [base[y][0]], marker="x", color="black", label="untouched base")
    if points and SCORES[y].direction == "minimize" and min(row[y] for row in points) > 0:
        axis.set_yscale("log")
    axis.set_xlabel(label(x))
    axis.set_ylabel(label(y))
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def write_html(path: Path, rows: list[dict[str, Any]], objectives: Objectives, base: dict[str, tuple], title: str) -> None:
    """The same as a page: hovering shows the candidate in words and every score. The plotting library is in the file."""
    import plotly.graph_objects as go

    x, y = axes(objectives)
    points = drawable(rows, objectives)
    figure = go.Figure()
    for on_front in (False, True):
        for method in dict.fromkeys(row["method"] for row in points):
            own = [row for row in points if row["method"] == method and row["on_front"] == on_front]
            if not own:
                continue
            bars = {f"error_{axis}": dict(type="data", symmetric=False, array=[half_widths(row, name)[1] for row in own],
                                          arrayminus=[half_widths(row, name)[0] for row in own], thickness=1, visible=on_front)
                    for axis, name in (("x", x), ("y", y))}
            figure.add_scatter(x=[row[x] for row in own], y=[row[y] for row in own], mode="markers", name=f"{method}{', front' if on_front else ''}",
                               marker=dict(color=COLOURS.get(method, OTHER_COLOUR), size=11 if on_front else 7, opacity=1 if on_front else 0.45,
                                           line=dict(width=1 if on_front else 0, color="black")),
                               text=[hover(row) for row in own], hovertemplate="%{text}<extra></extra>", **bars)
    if x in base and y in base:
        figure.add_scatter(x=[base[x][0]], y=[base[y][0]], mode="markers", name="untouched base", marker=dict(symbol="x", color="black", size=10))
    logarithmic = bool(points) and SCORES[y].direction == "minimize" and min(row[y] for row in points) > 0
    figure.update_layout(title=title, xaxis_title=label(x), yaxis_title=label(y), yaxis_type="log" if logarithmic else "linear", template="plotly_white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, full_html=True)


def hover(row: dict[str, Any]) -> str:
    lines = [f"<b>trial {row['trial']}</b>", row["candidate"]]
    lines += [f"{name} {row[name]:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]" for name in SCORES
              if row[name] is not None and row[f"{name}_low"] is not None]
    if row["joint_reward"] is not None:
        lines.append(f"joint reward {row['joint_reward']:.3f}")
    return "<br>".join(lines)
