"""The walls of the house: who may import whom, what lies at the top, nothing of the machine that wrote it, and a light start."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("hpo", "trainers", "metrics", "storage")
MAY_IMPORT = {"trainers": {"trainers"}, "metrics": {"metrics"}, "storage": {"storage"}, "hpo": set(PACKAGES)}
TOP_LEVEL = {"pyproject.toml", "hpo", "trainers", "metrics", "storage", "docker-compose.yml", "Dockerfile", "tests", "README.md", "benchmarks",
             "docs", ".ci", "LICENSE", "CITATION.cff", ".gitignore", ".dockerignore"}
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:" + "|".join(("work", "home", "root", "Users", "tmp")) + r")/\w|[A-Z]:\\Users")
CONTAINER = ("Dockerfile", "docker-compose")  # what such files name are paths of a container
BINARY = {".png", ".jpg", ".jpeg", ".gif", ".safetensors", ".gz", ".zip", ".ico", ".npz"}
LIGHT = ("hpo.settings", "hpo.launch", "storage", "metrics.scores")


def files(repository: Path) -> list[Path]:
    """What is in the repository or would be added to it, by git itself."""
    asked = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=repository, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"this is no git checkout that git will read: {asked.stderr.strip()}")
    return [repository / name for name in asked.stdout.split("\0") if name and (repository / name).is_file()]


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names of all imports in a module, also those inside functions; relative ones begin with their package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{package}.{node.module or ''}" if node.level else node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            if ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
                yield node.args[0].value


def strangers(source: str, package: str) -> list[str]:
    return [name for name in imported(source, package) if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY_IMPORT[package]]


@pytest.mark.parametrize("package", PACKAGES)
def test_import_direction(repository, package):
    modules = sorted((repository / package).rglob("*.py"))
    assert modules
    found = {str(module.relative_to(repository)): strangers(module.read_text(encoding="utf-8"), package) for module in modules}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.parametrize("source, found", [
    ("import hpo.study", ["hpo.study"]), ("def f():\n    from metrics import scores", ["metrics"]), ("import torch, storage as s", ["storage"]),
    ("from importlib import import_module\nimport_module('hpo.table')", ["hpo.table"]), ("from . import units\nimport trainers.fit", []),
    ("import metricsutil", [])])
def test_the_check_sees_every_way_to_import(source, found):
    assert strangers(source, "trainers") == found


def test_nothing_else_lies_at_the_top(repository):
    assert {path.relative_to(repository).parts[0] for path in files(repository)} - TOP_LEVEL == set()


def test_no_file_names_a_path_of_a_machine(repository):
    found = []
    for path in files(repository):
        if path.suffix in BINARY or path.name.startswith(CONTAINER):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(repository)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize("parts, machine", [
    (("", "home", "ann", "data"), True), (("", "work", "main"), True), (("", "Users", "ann"), True), (("x = '", "tmp", "out'"), True),
    (("https:", "", "github.com", "home", "x"), False), (("~", "work", "x"), False), (("", "var", "lib", "postgresql"), False), (("docs", "home", "x"), False)])
def test_the_check_knows_a_path_of_a_machine(parts, machine):
    assert bool(MACHINE_PATH.search("/".join(parts))) == machine


@pytest.mark.parametrize("module", LIGHT)
def test_a_start_loads_no_torch(repository, module):
    """A command that only reads flags or the database must answer at once."""
    code = f"import sys, {module}; print(sorted({{'torch', 'diffusers', 'transformers', 'ray', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
