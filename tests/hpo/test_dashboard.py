"""`python -m hpo.dashboard` as a process, and what its pages show in a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import finished_study
import pytest
from browser import chromium, hovered, until

from hpo import dashboard, notes
from hpo.errors import BadSetting
from hpo.study import Asked
from storage import results
from storage.store import open_store

POINTS = [(2.0, 0.9), (1.0, 0.5), (3.0, 0.125), (3.0, 0.6)]
LONGEST = 120.0  # seconds that a test may have the command running
direct = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@pytest.fixture(scope="module")
def database() -> str:
    return finished_study.new_database()


@pytest.fixture(scope="module")
def trials(database: str) -> list[Asked]:
    """A study whose finished trials have notes."""
    search = finished_study.begin(database, "a study", len(POINTS))
    done = []
    for point in POINTS:
        asked, measured = finished_study.ask(search), finished_study.result(*point)
        notes.write(search, asked, measured)
        finished_study.tell(search, asked, measured.scores)
        done.append(asked)
    yield done
    search.store.close()


@contextmanager
def serving(database: str, *arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The running command and its address."""
    command = [sys.executable, "-m", "hpo.dashboard", "--storage", database, "--no-browser", "--port", "0", *arguments]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job has it ignored, and its children with it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    watchdog = threading.Timer(LONGEST, process.kill)
    watchdog.start()
    try:
        found = re.search(r"http://\S+/dashboard/", process.stdout.readline())
        assert found, process.stderr.read()
        yield process, found[0]
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_hovering_shows_parameters_and_the_note_its_pictures(database: str, trials: list[Asked], tmp_path: Path) -> None:
    with serving(database) as (_, url), chromium(tmp_path / "profile") as driver:
        with contextlib.closing(open_store(database)) as store:
            study = results.study_id(store, "a study")
        driver.get(f"{url}studies/{study}")
        until(lambda: driver.execute_script("const p = document.querySelector('.js-plotly-plot'); return p && p._fullData && p._fullData.length > 1"))
        shown = hovered(driver, *POINTS[1])
        asked = trials[1]
        assert '"number": 1' in shown and f'"method": "{asked.candidate.method}"' in shown and f'"steps": "{asked.candidate.steps}"' in shown
        assert '"blocks":' in shown and f'"learning rate of {asked.candidate.method}":' in shown
        assert until(lambda: "copy_excess" in driver.find_element("tag name", "body").text), "objectives are called by name"
        driver.get(f"{url}studies/{study}/trials?numbers=2")
        page = until(lambda: (text := driver.find_element("tag name", "body").text) and trials[2].candidate.words in text and text)
        assert page and "0.025 … 0.225" in page and "95 % interval" in page
        width = until(lambda: driver.execute_script("const i = document.querySelector('img[alt=\"generated pictures\"]'); return i && i.naturalWidth"))
        assert width == 8 * notes.LEAST_SIDE


def test_a_slow_visitor_does_not_hold_up_the_others(database: str) -> None:
    with serving(database) as (_, url), socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as slow:
        slow.sendall(b"GET /dashboard/ HTTP/1.1\r\n")  # and then nothing more
        with direct(url.replace("/dashboard/", "/api/studies"), timeout=20) as answer:
            assert "study_summaries" in json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(database: str, number: int) -> None:
    with serving(database) as (process, url):
        direct(url, timeout=20).close()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.communicate() == ("", "")


def test_it_listens_on_loopback(database: str) -> None:
    with serving(database) as (_, url):
        assert urlsplit(url).hostname == dashboard.HOST == "127.0.0.1"


def test_a_busy_port_is_one_line(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "hpo.dashboard", "--storage", database, "--no-browser", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "already in use" in ended.stderr and "--port 0" in ended.stderr


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("127.0.0.1", -1), ("no such host", 0)])
def test_an_address_that_cannot_be_listened_on_is_refused(host: str, port: int) -> None:
    with pytest.raises(BadSetting, match="cannot be listened on"):
        dashboard.listen(host, port, None)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
                                                ("10.0.0.1", False), ("", False), ("example.org", False)])
def test_which_addresses_are_this_machine_only(host: str, expected: bool) -> None:
    assert dashboard.is_loopback(host) is expected


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="these systems always have a window")
def test_no_text_browser_is_started_where_there_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not dashboard.has_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert dashboard.has_browser()
