"""A real Chromium without a window, for tests of what a user sees; they are skipped where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update",
         "disable-sync", "window-size=1400,1000")
PLACE = """
const plot = document.querySelector('.js-plotly-plot'), layout = plot._fullLayout;
plot.scrollIntoView({block: 'center'});
const place = plot.getBoundingClientRect();
for (const trace of plot._fullData)
    for (let i = 0; i < trace.x.length; i++)
        if (trace.mode !== 'lines' && Math.abs(trace.x[i] - arguments[0]) < 1e-9 && Math.abs(trace.y[i] - arguments[1]) < 1e-9)
            return [place.left + layout.xaxis._offset + layout.xaxis.d2p(trace.x[i]), place.top + layout.yaxis._offset + layout.yaxis.d2p(trace.y[i])];
"""
SHOWN = "return [...document.querySelectorAll('.hoverlayer text')].map(each => each.textContent).join('\\n')"


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A selenium driver with a fresh profile in that folder."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, found in programs.items():
        if found is None:
            pytest.skip(f"no {name} on this machine: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of the condition; what it gave last, if the seconds are over."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return value


def hovered(driver: Any, x: float, y: float) -> str:
    """The text that shows when the mouse is over the point (x, y) of the page's first plotly plot."""
    from selenium.webdriver.common.action_chains import ActionBuilder

    left, top = until(lambda: driver.execute_script(PLACE, x, y))
    for step in (-3, 0):  # a mouse that does not move hovers over nothing
        mouse = ActionBuilder(driver)
        mouse.pointer_action.move_to_location(round(left) + step, round(top))
        mouse.perform()
    return until(lambda: driver.execute_script(SHOWN))
