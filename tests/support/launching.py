"""`python -m hpo.launch` as a process with given settings, and waiting for what it does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo.settings import Settings


def flags(settings: Settings) -> list[str]:
    """The command line that says these settings."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.to_json().items() if value is not None]


def start(settings: Settings, log: Path) -> subprocess.Popen:
    """Starts launch; what it prints goes to the end of `log`."""
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, "-m", "hpo.launch", *flags(settings)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                cwd=Path(__file__).parent.parent.parent, start_new_session=True)


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits for a condition; gives what it gave. The test fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.1)
    return found
