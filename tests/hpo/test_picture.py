"""The front as PNG and as a page: few points and many, equal ones, none, odd names, logarithmic axes, no network."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from browser import chromium, hovered, until
from PIL import Image

from hpo import objectives, picture
from hpo.picture import axis_of, drawn, scene, write_html, write_png
from metrics.scores import SCORES
from trainers.methods import METHODS

PAIR = objectives.parse("fd,copy_excess")
BASE = {name: (0.1, 0.05, 0.2) for name in SCORES} | {"fd": (4.9, 4.0, 6.0), "copy_excess": (0.0, 0.0, 0.0)}
ODD_NAME = "a $very^ {long} <b>study</b> 🩻 " * 9


def row(trial: int, q: float, m: float, method: str = "lora", on_front: bool = True, **other) -> dict:
    made = {"study": "s", "trial": trial, "candidate": f"{method} & <i>words</i> of trial {trial}", "method": method, "steps": 20, "trainable": 1000,
            "trainable_share": 0.01, "joint_reward": 0.25, "seconds": 3.0, "state": "COMPLETE", "baseline": None, "on_front": on_front}
    for name in SCORES:
        made |= {name: 0.1, f"{name}_low": 0.05, f"{name}_high": 0.2}
    made |= {"fd": q, "fd_low": q * 0.9, "fd_high": q * 1.3, "copy_excess": m, "copy_excess_low": m - 0.02, "copy_excess_high": m + 0.02}
    return made | other


def cloud(count: int) -> list[dict]:
    chance = random.Random(3)
    points = [(0.1 + 5 * (1 - t) ** 4 + chance.random() ** 3, 0.5 * t**2 + 0.3 * chance.random() ** 3) for t in (chance.random() for _ in range(count))]
    front = {point for point in points if not any(q <= point[0] and m <= point[1] and (q, m) != point for q, m in points)}
    return [row(i, *point, method=chance.choice(list(METHODS)), on_front=point in front) for i, point in enumerate(points)]


@pytest.mark.parametrize("count", [1, 3, 20, 200])
def test_trial_numbers_are_beside_points_and_never_cover_one_another(count: int) -> None:
    rows = cloud(count)
    figure = drawn(scene(rows, PAIR, BASE), "a study")
    figure.draw_without_rendering()
    named = [text for text in figure.axes[0].texts if text.get_text()]
    on_front = [each for each in rows if each["on_front"]]
    assert named and {text.get_text() for text in named} <= {str(each["trial"]) for each in on_front}
    assert count > 20 or len(named) == len(on_front)
    boxes = [text.get_window_extent() for text in named]
    assert not any(a.x0 + 2 < b.x1 - 2 and b.x0 + 2 < a.x1 - 2 and a.y0 + 2 < b.y1 - 2 and b.y0 + 2 < a.y1 - 2
                   for i, a in enumerate(boxes) for b in boxes[:i])


def test_equal_points_share_a_label() -> None:
    figure = drawn(scene([row(i, 0.3, 0.2) for i in range(5)] + [row(9, 0.1, 0.4)], PAIR, {}), "")
    assert {text.get_text() for text in figure.axes[0].texts} == {"0, 1, 2 …", "9"}


def test_rungs_of_running_and_stopped_trials_are_points_too() -> None:
    assert len(scene([row(0, 0.3, 0.2, state="RUNNING"), row(1, 0.3, 0.2, state="PRUNED"), row(2, 0.4, 0.1, fd=None)], PAIR, BASE).points) == 2


def test_that_there_is_no_point_is_said() -> None:
    figure = drawn(scene([row(1, 0.3, 0.2, fd=None)], PAIR, BASE), "")
    assert [text.get_text() for text in figure.axes[0].texts] == [picture.EMPTY]


def test_an_axis_is_logarithmic_where_values_are_positive_and_far_apart() -> None:
    assert axis_of("fd", [row(0, 0.1, 0), row(1, 5.0, 0)], None).logarithmic
    assert not axis_of("fd", [row(0, 0.1, 0), row(1, 0.5, 0)], None).logarithmic
    assert not axis_of("fd", [row(0, 0.0, 0), row(1, 5.0, 0)], None).logarithmic
    assert axis_of("fd", [row(0, 0.1, 0)], 5.0).logarithmic  # the base is drawn too


def test_an_interval_that_reaches_zero_leaves_a_logarithmic_axis_and_is_drawn_to_its_edge() -> None:
    rows = [row(0, 0.1, 0, fd_low=0.0), row(1, 5.0, 0, fd_low=-1.0)]
    axis = axis_of("fd", rows, None)
    for each in rows:
        below, above = axis.bar(each)
        assert 0 < each["fd"] - below < axis.low
        assert each["fd"] + above == pytest.approx(each["fd_high"])


def test_one_wide_interval_does_not_squeeze_the_points() -> None:
    axis = axis_of("copy_excess", [row(0, 1, 0.0), row(1, 1, 0.1, copy_excess_low=-100.0, copy_excess_high=100.0)], None)
    assert axis.high - axis.low < 0.7 and axis.low < 0 and axis.high > 0.1


def test_a_single_point_has_its_whole_interval() -> None:
    axis = axis_of("fd", [row(0, 0.3, 0.2, fd_low=0.0, fd_high=0.9)], None)
    assert axis.low < 0 and axis.high > 0.9
    exact = axis_of("fd", [row(0, 0.3, 0.2, fd_low=None, fd_high=None)], None)
    assert exact.low < 0.3 < exact.high


@pytest.mark.parametrize(("names", "expected"), [("fd,copy_excess", ("copy_excess", "fd")), ("loss_gap,kid,fd", ("loss_gap", "kid")),
                                                 ("fd,kid", ("fd", "kid")), ("joint_reward", ("copy_excess", "fd"))])
def test_memorization_goes_right_and_quality_up(names: str, expected: tuple[str, str]) -> None:
    assert picture.axes(objectives.parse(names)) == expected


def test_the_front_is_joined_from_its_best_end_and_only_where_two_objectives_make_it() -> None:
    rows = [row(0, 0.1, 0.4), row(1, 0.3, 0.2), row(2, 0.5, 0.3, on_front=False)]
    assert [each["trial"] for each in scene(rows, PAIR, {}).line] == [1, 0]
    higher_is_better = [row(0, 0.1, 0, amd_train=0.2), row(1, 0.3, 0, amd_train=0.9)]
    assert [each["trial"] for each in scene(higher_is_better, objectives.parse("fd,amd_train"), {}).line] == [1, 0]
    assert scene(rows, objectives.parse("fd,copy_excess,kid"), {}).line == []
    assert scene(rows, objectives.parse("joint_reward"), {}).line == []


def test_every_method_has_its_own_look_and_an_unknown_one_is_drawn() -> None:
    assert len({picture.style(name) for name in METHODS}) == len(METHODS)
    assert picture.style("of-tomorrow") == picture.OTHER_STYLE
    figure = drawn(scene([row(0, 0.3, 0.2, "of-tomorrow"), row(1, 0.2, 0.3, "bias")], PAIR, BASE), "")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["front", METHODS["bias"].title, "of-tomorrow", "untouched base"]


def test_a_long_odd_title_is_cut_and_drawn_as_it_is(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(tmp_path / "new" / "front.png", cloud(3), PAIR, BASE, ODD_NAME)
    with Image.open(tmp_path / "new" / "front.png") as image:
        assert image.size == (1080, 672) and len(image.getcolors(1 << 20)) > 50
    lines = picture.short_title(ODD_NAME)
    assert len(lines) == picture.TITLE_LINES and all(len(line) <= picture.TITLE_WIDTH for line in lines) and lines[-1].endswith("…")
    assert picture.short_title("a\nstudy") == ["a study"] and picture.short_title("") == [""]


def test_the_page_works_without_network_and_shows_words_and_scores(tmp_path: Path) -> None:
    page = tmp_path / "front.html"
    rows = [row(0, 0.3, 0.2, "full", baseline="yardstick"), row(1, 0.3, 0.2, "bias"), row(2, 0.1, 0.4), row(3, 2.5, 0.5, on_front=False)]
    write_html(page, rows, PAIR, BASE, ODD_NAME)
    with chromium(tmp_path / "profile") as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        driver.get(page.as_uri())
        assert driver.title == " ".join(ODD_NAME.split()), "a browser's tab has the study's name, tags and all"
        shown = hovered(driver, 0.4, 0.1)
        assert "trial 2" in shown and "lora & <i>words</i> of trial 2" in shown and "fd 0.1 [0.09, 0.13]" in shown and "joint reward 0.250" in shown
        shown = hovered(driver, 0.2, 0.3)
        assert "trial 0, yardstick" in shown and "trial 1" in shown, "equal points are both shown"
        assert "untouched base" in hovered(driver, 0.0, 4.9)
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
        buttons = driver.execute_script("return [...document.querySelectorAll('.modebar-btn')].map(each => each.dataset.title)")
        assert buttons and not [name for name in buttons if "hare" in name or "loud" in name], "no button sends the chart away"
        write_html(page, [], PAIR, {}, "empty")
        driver.get(page.as_uri())
        assert until(lambda: picture.EMPTY in driver.find_element("tag name", "body").text)
