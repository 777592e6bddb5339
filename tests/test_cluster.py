"""docs/cluster.md against the code: its commands exist, its flags are known, and what it says in other languages can be read."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import blocks, check_shell_lines, flags_of, help_of, modules, unknown_flags

PAGE = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
OTHERS = {"--head", "--port", "--address", "--disable-usage-stats", "--generate",  # of ray
          "--job-name", "--array", "--time", "--signal", "--requeue", "--gpus", "--cpus-per-task", "--mem", "--output"}  # of sbatch


@pytest.mark.parametrize("module", modules(PAGE))
def test_every_command_exists_and_answers_help(module: str) -> None:
    assert "usage" in help_of(module).lower()


def test_flags_in_commands_are_those_of_the_command() -> None:
    assert check_shell_lines(PAGE) >= 4


def test_every_flag_in_the_text_is_known() -> None:
    assert not unknown_flags(PAGE, OTHERS)


def test_flags_of_ray_start_are_known_to_the_installed_ray() -> None:
    from ray.scripts.scripts import start

    known = {flag for parameter in start.params for flag in parameter.opts}
    used = {flag for line in PAGE.splitlines() if line.startswith("ray start") for flag in re.findall(r"--[a-z-]+", line)}
    assert used and used <= known


def test_scripts_are_ones_for_the_shell() -> None:
    for language, body in blocks(PAGE):
        if language == "bash":
            subprocess.run(["bash", "-n"], input=body, text=True, check=True)


def test_pods_run_a_worker_with_flags_that_exist() -> None:
    (job,) = [yaml.safe_load(body) for language, body in blocks(PAGE) if language == "yaml"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "hpo.worker"]
    assert {word for word in container["command"] if word.startswith("--")} <= flags_of("hpo.worker")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}


def test_sections_that_it_links_to_are_there() -> None:
    titles = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, flags=re.MULTILINE)}
    linked = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert linked and linked <= titles
