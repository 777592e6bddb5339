"""Data folders for these tests: small phantoms, and a copy of them that may be spoilt."""

from __future__ import annotations

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
