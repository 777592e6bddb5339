"""What our commands say about themselves: the help of `python -m MODULE`, asked for once, and the flags in it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


@functools.cache
def help_of(module: str) -> str:
    """Standard output of `python -m MODULE --help`, which must end with status 0; run in the repository, where benchmarks are."""
    command = [sys.executable, "-m", module, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env={**os.environ, "COLUMNS": "200"})
    assert ended.returncode == 0, f"{' '.join(command[1:])}: {ended.stderr}"
    return ended.stdout


def flags_of(module: str) -> set[str]:
    return set(FLAG.findall(help_of(module)))
