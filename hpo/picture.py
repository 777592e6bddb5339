"""The front as a picture: a PNG for documents and an HTML page that works offline. Points and scores only, no X-rays."""

from __future__ import annotations

import html
import math
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.objectives import JOINT_REWARD, Objectives, objective
from metrics.scores import SCORES
from trainers.methods import METHODS

Row = dict[str, Any]  # of the view rung_scores

# Colours that colour-blind readers can tell apart (Okabe and Ito 2008), each with a mark of its own for black and white.
STYLES = (("#D55E00", "o", "circle"), ("#0072B2", "s", "square"), ("#E69F00", "^", "triangle-up"), ("#CC79A7", "D", "diamond"),
          ("#009E73", "v", "triangle-down"), ("#56B4E9", "P", "cross"), ("#8C510A", "h", "hexagon"), ("#999933", "p", "pentagon"))
OTHER_STYLE = ("#7F7F7F", "*", "star")  # of a method that this version does not know
LOG_RATIO = 10.0  # an axis is logarithmic from here on, largest over smallest value
BEYOND = {False: 2.0, True: 0.5}  # spans of the values that intervals may add on either side, on linear and logarithmic axes
MARGIN = 0.06  # of the span, around everything
EMPTY = "no rung is evaluated yet"
TITLE_WIDTH, TITLE_LINES, WORDS_WIDTH = 80, 2, 70  # characters
MOST_NAMED = 3  # trials in one point's label
# Named one by one, since plotly's own choice has a button that sends the chart to a server.
BUTTONS = {"displaylogo": False, "modeBarButtons": [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]}


@dataclass(frozen=True)
class Axis:
    """One drawn score: its name, whether its axis is logarithmic, and from where to where it is drawn."""

    name: str
    logarithmic: bool
    low: float
    high: float

    def bar(self, row: Row) -> tuple[float, float]:
        """Lengths of the interval below and above the value. On a logarithmic axis an end at or below 0 lies just out of sight."""
        value, low, high = row[self.name], row[f"{self.name}_low"], row[f"{self.name}_high"]
        low, high = value if low is None else low, value if high is None else high
        if self.logarithmic:
            low = max(low, min(self.low / 2, value))
        return max(value - low, 0.0), max(high - value, 0.0)

    @property
    def label(self) -> tuple[str, str]:
        score = SCORES[self.name]
        unit = f"{self.name} ({score.unit})"
        return (f"← better    {unit}" if score.direction == "minimize" else f"{unit}    better →"), score.meaning


@dataclass(frozen=True)
class Scene:
    """What both pictures show. `line`: the front in the order of x, empty where its steps would mean nothing."""

    x: Axis
    y: Axis
    points: list[Row]
    base: tuple[float, float] | None
    line: list[Row]

    @property
    def methods(self) -> list[str]:
        used = {row["method"] for row in self.points}
        return [*(name for name in METHODS if name in used), *sorted(used - set(METHODS))]


def axes(objectives: Objectives) -> tuple[str, str]:
    """The two scores that are drawn, to the right and upwards: memorization and quality, or the first two objectives if
    they are of one kind."""
    names = objectives.names
    kinds = {SCORES[name].kind for name in names if name in SCORES}
    return names[:2] if len(kinds) == 1 else (objectives.memorization, objectives.quality)


def scene(rows: list[Row], objectives: Objectives, base: dict[str, tuple]) -> Scene:
    """rows: of the view rung_scores; those that lack a drawn score are left out."""
    names = axes(objectives)
    points = [row for row in rows if all(row[name] is not None for name in names)]
    origin = tuple(base[name][0] for name in names) if all(name in base for name in names) else None
    x, y = (axis_of(name, points, origin and origin[place]) for place, name in enumerate(names))
    line: list[Row] = []
    if set(objectives.names) == set(names):
        first, second = objective(x.name), objective(y.name)
        line = sorted((row for row in points if row["on_front"]), key=lambda row: (first.oriented(row[x.name]), second.oriented(row[y.name])))
    return Scene(x, y, points, origin, line)


def axis_of(name: str, points: list[Row], base: float | None) -> Axis:
    """An axis that holds all values, and of the front's intervals as much as leaves the points apart."""
    values = [row[name] for row in points] + ([] if base is None else [base])
    if not values:
        return Axis(name, False, 0.0, 1.0)
    logarithmic = min(values) > 0 and max(values) / min(values) >= LOG_RATIO
    scale = (lambda v: math.log10(v) if v > 0 else -math.inf) if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    ends = [scale(row[name + end]) for row in points for end in ("_low", "_high") if row["on_front"] and row[name + end] is not None]
    if high > low:
        reach = BEYOND[logarithmic] * (high - low)
        low, high = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
    else:
        low, high = min([low, *ends]), max([high, *ends])
    pad = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
    low, high = low - pad, high + pad
    return Axis(name, logarithmic, 10**low if logarithmic else low, 10**high if logarithmic else high)


def style(method: str) -> tuple[str, str, str]:
    """Colour, matplotlib's and plotly's mark; the same in every picture."""
    known = list(METHODS)
    if method not in known:
        return OTHER_STYLE
    turn, place = divmod(known.index(method), len(STYLES))
    # With more methods than styles each colour comes again with another mark.
    return STYLES[place][0], *STYLES[(place + turn) % len(STYLES)][1:]


def title_of(method: str) -> str:
    return METHODS[method].title if method in METHODS else method


def short_title(title: str) -> list[str]:
    """At most TITLE_LINES lines; what is cut off is marked."""
    lines = textwrap.wrap(" ".join(title.split()), TITLE_WIDTH) or [""]
    return lines if len(lines) <= TITLE_LINES else [*lines[: TITLE_LINES - 1], lines[TITLE_LINES - 1][: TITLE_WIDTH - 2] + " …"]


def same_place(rows: list[Row], x: str, y: str) -> dict[tuple[float, float], list[Row]]:
    """Rows by their point: several trials may have equal scores."""
    found: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row[x], row[y]), []).append(row)
    return found


def load_libraries() -> None:
    """Import what drawing needs, so that it need not be waited for when the trials are done."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.patheffects  # noqa: F401
    import plotly.graph_objects  # noqa: F401


def headline(study: str, front: int, rungs: int, finished: int) -> str:
    """What is over a study's picture. front: points on it; rungs: that are evaluated; finished: trials."""
    return f"{study}: front of {front} among {rungs} rungs of {finished} finished trials"


def write_png(path: Path, rows: list[Row], objectives: Objectives, base: dict[str, tuple], title: str) -> None:
    """All evaluated rungs, the front's with 95 % intervals and joined, the untouched base as a cross."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # emoji in a study's name are drawn as boxes
        drawn(scene(rows, objectives, base), title).savefig(path)


def drawn(shown: Scene, title: str):
    """The scene as a matplotlib figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for each, set_scale, set_limits in ((shown.x, axis.set_xscale, axis.set_xlim), (shown.y, axis.set_yscale, axis.set_ylim)):
        set_scale("log" if each.logarithmic else "linear")
        set_limits(each.low, each.high)
    draw_points(axis, shown)
    axis.set_xlabel("\n".join(shown.x.label))
    axis.set_ylabel("\n".join(reversed(shown.y.label)))
    axis.set_title("\n".join(short_title(title)), fontsize=10, loc="left", parse_math=False)  # a name may hold dollar signs
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    name_points(axis, figure, shown)
    return figure


def draw_points(axis, shown: Scene) -> None:
    x, y = shown.x, shown.y
    if not shown.points:
        axis.text(0.5, 0.5, EMPTY, transform=axis.transAxes, ha="center", va="center", fontsize=14, color="#555555")
    if len(shown.line) > 1:
        axis.plot([row[x.name] for row in shown.line], [row[y.name] for row in shown.line], drawstyle="steps-post", color="black",
                  linewidth=0.9, zorder=1, label="front")
    for method in shown.methods:
        own = [row for row in shown.points if row["method"] == method]
        rest, front = [row for row in own if not row["on_front"]], [row for row in own if row["on_front"]]
        colour, mark, _ = style(method)
        look = {"color": colour, "marker": mark, "linestyle": "none"}
        axis.plot([row[x.name] for row in rest], [row[y.name] for row in rest], markersize=5, alpha=0.45, markeredgewidth=0, zorder=2, **look)
        bars = [list(zip(*(each.bar(row) for row in front))) or None for each in (x, y)]
        axis.errorbar([row[x.name] for row in front], [row[y.name] for row in front], xerr=bars[0], yerr=bars[1], markersize=7, elinewidth=0.8,
                      capsize=2, markeredgecolor="black", zorder=3, ecolor=(colour, 0.6), **look)
        axis.plot([], [], markersize=6, label=title_of(method), **look)
    if shown.base is not None:
        axis.plot([shown.base[0]], [shown.base[1]], marker="x", color="black", linestyle="none", markersize=8, markeredgewidth=2, zorder=4,
                  label="untouched base")


def name_points(axis, figure, shown: Scene) -> None:
    """Trial numbers beside the front's points, as many as find room without covering one another."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # the layout decides where points are
    groups = same_place([row for row in shown.points if row["on_front"]], shown.x.name, shown.y.name)
    spots = [axis.transData.transform(place) for place in groups]
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in spots]
    edges = axis.get_window_extent()
    for (px, py), (place, rows) in zip(spots, groups.items()):
        text = ", ".join(str(row["trial"]) for row in rows[:MOST_NAMED]) + (" …" if len(rows) > MOST_NAMED else "")
        wide, high = 8 * len(text) + 2, 13  # pixels of this font, nearly
        for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            left, bottom = (px + 7 if right > 0 else px - 7 - wide), (py + 6 if up > 0 else py - 6 - high)
            box = (left, bottom, left + wide, bottom + high)
            inside = edges.x0 <= left and left + wide <= edges.x1 and edges.y0 <= bottom and bottom + high <= edges.y1
            if inside and not any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken):
                axis.annotate(text, place, textcoords="offset pixels", xytext=(left - px, bottom - py), fontsize=8, zorder=5,
                              path_effects=[withStroke(linewidth=2.5, foreground="white")])
                taken.append(box)
                break


def write_html(path: Path, rows: list[Row], objectives: Objectives, base: dict[str, tuple], title: str) -> None:
    """The same as a page: hovering shows the candidate in words and every score. The plotting library is in the file."""
    import plotly.graph_objects as go

    shown = scene(rows, objectives, base)
    x, y = shown.x, shown.y
    figure = go.Figure()
    if len(shown.line) > 1:
        figure.add_scatter(x=[row[x.name] for row in shown.line], y=[row[y.name] for row in shown.line], mode="lines", name="front",
                           line=dict(color="black", width=1, shape="hv"), hoverinfo="skip")
    for on_front in (False, True):
        for method in shown.methods:
            own = [row for row in shown.points if row["method"] == method and row["on_front"] == on_front]
            if own:
                figure.add_scatter(**trace(own, shown, method, on_front))
    if shown.base is not None:
        scores = "<br>".join(line for name in SCORES if name in base for line in [score_line(name, *base[name])])
        figure.add_scatter(x=[shown.base[0]], y=[shown.base[1]], mode="markers", name="untouched base", text=[f"<b>untouched base</b><br>{scores}"],
                           hovertemplate="%{text}<extra></extra>", marker=dict(symbol="x", color="black", size=10))
    if not shown.points:
        figure.add_annotation(text=EMPTY, xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False, font=dict(size=20))
    figure.update_layout(title="<br>".join(html.escape(line, quote=False) for line in short_title(title)), template="plotly_white", hovermode="closest",
                         hoverlabel=dict(align="left", bgcolor="white", font=dict(color="black")), legend=dict(itemsizing="constant"))
    for each, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        ends = [math.log10(each.low), math.log10(each.high)] if each.logarithmic else [each.low, each.high]
        update(title="<br>".join(each.label if each is x else reversed(each.label)), type="log" if each.logarithmic else "linear", range=ends)
    page = figure.to_html(include_plotlyjs=True, full_html=True, config=BUTTONS)
    heading = f"<head><title>{html.escape(title)}</title><style>body {{ margin: 0 }}</style>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.replace("<head>", heading, 1), encoding="utf-8")


def trace(own: list[Row], shown: Scene, method: str, on_front: bool) -> dict[str, Any]:
    """Plotly's arguments for the points of one method, on the front or off it."""
    colour, _, symbol = style(method)
    places = same_place(shown.points, shown.x.name, shown.y.name)
    bars = {}
    for side, axis in (("error_x", shown.x), ("error_y", shown.y)):
        below, above = zip(*(axis.bar(row) for row in own))
        bars[side] = dict(type="data", symmetric=False, array=above, arrayminus=below, thickness=1, width=3, visible=on_front)
    return dict(x=[row[shown.x.name] for row in own], y=[row[shown.y.name] for row in own], mode="markers",
                name=f"{title_of(method)}, front" if on_front else title_of(method), hovertemplate="%{text}<extra></extra>",
                text=["<br><br>".join(hover(each) for each in places[row[shown.x.name], row[shown.y.name]][:MOST_NAMED]) for row in own],
                marker=dict(color=colour, symbol=symbol, size=11 if on_front else 7, opacity=1 if on_front else 0.45,
                            line=dict(width=1 if on_front else 0, color="black")), **bars)


def hover(row: Row) -> str:
    """All of a trial that a reader may ask for, as plotly's HTML."""
    role = f", {row['baseline']}" if row["baseline"] else ""
    size = [] if row["trainable"] is None else [f"{row['trainable']:,} trainable parameters ({row['trainable_share']:.3%})"]
    lines = [f"<b>trial {row['trial']}{role}</b>", *textwrap.wrap(html.escape(row["candidate"], quote=False), WORDS_WIDTH), *size]
    lines += [score_line(name, row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in SCORES if row[name] is not None]
    if row[JOINT_REWARD] is not None:
        lines.append(f"joint reward {row[JOINT_REWARD]:.3f}")
    return "<br>".join(lines)


def score_line(name: str, value: float, low: float | None, high: float | None) -> str:
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{name} {value:.4g}{interval}"
