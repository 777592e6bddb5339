"""A lock of a file: one at a time, free when its process dies, and whoever waits says for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainers import locks

HOLDER = """
import sys, time
from pathlib import Path
from trainers.locks import locked
with locked(Path(sys.argv[1]), "a thing"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_waits_for_a_paused_process_says_so_and_gets_the_lock_when_that_dies(tmp_path: Path, end: int, monkeypatch: pytest.MonkeyPatch,
                                                                                     caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "SECONDS_IN_SILENCE", 0.3)
    path = tmp_path / "a.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        said = threading.Event()
        monkeypatch.setattr(locks.log, "filter", lambda record: said.set() or True)
        threading.Thread(target=lambda: (said.wait(60), holder.send_signal(end), holder.send_signal(signal.SIGCONT))).start()
        with locks.locked(path, "a thing"):
            assert said.is_set() and f"waiting for a thing, which process {holder.pid} on {os.uname().nodename} is at" in caplog.text
            assert str(os.getpid()) in locks.holder(tmp_path / "a.lock.holder")
    finally:
        holder.kill()
        holder.wait()
    assert {each.name for each in tmp_path.iterdir()} == {"a.lock"}


def test_a_lock_that_is_free_is_taken_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with locks.locked(tmp_path / "a.lock", "a thing"):
            pass
    assert caplog.text == ""


def test_where_no_file_can_be_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locks.locked(tmp_path / "file" / "a.lock", "a thing"):
        pass
