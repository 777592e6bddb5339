"""The cache: made once by however many processes, whole or not there after a crash or on a full disk, never written to."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from trainers.cache import key_of, remember

PREAMBLE = """
import os, resource, sys, time
from pathlib import Path
import numpy as np
from trainers.cache import remember
folder = Path(sys.argv[1])
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    repository = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *map(str, arguments)], cwd=repository,
                            stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)


def never() -> dict:
    raise AssertionError("it should have been there")


ARRAYS = {"mean": np.arange(12, dtype=np.float32).reshape(3, 4), "rows": np.array([2, 0, 1]), "none": np.zeros((0, 4)),
          "one": np.float64(2.5), "names": np.array(["a", "é"]), "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3))}


def test_arrays_come_back_as_they_were_and_are_made_once(tmp_path):
    calls = []
    for _ in range(2):
        found = remember(tmp_path, "latents", "k", lambda: calls.append(1) or ARRAYS)
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert found[name].dtype == np.asarray(array).dtype and found[name].shape == np.shape(array)
            np.testing.assert_array_equal(found[name], array)
    assert calls == [1]


def test_arrays_are_memory_maps_that_refuse_to_be_written(tmp_path):
    found = remember(tmp_path, "latents", "k", lambda: ARRAYS)["mean"]
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_other_kinds_and_keys_are_other_arrays(tmp_path):
    for kind, key, value in (("a", "k", 1), ("b", "k", 2), ("a", "l", 3)):
        remember(tmp_path, kind, key, lambda value=value: {"x": np.array([value])})
    assert [remember(tmp_path, kind, key, never)["x"][0] for kind, key in (("a", "k"), ("b", "k"), ("a", "l"))] == [1, 2, 3]


def test_keys_are_of_the_contents():
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", None), key_of("a", 1), key_of("a", "1")}) == 6
    assert key_of(Path("x")) == key_of("x")


def test_an_error_while_making_leaves_nothing_and_the_next_call_makes_it(tmp_path):
    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        remember(tmp_path, "latents", "k", fail)
    np.testing.assert_array_equal(remember(tmp_path, "latents", "k", lambda: ARRAYS)["mean"], ARRAYS["mean"])


def test_python_objects_are_refused_rather_than_pickled(tmp_path):
    with pytest.raises(ValueError, match="[Oo]bject"):
        remember(tmp_path, "latents", "k", lambda: {"good": ARRAYS["mean"], "x": np.array([{}], dtype=object)})
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == [tmp_path / "latents"]


def test_processes_at_once_make_it_once(tmp_path):
    """Each process notes that it made the arrays; while one does, the others wait."""
    code = """
        def make():
            (folder / f"made-{os.getpid()}").touch()
            time.sleep(0.5)
            return {"x": np.full(1000, os.getpid())}
        (folder / f"up-{os.getpid()}").touch()
        while len(list(folder.glob("up-*"))) < 3: time.sleep(0.01)
        print(remember(folder, "latents", "k", make)["x"].max())
    """
    processes = [start(code, tmp_path) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    (maker,) = tmp_path.glob("made-*")
    assert said == [maker.name.removeprefix("made-")] * 3


@pytest.mark.parametrize("moment", ["making", "writing"])
def test_a_process_that_is_killed_leaves_nothing_half(tmp_path, moment):
    """kill -9 while the arrays are computed, and when one of two is already on the disk."""
    code = """
        def hang():
            (folder / "now").touch()
            time.sleep(600)
        class Slow(dict):
            def items(self):
                yield "first", np.zeros(100_000)
                hang()
        remember(folder, "latents", "k", hang if sys.argv[2] == "making" else Slow)
    """
    process = start(code, tmp_path, moment)
    wait_for(tmp_path / "now")
    if moment == "writing":
        assert len(list((tmp_path / "latents").rglob("*.npy"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "latents" / "k").exists()
    found = remember(tmp_path, "latents", "k", lambda: {"x": np.ones(3)})
    assert list(found) == ["x"]
    assert {path.name for path in (tmp_path / "latents").iterdir()} == {"k", "k.lock"}


def test_a_disk_that_is_full_is_an_oserror_with_its_number_and_folder(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the same place, with EFBIG for ENOSPC."""
    code = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            remember(folder, "latents", "k", lambda: {"x": np.zeros(10_000)})
        except OSError as error:
            print(error.errno, error.filename)
    """
    said = start(code, tmp_path).communicate(timeout=60)[0].split()
    assert said == [str(errno.EFBIG), str(tmp_path / "latents" / "k")]
    assert {path.name for path in (tmp_path / "latents").iterdir()} == {"k.lock"}
    np.testing.assert_array_equal(remember(tmp_path, "latents", "k", lambda: ARRAYS)["rows"], ARRAYS["rows"])
