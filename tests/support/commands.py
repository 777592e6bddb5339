"""What our commands say about themselves: the help of `python -m MODULE`, asked for once, and the flags in it; and what a page says of them."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
MODULE = re.compile(r"python3? -m ([a-z_]+(?:\.[a-z_]+)*)")
NOT_OURS = {"venv", "pytest"}


@functools.cache
def help_of(module: str) -> str:
    """Standard output of `python -m MODULE --help`, which must end with status 0; run in the repository, where benchmarks are."""
    command = [sys.executable, "-m", module, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env={**os.environ, "COLUMNS": "200"})
    assert ended.returncode == 0, f"{' '.join(command[1:])}: {ended.stderr}"
    return ended.stdout


def flags_of(module: str) -> set[str]:
    return set(FLAG.findall(help_of(module)))


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block of a page."""
    return re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)


def shell_lines(page: str) -> list[str]:
    """The lines of all shell blocks, continued ones joined."""
    text = "\n".join(body for language, body in blocks(page) if language == "bash")
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def modules(page: str) -> list[str]:
    """Our modules that a page runs."""
    return sorted(set(MODULE.findall(page)) - NOT_OURS)


def check_shell_lines(page: str) -> int:
    """AssertionError where a shell block gives a command of ours a flag that it has not; gives how many commands were looked at."""
    checked = 0
    for line in shell_lines(page):
        for part in re.split(r"&&|\$\(", line):
            found = MODULE.search(part)
            if found and found[1] not in NOT_OURS and not part.startswith("psql") and " psql" not in part:
                unknown = set(FLAG.findall(part[found.start():])) - flags_of(found[1])
                assert not unknown, f"{found[1]} has no {unknown}"
                checked += 1
    return checked


def unknown_flags(page: str, others: set[str]) -> set[str]:
    """Flags in a page that are neither known to a command of ours that it names, nor among `others`."""
    return set(FLAG.findall(page)) - set().union(*(flags_of(module) for module in modules(page))) - others
