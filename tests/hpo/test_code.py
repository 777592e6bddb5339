"""Which code a study is run with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpo import code
from hpo.code import OtherCode


def hash_in(folder: Path) -> str:
    """As a process would say it that has its packages there."""
    return subprocess.run([sys.executable, "-c", "from hpo import code; print(code.content_hash())"], cwd=folder, env={"PYTHONPATH": str(folder)},
                          capture_output=True, text=True, check=True).stdout.strip()


def test_a_changed_module_or_query_is_other_code_and_nothing_else_is(repository: Path, tmp_path: Path) -> None:
    for package in code.PACKAGES:
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    assert hash_in(tmp_path) == code.content_hash()
    (tmp_path / "hpo" / "configs" / "mine.toml").write_text("steps = 3")
    assert hash_in(tmp_path) == code.content_hash()
    seen = {code.content_hash()}
    for name in ("storage/sql/front.sql", "metrics/scores.py"):
        with (tmp_path / name).open("a") as stream:
            stream.write("\n")
        seen.add(hash_in(tmp_path))
    assert len(seen) == 3


def test_it_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = code.content_hash()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read again"))
    assert code.content_hash() == known


def test_other_code_is_refused_and_a_study_of_before_is_not() -> None:
    code.check("s", code.content_hash()), code.check("s", None)
    with pytest.raises(OtherCode, match="study 's' is run with code 0123, this worker has"):
        code.check("s", "0123")
