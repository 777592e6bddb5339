"""The compose file and the Dockerfile, read rather than run: no Docker engine is needed."""

from __future__ import annotations

import re
import shlex
import threading
import tomllib
from pathlib import Path
from typing import Any

import finished_study
import pytest
import yaml
from commands import FLAG, flags_of

from hpo import worker
from hpo.settings import from_command_line
from storage.engine import normalise

VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolated(value: str, **environment: str) -> str:
    """As compose does it: ${NAME:-default} and ${NAME:?message}; KeyError where a variable must be set and is not."""
    def one(match: re.Match) -> str:
        name, kind, rest = match.groups()
        return environment[name] if kind != "-" else environment.get(name, rest)

    return VARIABLE.sub(one, value)


def command_of(service: dict[str, Any], **environment: str) -> tuple[str, list[str]]:
    """The module and its arguments."""
    words = shlex.split(interpolated(service["command"], **environment))
    assert words[:2] == ["python", "-m"]
    return words[2], words[3:]


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    return yaml.safe_load((repository / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def ours(compose: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in compose["services"].items() if name != "db"}


def test_the_database_is_postgres_18_with_a_health_check_and_a_volume(compose: dict[str, Any]) -> None:
    db = compose["services"]["db"]
    assert db["image"] == "postgres:18"
    assert [volume.split(":") for volume in db["volumes"]] == [["database", "/var/lib/postgresql"]]
    assert "database" in compose["volumes"]
    check = db["healthcheck"]["test"]
    assert check[:2] == ["CMD", "pg_isready"] and "--host=127.0.0.1" in check
    assert f"--dbname={db['environment']['POSTGRES_DB']}" in check and f"--username={db['environment']['POSTGRES_USER']}" in check


def test_no_password_is_in_the_file_and_none_may_be_missing(repository: Path, compose: dict[str, Any]) -> None:
    secrets = [value for service in compose["services"].values() for name, value in service["environment"].items() if "PASSWORD" in name]
    assert len(secrets) == 4
    for secret in secrets:
        assert interpolated(secret, POSTGRES_PASSWORD="x") == "x"
        with pytest.raises(KeyError):
            interpolated(secret)
    for file in ("docker-compose.yml", "docs/docker-compose.gpu.yml", "Dockerfile"):
        assert not re.search(r"://[^\s/@:]+:[^\s/@]+@", (repository / file).read_text()), "a URL with a password"
    assert "/.env" in (repository / ".gitignore").read_text().split()


def test_ports_are_open_on_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [interpolated(port) for service in compose["services"].values() for port in service.get("ports", ())]
    assert sorted(ports) == ["127.0.0.1:5432:5432", "127.0.0.1:8080:8080"]


def test_data_and_models_are_mounted_read_only(ours: dict[str, Any]) -> None:
    for service in ours.values():
        mounts = {interpolated(volume).split(":")[1]: interpolated(volume).split(":")[2:] for volume in service["volumes"]}
        assert mounts == {"/state": [], "/data": ["ro"], "/models": ["ro"]}


def test_every_command_waits_for_the_database_and_has_flags_that_exist(ours: dict[str, Any]) -> None:
    assert set(ours) == {"launch", "worker", "dashboard"}
    for name, service in ours.items():
        assert service["depends_on"] == {"db": {"condition": "service_healthy"}}
        module, arguments = command_of(service)
        assert module == f"hpo.{name}"
        used = {word for word in arguments if word.startswith("-")}
        assert used and used <= flags_of(module)
        assert normalise(arguments[arguments.index("--storage") + 1]).endswith("://peft_pareto@db:5432/peft_pareto")


def test_launch_takes_what_the_user_sets(ours: dict[str, Any]) -> None:
    assert from_command_line(command_of(ours["launch"])[1], "launch", "").trials == 20
    _, arguments = command_of(ours["launch"], STUDY="mine", SEARCH_FLAGS="--trials 5 --data /data --model /models/sd --encoder /models/clip")
    settings = from_command_line(arguments, "launch", "")
    assert (settings.study, settings.trials, settings.data, settings.model) == ("mine", 5, "/data", "/models/sd")


def test_workers_can_be_scaled(ours: dict[str, Any]) -> None:
    assert not {"container_name", "ports", "hostname"} & set(ours["worker"])
    assert float(command_of(ours["worker"])[1][-1]) > 0, "seconds to wait for launch to start the study"


def test_gpus_are_given_to_services_that_exist(repository: Path, ours: dict[str, Any]) -> None:
    extra = yaml.safe_load((repository / "docs/docker-compose.gpu.yml").read_text())["services"]
    assert set(extra) == {"launch", "worker"} <= set(ours)
    assert all(service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"] for service in extra.values())


def test_the_image_gets_all_packages_and_nothing_private(repository: Path) -> None:
    copied = {word for line in (repository / "Dockerfile").read_text().splitlines() if line.startswith("COPY") for word in line.split()[1:-1]}
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied == packages | {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    allowed = {line[1:] for line in (repository / ".dockerignore").read_text().split() if line.startswith("!")}
    assert allowed == copied
    assert all((repository / name).exists() for name in copied)


def test_the_manual_in_the_compose_file_names_real_flags(repository: Path) -> None:
    notes = "\n".join(line for line in (repository / "docker-compose.yml").read_text().splitlines() if line.startswith("#"))
    assert set(FLAG.findall(notes)) == {"--build", "--scale"}  # of docker compose


def test_a_worker_waits_until_the_study_is_there() -> None:
    url = finished_study.new_database()
    waiting = threading.Thread(target=worker.wait_for_study, args=(url, "late", 600.0))
    waiting.start()
    waiting.join(2.0)
    assert waiting.is_alive()
    finished_study.begin(url, "late", 1).store.close()
    waiting.join(30.0)
    assert not waiting.is_alive(), "long before it would have given up"


def test_a_worker_does_not_wait_for_ever() -> None:
    waiting = threading.Thread(target=worker.wait_for_study, args=(finished_study.new_database(), "never", 0.5), daemon=True)
    waiting.start()
    waiting.join(30.0)
    assert not waiting.is_alive()
