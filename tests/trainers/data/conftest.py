"""Data folders for these tests: small phantoms, a copy of them that may be spoilt, and real X-rays if there are any."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from trainers.data import phantoms as generator


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    return generator.write(tmp_path_factory.mktemp("data") / "phantoms", patients=150, seed=3, resolution=64)


@pytest.fixture
def spoilt(phantoms, tmp_path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "spoilt"))


@pytest.fixture(scope="session")
def cxr() -> Path:
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "cxr"
    folder = Path(os.environ.get("PEFT_PARETO_CXR", beside))
    if not folder.is_dir():
        pytest.skip(f"real X-rays are missing: no folder {folder} (set PEFT_PARETO_CXR)")
    return folder
