"""For all tests: a data folder of their own, one thread for arithmetic, and the seconds that each file took."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

# Set before anything is imported. Short, since a socket's path has 107 characters; never the user's own folder.
HOME = Path(tempfile.mkdtemp(prefix="pp-home-"))
os.environ["PEFT_PARETO_HOME"] = str(HOME)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell ignores Ctrl-C in what it runs in the background, and a process that ignores it hands that down to all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
seconds: dict[str, float] = defaultdict(float)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def cxr() -> Path:
    """Real chest X-rays in MIMIC's layout, if this machine has them."""
    folder = Path(os.environ.get("PEFT_PARETO_CXR", REPOSITORY.parent / "shared" / "cxr"))
    if not folder.is_dir():
        pytest.skip(f"no real X-rays at {folder}: set PEFT_PARETO_CXR to a folder in MIMIC-CXR-JPG layout")
    return folder


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    seconds[report.nodeid.split("::")[0]] += report.duration


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.section("seconds by file")
    for file, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"{spent:7.1f}  {file}")


def pytest_sessionfinish() -> None:
    from storage import embedded

    embedded.stop()
    shutil.rmtree(HOME, ignore_errors=True)
