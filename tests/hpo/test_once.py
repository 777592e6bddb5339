"""`python -m hpo.once`: one trial as a study would run it, with scores where there are pictures enough, and without a database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launching import flags
from PIL import Image

from hpo.command import one_line_errors
from hpo.inner_loop import InnerLoop
from hpo.once import applied_of, candidate_of, checked, main, once
from hpo.settings import LEAST, Settings
from hpo.spaces.reference import reference_candidate
from trainers import base_model, checkpoint
from trainers.candidate import Applied
from trainers.methods import METHODS
from trainers.mitigations import MITIGATIONS
from trainers.units import REGIONS, walk

NONE = dict.fromkeys(("regions", "kinds", "rank", "alpha", "learning_rate", "norm_rate", "mitigations"))


def of_once(settings: Settings) -> list[str]:
    """The command line of these settings, without what is a study's."""
    known = ("model", "encoder", "data", "resolution", "train-images", "steps", "batch-size", "generated", "sampling-steps", "device", "out", "seed")
    return [word for word in flags(settings) if word.split("=")[0].removeprefix("--") in known]


@pytest.fixture
def few(settings) -> Settings:
    """Two pictures to learn from, two to generate."""
    return settings(train_images=2, generated=2, steps=2, batch_size=2)


@pytest.mark.parametrize("method", ["bias", "svdiff"])
def test_a_trial_of_two_steps_and_two_pictures(few, method):
    candidate = reference_candidate(method, 2)
    report = once(few, candidate)
    assert report.scores is None and "--generated 2 is below 20" in report.unscored
    assert report.trainable_share == pytest.approx(report.trainable / 803_204) and 0 < report.loss < 100
    assert {"training", "generating", "total"} <= set(report.seconds) and report.seconds["total"] >= report.seconds["training"] > 0
    assert report.memory["device"] is None and 100e6 < report.memory["host"] < 100e9
    pixels = [np.asarray(Image.open(file)) for file in report.pictures]
    assert [each.shape for each in pixels] == [(64, 64)] * 2 and not np.array_equal(*pixels)
    kept = checkpoint.read(Path(report.weights))
    assert kept.candidate == candidate and kept.base == base_model.content_hash(few.model)
    assert sum(tensor.numel() for tensor in kept.tensors.values()) == report.trainable
    written = json.loads((Path(few.out) / "trial.json").read_text())
    assert written["trainable"] == report.trainable and written["words"] == candidate.words and written["hash"] == candidate.hash


@pytest.mark.parametrize("method", ["bias", "lora"])
def test_a_trial_of_pictures_that_are_not_square(few, method, capsys):
    assert main([*of_once(replace(few, resolution="56x72")), "--method", method, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["loss"] < 100 and [Image.open(file).size for file in found["pictures"]] == [(56, 72)] * 2


def test_the_same_trial_again_gives_the_same(few, tmp_path):
    first, second = (once(replace(few, out=str(tmp_path / name)), reference_candidate("bias", 2)) for name in "ab")
    assert first.loss == second.loss
    assert [Path(file).read_bytes() for file in first.pictures] == [Path(file).read_bytes() for file in second.pictures]


def test_with_pictures_enough_it_is_a_trial_of_a_study(settings, capsys):
    """The same scores to the last digit as the study's first trial of that candidate would have."""
    chosen = settings()
    report = once(chosen, reference_candidate("norm", 4))
    expected = InnerLoop(chosen, "cpu").evaluate(reference_candidate("norm", 4), 0)
    assert report.unscored is None and report.loss == expected.training_loss
    assert report.scores == {name: (each.value, each.low, each.high) for name, each in expected.scores.items()}
    assert len(report.pictures) == len(expected.pictures)
    lines = "\n".join(report.lines())
    assert "norm tuning on norm of all blocks" in lines and "fd " in lines and "GiB" in lines


def test_the_command_prints_json(few, capsys):
    assert main([*of_once(few), "--method", "lora", "--regions", "up,resolution/2", "--kinds", "attention-q", "--rank", "3", "--alpha", "6",
                 "--learning-rate", "1e-3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["candidate"]["parts"] == [{"regions": ["up", "resolution/2"], "kinds": ["attention-q"], "rank": 3, "alpha": 6.0}]
    assert found["candidate"]["learning_rate"] == 1e-3 and found["candidate"]["steps"] == 2 and found["scores"] is None
    unet = base_model.load(few.model).unet
    matrices = [unet.get_parameter(tensor) for tensor in walk(unet).select(("up", "resolution/2"), ("attention-q",))]
    assert found["trainable"] == sum(3 * sum(matrix.shape) for matrix in matrices) > 0


def test_the_command_prints_a_table_and_says_why_there_are_no_scores(few, capsys):
    assert main([*of_once(few), "--method", "bias"]) == 0
    said = capsys.readouterr()
    assert "scores" in said.out and "--generated 2 is below 20 and --train-images 2 is below 10" in said.out and "step 2 of 2" in said.err


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_is_as_in_the_baseline(method):
    given = {**NONE, "method": method}
    assert candidate_of(given, Settings(steps=7, learning_rate_scale=0.1)) == reference_candidate(method, 7, 0.1)


def test_what_is_given_replaces_it():
    candidate = candidate_of({**NONE, "method": "svdiff", "kinds": ("attention",), "learning_rate": 1e-3, "norm_rate": 1e-6}, Settings(steps=7))
    assert (candidate.parts[0].kinds, candidate.parts[0].regions) == (("attention",), REGIONS)
    assert (candidate.learning_rate, candidate.norm_rate, candidate.steps) == (1e-3, 1e-6, 7)


def test_mitigations_are_on_top_at_their_published_strength(few):
    candidate = candidate_of({**NONE, "method": "bias", "mitigations": ("rwa", "noise")}, few)
    assert [each.mitigation for each in candidate.mitigations] == ["rwa", "noise"]
    assert candidate.mitigations[0].strength == tuple(sorted((name, choices[0]) for name, choices in MITIGATIONS["rwa"].strengths.items()))
    plain, noisy = (once(few, each) for each in (replace(candidate, mitigations=()), candidate))
    assert plain.loss != noisy.loss


def test_a_mitigation_is_at_its_published_strength_or_at_one_of_one_s_own():
    assert applied_of("rwa") == Applied.of("rwa", words=2, probability=0.1)
    assert applied_of("rwa:words=4") == Applied.of("rwa", words=4, probability=0.1)


@pytest.mark.parametrize("name", ["generated", "train_images"])
def test_fewer_pictures_than_a_study_s_are_allowed_but_not_none(name):
    assert getattr(checked(Settings(**{name: LEAST[name] - 1})), name) == LEAST[name] - 1


@pytest.mark.parametrize("words, says", [
    ((), "--method: it is needed"), (("--method", "bia"), "method 'bia' is unknown: take bias"), (("--method", "bias", "--rank", "2"), "has no rank"),
    (("--method", "lora", "--norm-rate", "1e-3"), "--norm-rate 0.001: LoRA has no learning rate of its own for norms"),
    (("--method", "norm", "--kinds", "attention"), "kind 'attention' is not trained by norm tuning: take norm"), (("--method", "bias", "--alpha", "2"), "has no rank"),
    (("--method", "lora", "--rank", "0"), "--rank 0: it must be above 0"), (("--method", "lora", "--rank", "x"), "no whole number"),
    (("--method", "bias", "--device", "cuda:99"), "--device cuda:99: this machine cannot compute on it"),
    (("--method", "lora", "--rank", "5000"), "rank 5000"), (("--method", "bias", "--kinds", "biass"), "kind 'biass' is unknown: take bias"),
    (("--method", "bias", "--learning-rate=-1"), "above 0"),
    (("--method", "bias", "--learning-rate", "nan"), "above 0"), (("--method", "bias", "--generated", "0"), "--generated 0: it must be at least 1"),
    (("--method", "bias", "--mitigations", "rwa:words"), "--mitigations rwa:words: write rwa, or its numbers too, as rwa:words="),
    (("--method", "bias", "--mitigations", "rwa:word=2"), "word"), (("--method", "bias", "--mitigations", "rwa:words=78"), "words is 78.0 and must be a whole number from 1 to 77"),
    (("--method", "bias", "--mitigations", "rwaa"), "mitigation 'rwaa' is unknown: take rwa"), (("--method", "bias", "--steps", "0"), "--steps 0"), (("--method", "bias", "--model", "/a"), "needs an --encoder"),
    (("--method", "bias", "--model", "no/such/folder", "--encoder", "pixels"), "no such folder"), (("--method", "bias", "--trials", "3"), "'--trials' is no flag"),
    (("--method", "bias", "--resolution", "500x"), "--resolution 500x: it must be pixels a side, as 512, or WIDTHxHEIGHT"),
    (("--method", "bias", "--resolution", "64x65"), "--resolution 64x65: this model needs multiples of 8, take 64 or 64x72"),
    (("--method", "bias", "--mitigations="), "'' has an empty name"), (("--method", "bias", "--kinds", "bias,"), "'bias,' has an empty name"),
    (("--method", "bias", "--regions", "upp", "--generated", "2"), "region 'upp' is not in this U-Net")])
def test_a_mistake_is_one_line_and_status_2(words, says, data, tmp_path, capsys):
    more = () if "--trials" in words else (f"--data={data}", f"--out={tmp_path}", "--device=cpu", "--train-images=2")
    assert one_line_errors(lambda: main([*more, *words])) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and says in said[0], said


def test_too_few_pictures_in_the_folder(few, data):
    with pytest.raises(ValueError, match="usable pictures in its train split: lower it"):
        once(replace(few, train_images=100_000), reference_candidate("bias", 1))


def test_no_database_is_started(few, repository, tmp_path):
    """In a process with a home of its own."""
    done = subprocess.run([sys.executable, "-m", "hpo.once", *of_once(few), "--method", "bias", "--json"], cwd=repository, capture_output=True, text=True,
                          timeout=600, env={**os.environ, "PEFT_PARETO_HOME": str(tmp_path / "home")})
    assert done.returncode == 0 and json.loads(done.stdout)["trainable"] == 5636, done.stderr
    assert not (tmp_path / "home").exists() or {path.name for path in (tmp_path / "home").iterdir()} <= {"cache"}
