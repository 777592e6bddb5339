"""An install that is not editable, used from another folder: all files are in the wheel, and folders of the user's hide none of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("hpo", "metrics", "storage", "trainers")
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
LONGEST = 400.0  # seconds that a command may take
SMALL = ("--trials", "1", "--steps", "2", "--rungs", "1", "--train-images", "12", "--generated", "20", "--sampling-steps", "2", "--workers", "1")


def pip(*arguments: str | Path, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a wheel of this repository was installed to."""
    for package, name in (("setuptools", "setuptools>=77"), ("pip", "pip")):
        pytest.importorskip(package, reason=f"no {name} in this environment: pip install '.[test]'")
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"  # setuptools builds in the source tree, where old files of a former build would come along
    for name in PACKAGES:
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(repository / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    pip("install", "--no-deps", "--no-index", "--target", folder / "target", wheel, cwd=folder)
    shutil.rmtree(source)
    return folder / "target"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working folder with folders named like our packages, as a user's project may have."""
    for name in PACKAGES:
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "notes.txt").write_text("mine")
    return tmp_path / "project"


@pytest.fixture
def home(installed: Path, elsewhere: Path) -> Iterator[str]:
    """A data folder that nothing was done in yet; short, since a socket's path has 107 characters."""
    folder = tempfile.mkdtemp(prefix="pp-new-")
    yield folder
    run(installed, elsewhere, "-m", "storage", "stop", PEFT_PARETO_HOME=folder)
    shutil.rmtree(folder, ignore_errors=True)


def run(installed: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "PYTHONPATH": str(installed), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=variables, timeout=LONGEST)


def files_of(folder: Path, package: str) -> set[str]:
    return {str(file.relative_to(folder)) for file in (folder / package).rglob("*") if file.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in file.relative_to(folder).parts)}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wheel_has_every_file_of_the_source(repository: Path, installed: Path, package: str) -> None:
    there = files_of(repository, package)
    assert there and files_of(installed, package) == there


def test_sql_words_and_the_miniature_are_found(repository: Path, installed: Path, elsewhere: Path) -> None:
    code = ("import hpo, trainers.base_model as model; from trainers.miniature import vocabulary; from storage import resources; "
            "print(hpo.__file__, model.MINIATURE, model.MINIATURE_ENCODER, sep='\\n'); "
            "assert all(resources.text_of(name) for name in resources.SCRIPTS); "
            "assert resources.text_of('0001_tables.sql', 'migrations/versions')")
    ended = run(installed, elsewhere, "-c", code)
    assert ended.returncode == 0, ended.stderr
    found = [Path(line) for line in ended.stdout.splitlines()]
    assert all(path.is_relative_to(installed) for path in found)
    assert (installed / "trainers" / "miniature" / "words.txt").stat().st_size > 0
    for folder in found[1:]:
        source = repository / folder.relative_to(installed)
        assert folder.is_dir() == source.is_dir()
        assert files_of(installed, str(folder.relative_to(installed))) == files_of(repository, str(folder.relative_to(installed)))


@pytest.mark.parametrize("module", ["hpo.launch", "hpo.worker", "hpo.front", "hpo.dashboard", "storage"])
def test_commands_run_beside_folders_of_the_same_names(installed: Path, elsewhere: Path, module: str) -> None:
    ended = run(installed, elsewhere, "-m", module, "--help")
    assert ended.returncode == 0 and "usage" in ended.stdout.lower(), ended.stderr
    assert ended.stderr == ""


@pytest.mark.slow
def test_a_first_launch_works_with_the_bundled_model_and_data(installed: Path, elsewhere: Path, home: str) -> None:
    launched = run(installed, elsewhere, "-m", "hpo.launch", *SMALL, PEFT_PARETO_HOME=home)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    front = run(installed, elsewhere, "-m", "hpo.front", "--format", "json", PEFT_PARETO_HOME=home)
    assert front.returncode == 0, front.stderr
    (row,) = json.loads(front.stdout)
    assert row["trial"] == 0 and row["steps"] == 2
    stopped = run(installed, elsewhere, "-m", "storage", "stop", PEFT_PARETO_HOME=home)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n"), stopped.stderr


@pytest.mark.parametrize("decoy", ["metrics/__init__.py", "metrics.py", "storage.py"])
def test_a_package_of_the_users_that_hides_ours_is_one_line_with_the_way_out(installed: Path, tmp_path: Path, decoy: str) -> None:
    (tmp_path / decoy).parent.mkdir(exist_ok=True)
    (tmp_path / decoy).write_text("mine = True\n")
    hidden = run(installed, tmp_path, "-m", "hpo.front", "--help")
    assert hidden.returncode == 1 and hidden.stderr.count("\n") == 1
    assert str(tmp_path / decoy) in hidden.stderr and "PYTHONSAFEPATH=1" in hidden.stderr
    assert run(installed, tmp_path, "-m", "hpo.front", "--help", PYTHONSAFEPATH="1").returncode == 0
