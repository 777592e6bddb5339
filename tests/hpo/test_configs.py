"""The ready settings: found by name, allowed, and what their comments say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import BadSetting
from hpo.settings import READY, from_command_line, from_toml, ready
from trainers.methods import METHODS

NAMES = ("sd15", "sd15-256")


def given(*words: str):
    return from_command_line(list(words), "python -m hpo.launch", "a description")


def test_these_are_there():
    assert tuple(sorted(file.stem for file in READY.glob("*"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_usable_with_a_model_and_an_encoder_of_the_user_s(name):
    chosen = given("--config", name, "--model", "model", "--encoder", "clip", "--data", "data")
    assert chosen.precision == "bf16" and chosen.resolution in (512, 256) and chosen.model == "model"
    with pytest.raises(BadSetting, match="--encoder of your own"):
        given("--config", name, "--model", "model")


def test_flags_win_and_the_two_differ_in_size():
    assert given("--config", "sd15", "--model", "a", "--encoder", "pixels", "--steps", "7").steps == 7
    large, small = (from_toml(Path(name)).to_json() for name in NAMES)
    assert {key for key in large if large[key] != small[key]} == {"resolution", "batch_size"}
    assert (large["resolution"], small["resolution"]) == (512, 256)


def test_the_published_learning_rates_are_in_reach():
    """Of the reference code's configuration for Stable Diffusion v1.5: full 5e-5, attention 1e-4, bias 5e-4 (only nearly), norm and svdiff 1e-4."""
    scale = from_toml(Path("sd15")).learning_rate_scale
    for method, rate in {"full": 5e-5, "attention": 1e-4, "norm": 1e-4, "svdiff": 1e-4}.items():
        low, high = METHODS[method].learning_rates
        assert low * scale <= rate <= high * scale, method


@pytest.mark.parametrize("name", ["sd51", "sd15-25", "x"])
def test_an_unknown_name_gets_the_known_ones(name):
    with pytest.raises(BadSetting) as refused:
        given("--config", name)
    assert f"--config {name}: there is no such file" in str(refused.value) and all(known in str(refused.value) for known in NAMES)
    assert "\n" not in str(refused.value)


def test_a_file_of_that_name_wins_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd15-256").mkdir()
    (tmp_path / "sd15").write_text("steps = 3\n")
    assert from_toml(Path("sd15")).steps == 3 and from_toml(Path("sd15-256")).resolution == 256
    assert ready(Path("sd15.toml")) == Path("sd15.toml")  # a name with a suffix is a file's


def test_the_help_names_them(capsys):
    with pytest.raises(SystemExit):
        given("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "sd15, sd15-256" in said
