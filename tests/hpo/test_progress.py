"""What a search says while it runs."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest
from finished_study import scores, tell
from rich.console import Console

from hpo.progress import Display, duration
from hpo.study import Search


def shown(search: Search, console: Console) -> Display:
    return Display(search.store, search.settings.study, search.id, search.objectives, console)


def test_plain_lines_say_how_many_are_finished_and_what_is_tried(searching: Callable[..., Search], finish: Callable) -> None:
    search, out = searching(), io.StringIO()
    with shown(search, Console(file=out, width=60)) as display:
        display.watch()
        finish(search)
        asked = search.ask()
        display.watch()
        display.watch()
        tell(search, asked, scores(1, 1))
        display.watch()
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["0 of 5 finished", "1 of 5 finished", "2 of 5 finished"], "one line a change, however narrow"
    assert asked.candidate.words in lines[1] and "front of 1" in lines[1] and "left" in lines[1]


def test_a_terminal_gets_one_live_display(searching: Callable[..., Search], finish: Callable) -> None:
    search, out = searching(), io.StringIO()
    finish(search)
    asked = search.ask()
    with shown(search, Console(file=out, width=160, force_terminal=True)) as display:
        display.watch()
        display.live.refresh()
        text = out.getvalue()
    assert "1 of 5 finished" in text and asked.candidate.words in text and f"trial {asked.number}" in text and "starting" in text


def test_warnings_of_the_package_appear_on_the_console_and_only_while_it_is_shown(searching: Callable[..., Search]) -> None:
    search, out = searching(), io.StringIO()
    with shown(search, Console(file=out, width=60)):
        logging.getLogger("hpo.engines.local").warning("a worker died (%s) [%s]", 9, "x" * 80)
    logging.getLogger("hpo.engines.local").warning("nobody listens")
    assert out.getvalue() == f"a worker died (9) [{'x' * 80}]\n"


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3723, "1:02:03")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_shared_by_those_who_run(searching: Callable[..., Search], finish: Callable) -> None:
    search = searching(trials=5)
    finish(search)
    finish(search)
    display = shown(search, Console(file=io.StringIO()))
    from storage import results

    assert display.left(results.progress(search.store, search.id)) == pytest.approx(3.0), "three of a second each"
