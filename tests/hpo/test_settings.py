"""Settings: one table for flags, TOML and Python, and a line for every mistake."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from hpo.command import OUR_ERRORS
from hpo.errors import BadSetting
from hpo.settings import LARGEST, Settings, from_command_line, read_toml


def given(*words: str) -> Settings:
    return from_command_line(list(words), "python -m hpo.launch", "a description")


def refusal(*words: str) -> str:
    """The line with which these flags are refused."""
    with pytest.raises(OUR_ERRORS) as refused:
        given(*words)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_without_flags_the_defaults_hold() -> None:
    assert given() == Settings()


def test_settings_go_to_toml_and_back(tmp_path) -> None:
    chosen = Settings(trials=7, study='a "name" with \\ and 🩻', objectives="kid,loss_gap", reward_weight=0.25, train_images=40, keep="all", baselines=False)
    lines = [f"{name} = '{value}'" if isinstance(value, str) else f"{name.replace('_', '-')} = {str(value).lower()}"
             for name, value in chosen.to_json().items() if value is not None]
    (tmp_path / "all.toml").write_text("[anything]\n" + "\n".join(lines), encoding="utf-8")
    assert given("--config", str(tmp_path / "all.toml")) == chosen
    assert Settings.from_json(chosen.to_json()) == chosen


def test_flags_win_over_the_file_even_where_they_say_the_default(tmp_path) -> None:
    (tmp_path / "some.toml").write_text("trials = 7\nsteps = 80\nguidance_scale = 3\n")
    chosen = given("--config", str(tmp_path / "some.toml"), "--trials", str(Settings().trials), "--guidance-scale=2")
    assert (chosen.trials, chosen.steps, chosen.guidance_scale) == (Settings().trials, 80, 2.0)


@pytest.mark.parametrize(("text", "words"), [
    ("trails = 5", "'trails' is unknown: take trials"), ("trials = 'five'", "trials = 'five': it must be a whole number"),
    ("baselines = 1", "baselines = 1: it must be true or false, write it so"), ("baselines = 'no'", "true or false"), ("no_baselines = true", "is unknown"),
    ("trials = 5.0", "a whole number"), ("trials = true", "a whole number"), ("guidance_scale = 'x'", "a number"), ("study = 5", "text in quotes"),
    ("trials 5", "not TOML"), ("trials = 5\ntrials = 6", "not TOML"), ("[a]\ntrials = 5\n[b]\ntrials = 6", "there twice"),
    ("[a.b]\ntrials = 5", "'b' is unknown"), ("trials = 0", "at least 1")])
def test_what_is_wrong_with_a_file_is_one_line(text: str, words: str, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    assert words in (said := refusal("--config", str(tmp_path / "bad.toml")))
    assert "bad.toml" in said or "--trials" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    assert "No such file" in refusal("--config", str(tmp_path / "none.toml")) and "directory" in refusal("--config", str(tmp_path))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSetting, match="not TOML"):
        read_toml(tmp_path / "binary.toml")


@pytest.mark.parametrize(("words", "says"), [
    (("--trials", "0"), "--trials 0: it must be at least 1"), (("--trials=-3",), "at least 1"), (("--trials", "abc"), "'abc' is no whole number"),
    (("--trials", "1.5"), "no whole number"), (("--trials",), "expected one argument"), (("--trials", str(LARGEST + 1)), "at most"),
    (("--trails", "5"), "'--trails' is no flag of python -m hpo.launch: take --trials"), (("five",), "'five' is no flag"),
    (("--batch-size", "0"), "--batch-size 0: it must be at least 1"), (("--workers", "0"), "leave the flag out"), (("--train-images", "9"), "at least 10"),
    *(((f"--resolution={size}",), f"--resolution {size}: it must be pixels a side, as 512, or WIDTHxHEIGHT, as 448x512, each at least 1")
      for size in ("0", "x", "", "500x", "0x64", "64x64x64", "-64", "-64x64", "6.4", "99999")), (("--resolution", "-64x64"), "expected one argument"),
    (("--seed=-1",), "at least 0"), (("--generated", "5"), "at least 20"), (("--steps", "0"), "at least 1"),
    (("--reward-weight", "1.5"), "0 to 1"), (("--reward-weight", "nan"), "0 to 1"), (("--guidance-scale", "inf"), "above 0, from 1e-09 to 2147483647"),
    (("--learning-rate-scale", "0"), "above 0"), (("--gpus-per-trial", "1.5"), "whole number of GPUs"), (("--gpus-per-trial", "0.5"), "add --engine ray"),
    (("--ray-address", "auto"), "add --engine ray"), (("--gpus-per-trial", "0"), "a share from 0.0001 to 1 or a whole number"), (("--engine", "ray", "--gpus-per-trial", "1e-5"), "from 0.0001 to 1"),
    *(((f"--{name}=",), f"--{name} '': it is empty") for name in ("require", "methods", "objectives", "enqueue", "warm-start", "out", "checkpoints", "data", "model", "encoder")),
    *(((f"--require={text}",), f"--require {text!r}: an item between its commas is empty") for text in (",", "fd<=1,", "fd<=1, ,kid<=3")),
    (("--objectives", "fd,,copy_excess"), "leave the comma out"), (("--ray-address=", "--engine=ray"), "it is empty"),
    (("--hours", "1e305"), "--hours 1e+305: it must be above 0, from 1e-09 to 2147483647, give"), (("--learning-rate-scale", "1e-320"), "above 0, from 1e-09"),
    (("--learning-rate-scale", "1e308"), "to 2147483647"), (("--noise-offset", "1e39"), "at most 2147483647"), (("--max-memory", "1e300TB"), "above 0 and finite"),
    (("--objectives", "fid,copy_excess"), "'fid' is unknown: take"), (("--sampler", "tpee"), "'tpee' is unknown: take tpe"),
    (("--space", "defualt"), "'defualt' is unknown: take default"), (("--space", "none.toml"), "--space none.toml: it cannot be read"),
    (("--methods", "loar"), "--methods 'loar' is unknown: take lora"), (("--protects", "weight"), "--protects 'weight' is unknown: take weights"),
    (("--baselines", "maybe"), "--baselines: 'maybe' is neither true nor false"), (("--no-baselines=no",), "--no-baselines: ignored explicit argument 'no'"),
    (("--methods", "lora", "--space", "memcontrol-attention"), "has methods of its own, leave the flag out or take --space default"), (("--engine", "rya"), "'rya' is unknown: take ray"),
    (("--optimizer", "adam"), "'adam' is unknown: take adamw"), (("--schedule", "cosin"), "'cosin' is unknown: take cosine"), (("--warmup-steps=-1",), "at least 0"),
    (("--caption-dropout", "1.1"), "0 to 1"), (("--caption-dropout", "nan"), "0 to 1"), (("--ema-decay", "1"), "between 0 and 1"),
    (("--ema-decay", "0"), "leave the flag out"), (("--noise-offset=-0.1",), "at least 0"), (("--noise-offset", "inf"), "at most 2147483647"),
    (("--max-grad-norm", "0"), "above 0"), (("--min-snr-gamma", "0"), "above 0"), (("--min-snr-gamma", "nan"), "above 0"), (("--accumulate", "0"), "at least 1"),
    (("--accumulate", "9", "--batch-size", "8"), "a batch of 8 has no so many parts, take at most 8"), (("--held-out-every=-1",), "at least 0"),
    (("--checkpoint-every=-1",), "at least 0"), (("--evaluated-rungs", "4"), "there are 3 rungs, take at most as many, or give --rungs 4"), (("--gradient-checkpointing", "maybe"), "neither true nor false"),
    *(((f"--stalled-after={minutes}",), "take a number of minutes from 1 to 1440") for minutes in ("0", "0.5", "-3", "1e9", "inf", "nan")),
    (("--keep", "fronts"), "'fronts' is unknown: take front"), (("--precision", "fp8"), "'fp8' is unknown: take fp"),
    (("--device", "gpu"), "--device 'gpu' is unknown"), (("--engine", "ray", "--device", "cuda:1"), "Ray that chooses"), (("--study", "  "), "1 to 200"),
    (("--study", "a\nb"), "control characters"), (("--study", "x" * 201), "1 to 200"), (("--study", "\udc80"), "control characters"),
    (("--model", "/a"), "needs an --encoder of your own")])
def test_a_bad_flag_is_one_line_with_value_and_way_out(words: tuple[str, ...], says: str) -> None:
    assert says in refusal(*words)


@pytest.mark.parametrize(("text", "says"), [(f"trials = {10**400}", "setting trials: it is a number of 1329 bits"), (f"hours = {10**400}", "setting hours: it is a number"),
                                            (f"trials = {'9' * 5000}", "it is not TOML"), (f"trials = {'[' * 100_000}", "it is not TOML")])
def test_a_file_with_numbers_or_brackets_without_end_is_refused_in_a_line(text: str, says: str, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text(text + "\n")
    assert says in refusal("--config", str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(("words", "kept"), [((), None), (("--resolution", "512"), 512), (("--resolution=512x512",), 512), (("--resolution=448x512",), "448x512"),
                                             (("--resolution=0448x0512",), "448x512")])
def test_a_size_has_one_spelling_wherever_it_is_given(words: tuple[str, ...], kept: int | str | None, tmp_path) -> None:
    chosen = given(*words)
    assert chosen.resolution == kept and type(chosen.resolution) is type(kept)
    assert Settings.from_json(chosen.to_json()) == chosen == replace(Settings(), resolution=kept)
    for written in (word.partition("=")[2] or word for word in words[-1:]):
        (tmp_path / "size.toml").write_text(f"resolution = '{written}'\n")
        assert given("--config", str(tmp_path / "size.toml")) == chosen
    if isinstance(kept, int):
        (tmp_path / "number.toml").write_text(f"resolution = {kept}\n")
        assert given("--config", str(tmp_path / "number.toml")) == chosen


def test_a_square_size_means_what_it_always_meant() -> None:
    """Keys of what is cached, and what studies are compared by: a number, or nothing."""
    assert Settings().meaning()["resolution"] is None
    assert json.dumps(Settings(resolution="512x512").meaning()) == json.dumps(Settings(resolution=512).meaning()) and Settings(resolution=512).meaning()["resolution"] == 512


@pytest.mark.parametrize("value", ["1.5", "true", "[448, 512]"])
def test_a_size_of_another_type_in_a_file(value: str, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text(f"resolution = {value}\n")
    assert "resolution = " in (said := refusal("--config", str(tmp_path / "bad.toml"))) and "a whole number" in said


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b"', "with spaces", "🩻👩‍⚕️", "slash/../x", "-dash", "naïve 中文", "%s {x} [bold]"])
def test_any_readable_study_name_is_taken(name: str) -> None:
    assert given(f"--study={name}").study == name


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:3", "mps"])
def test_devices_are_taken_as_torch_names_them(device: str) -> None:
    assert given("--device", device).device == device


def test_every_setting_is_one_of_what_means_something_or_may_change() -> None:
    means = set(Settings().meaning())
    free = {each.name for each in fields(Settings)} - means
    assert free == {"trials", "study", "storage", "model", "encoder", "data", "space", "baselines", "sampler", "engine", "workers", "gpus_per_trial", "ray_address", "device",
                    "keep", "out", "accumulate", "gradient_checkpointing", "held_out_every", "checkpoint_every", "checkpoints", "hours", "until_stable", "pruner",
                    "stop_confidence", "evaluated_rungs", "stalled_after", "warm_start", "enqueue"}, "model, encoder, data and space are compared by content"


@pytest.mark.parametrize(("words", "says"), [((), True), (("--baselines",), True), (("--no-baselines",), False), (("--baselines", "false"), False),
                                             (("--baselines=True",), True), (("--baselines", "NO"), False), (("--no-baselines", "--baselines"), True)])
def test_what_is_on_or_off_is_a_flag(words: tuple[str, ...], says: bool, tmp_path) -> None:
    assert given(*words).baselines is says
    (tmp_path / "off.toml").write_text("baselines = false\n")
    assert given("--config", str(tmp_path / "off.toml"), *words).baselines is (says if words else False)


def test_from_python_the_types_are_checked_too() -> None:
    with pytest.raises(BadSetting, match="trials = '3': it must be a whole number"):
        replace(Settings(), trials="3").check()
    with pytest.raises(BadSetting, match="'nope' is unknown"):
        Settings.from_json({"nope": 1})
    assert Settings.from_json({"guidance_scale": 2, "workers": None}).check()


def test_a_ready_file_asks_for_a_model() -> None:
    assert refusal("--config", "sd15") == "--config sd15: it is for a model of yours, give --model DIR"
    assert given("--config", "sd15", "--model", "a", "--encoder", "pixels").resolution == 512
