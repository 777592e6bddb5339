"""The lower level as a whole on a small model: mitigations in training and in scoring, the curve, a training that goes on, memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from math import isfinite

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hpo.inner_loop import InnerLoop, Result, memory_named
from hpo.settings import Settings
from hpo.spaces.reference import reference_candidate
from hpo.trial import is_own_cause
from hpo.tuning import Tuning
from metrics.scores import SCORES
from trainers import checkpoint
from trainers.candidate import Applied, Candidate
from trainers.errors import BadModel, BadSelection, NoMemory
from trainers.training import Training

BIAS = reference_candidate("bias", 4)
RWA, TOKENS = Applied.of("rwa-once", words=4), Applied.of("random-tokens", words=2)


@pytest.fixture(scope="module")
def settings(model, data) -> Settings:
    torch.set_num_threads(1)
    return Settings(model=str(model / "base"), encoder=str(model / "clip"), data=str(data), train_images=12, generated=20, steps=4, rungs=2, reduction=2,
                    batch_size=8, sampling_steps=2, device="cpu", held_out_every=2)


@pytest.fixture(scope="module")
def inner(settings) -> InnerLoop:
    return InnerLoop(settings, "cpu")


def tuned(inner: InnerLoop, candidate: Candidate, repeat: int = 0, **more) -> Result:
    with Tuning(inner, candidate, repeat, **more) as tuning:
        return tuning.to(candidate.steps)


def weights(inner: InnerLoop) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in inner.pipeline.unet.parameters()]


def test_a_result_has_the_curve_of_the_held_out_loss(inner: InnerLoop) -> None:
    result = inner.evaluate(BIAS, 0)
    assert list(result.curve) == [0, 2, 4] and all(len(point) == 2 and min(point) > 0 for point in result.curve.values())
    assert result.curve[4] != result.curve[0] and result.curve == inner.evaluate(BIAS, 0).curve


def test_each_step_of_training_and_denoising_and_each_batch_is_seen(inner: InnerLoop, settings: Settings) -> None:
    signs: list[int] = []
    with inner.seen_working(lambda: signs.append(1)):
        subset = inner.apply(BIAS, 0)
        with inner.training(BIAS, 0, subset, inner.learned("train", 0)) as training:
            training.run_to(4)
            assert len(signs) == 4
            with training.evaluating():
                inner.measure()
        subset.restore()
    batches = -(-settings.generated // settings.batch_size)
    assert len(signs) > 4 + 2 * batches * settings.sampling_steps + 2 * batches, "sampling, decoding; features and losses"
    before = len(signs)
    inner.evaluate(BIAS, 0)
    assert len(signs) == before, "no hook stays"


def test_the_curve_does_not_change_the_training(inner: InnerLoop, settings: Settings) -> None:
    without = InnerLoop(replace(settings, held_out_every=0), "cpu").evaluate(BIAS, 0)
    assert without.curve == {} and without.scores == inner.evaluate(BIAS, 0).scores


def test_a_mitigation_that_changes_captions_is_scored_both_ways_and_the_worse_counts(inner: InnerLoop) -> None:
    candidate = replace(BIAS, mitigations=(RWA,))
    learned = inner.learned("train", 5)
    written, heard = inner.measure_all(candidate, learned)[0]
    assert (written.train.features != heard.train.features).any() and (written.twin_losses != heard.twin_losses).any()
    worse = inner.scores([written, heard])
    for name, each in zip(("written", "heard"), (inner.scores([written]), inner.scores([heard]))):
        for score, estimate in each.items():
            sign = 1 if SCORES[score].direction == "minimize" else -1
            assert sign * worse[score].value >= sign * estimate.value, (name, score)
    assert len(inner.measure_all(replace(BIAS, mitigations=(Applied.of("threshold-quantile", quantile=0.9),)), learned)[0]) == 1


def test_a_mitigation_of_training_changes_the_training_and_nothing_else(inner: InnerLoop) -> None:
    before = weights(inner)
    plain, mitigated = inner.evaluate(BIAS, 0), inner.evaluate(replace(BIAS, mitigations=(RWA,)), 0)
    assert mitigated.training_loss != plain.training_loss and mitigated.trainable == plain.trainable
    assert all(torch.equal(one, other) for one, other in zip(before, weights(inner)))


def test_a_mitigation_of_outputs_needs_a_study_of_outputs(inner: InnerLoop, settings: Settings, monkeypatch) -> None:
    candidate = replace(BIAS, mitigations=(TOKENS,))
    with pytest.raises(BadSelection, match="random-tokens protects outputs.*--protects outputs"):
        inner.evaluate(candidate, 0)
    monkeypatch.setattr(InnerLoop, "training_seed", lambda self, candidate, repeat=0: 5)  # else each candidate has its own
    outputs = InnerLoop(replace(settings, protects="outputs"), "cpu")
    plain, guarded = outputs.evaluate(BIAS, 0), outputs.evaluate(candidate, 0)
    assert guarded.training_loss == plain.training_loss and (guarded.pictures != plain.pictures).any()
    assert guarded.scores["loss_gap"] == plain.scores["loss_gap"]  # the weights are what they were


def test_a_training_that_was_stopped_goes_on_to_the_same_scores(settings: Settings, tmp_path) -> None:
    inner = InnerLoop(replace(settings, checkpoint_every=1), "cpu")
    candidate, state = replace(BIAS, mitigations=(RWA,)), tmp_path / "state.safetensors"
    expected = inner.evaluate(candidate, 3)

    class Killed(BaseException):
        pass

    def stop_at(wanted: int) -> Callable[[str], None]:
        def on_stage(stage: str) -> None:
            if stage.startswith(f"step {wanted} "):
                raise Killed
        return on_stage

    with pytest.raises(Killed):
        tuned(inner, candidate, 3, on_stage=stop_at(3), state=state)
    seen: list[str] = []
    resumed = tuned(inner, candidate, 3, on_stage=seen.append, state=state)
    assert "step 1 of 4" not in seen and "step 4 of 4" in seen
    assert resumed.scores == expected.scores and resumed.training_loss == expected.training_loss
    assert list(resumed.curve) == [0, 2, 4] and resumed.curve == expected.curve, "also the points before the stop"


@pytest.mark.parametrize("spoil", ["another candidate's", "damaged"])
def test_a_state_that_is_of_no_use_is_deleted_aloud_and_the_trial_begins_anew(inner: InnerLoop, settings: Settings, tmp_path, caplog, spoil: str) -> None:
    keeping, state = InnerLoop(replace(settings, checkpoint_every=1), "cpu"), tmp_path / "state.safetensors"
    tuned(keeping, replace(BIAS, learning_rate=0.5), 3, state=state)
    if spoil == "damaged":
        state.write_bytes(state.read_bytes()[:-1])
    assert tuned(keeping, BIAS, 3, state=state).scores == inner.evaluate(BIAS, 3).scores
    assert "the training begins anew" in caplog.text and str(state) in caplog.text


def test_points_of_the_curve_are_told_as_they_come(inner: InnerLoop) -> None:
    told: list[tuple[int, float, float]] = []
    result = tuned(inner, BIAS, on_loss=lambda *point: told.append(point))
    assert {step: (train, twin) for step, train, twin in told} == result.curve and [step for step, *_ in told] == [0, 2, 4]


@pytest.mark.parametrize(("part", "tensor", "says"), [
    ("unet", "conv_in.weight", "its U-Net generates latents that are not finite before any training"),
    ("vae", "decoder.conv_in.weight", "the VAE decodes latents to pixels that are not finite")])
def test_a_model_that_gives_nan_is_refused(settings: Settings, model, tmp_path, part: str, tensor: str, says: str) -> None:
    folder = shutil.copytree(model / "base", tmp_path / "base")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    save_file({**tensors, tensor: torch.full_like(tensors[tensor], float("nan"))}, file, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=says) as refused:
        InnerLoop(replace(settings, model=str(folder)), "cpu")
    assert "take another copy" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["full", "bias", "lora", "svdiff"])
def test_low_precision_keeps_the_frozen_weights_in_it_and_trains_in_float32(settings: Settings, tmp_path, name: str) -> None:
    low = InnerLoop(replace(settings, precision="bf16"), "cpu")
    assert {parameter.dtype for parameter in low.pipeline.unet.parameters()} == {torch.bfloat16}
    before = weights(low)
    result = low.evaluate(reference_candidate(name, 4), 0, keep=tmp_path / "kept.safetensors")
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(before, weights(low)))
    kept = checkpoint.read(tmp_path / "kept.safetensors")
    assert kept.precision == "bf16" and {tensor.dtype for tensor in kept.tensors.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in kept.tensors.values()) == result.trainable and result.curve[4] != result.curve[0]


def test_out_of_memory_names_what_was_needed_and_the_flags(settings: Settings, inner: InnerLoop, monkeypatch) -> None:
    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nmore")

    before = weights(inner)
    monkeypatch.setattr(Training, "run_to", too_much)
    with pytest.raises(NoMemory, match=r"Tried to allocate 9.00 GiB\): raise --accumulate, add --gradient-checkpointing, "
                                       "or lower --batch-size 8, with another study name") as caught:
        inner.evaluate(BIAS, 0)
    assert "\n" not in str(caught.value) and BIAS.words in str(caught.value)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(inner)))
    with pytest.raises(RuntimeError, match="a bug"), memory_named(BIAS.words, settings):
        raise RuntimeError("a bug")


def test_a_full_main_memory_is_named_too(settings: Settings) -> None:
    """Torch says it in a plain RuntimeError, numpy in a MemoryError."""
    for ask in (lambda: torch.empty(1 << 60), lambda: np.empty(1 << 45)):
        with pytest.raises(NoMemory, match="out of memory with this and that .*lower --batch-size 8") as caught, memory_named("this and that", settings):
            ask()
        assert "\n" not in str(caught.value) and is_own_cause(caught.value)


@pytest.mark.parametrize("name", ["svdiff", "difffit"])
def test_the_papers_methods_give_scores(inner: InnerLoop, name: str) -> None:
    before = weights(inner)
    result = inner.evaluate(reference_candidate(name, 4), 0)
    assert set(result.scores) == set(SCORES) and 0 < result.trainable_share < 0.05
    assert all(torch.equal(one, other) for one, other in zip(before, weights(inner)))


@pytest.mark.parametrize("name", ["bias", "svdiff"])
def test_pictures_that_are_not_square_are_scored_whole(settings: Settings, tmp_path, name: str) -> None:
    """48 wide and 72 high: 9 × 6 latents, whose height the U-Net's halving does not divide."""
    tall = InnerLoop(replace(settings, resolution="48x72"), "cpu")
    assert tall.identity["resolution"] == "48x72" and tall.prepared.train.pixels.shape == (12, 72, 48) and tall.prepared.train.mean.shape == (12, 4, 9, 6)
    before = weights(tall)
    result = tall.evaluate(reference_candidate(name, 4), 0, keep=tmp_path / "kept.safetensors")
    assert set(result.scores) == set(SCORES) and all(isfinite(each.value) and isfinite(each.low) and isfinite(each.high) for each in result.scores.values())
    assert result.pictures.shape == (20, 72, 48) and result.curve[4] != result.curve[0]
    assert all(torch.equal(one, other) for one, other in zip(before, weights(tall)))


def test_a_size_is_the_same_study_in_any_spelling_and_the_model_s_own_is_64(inner: InnerLoop, settings: Settings) -> None:
    square, spelt, own = (InnerLoop(replace(settings, resolution=size), "cpu") for size in (64, "64x64", None))
    assert square.identity == spelt.identity == own.identity == inner.identity and square.identity["resolution"] == 64
    assert square.meaning == spelt.meaning and own.meaning == inner.meaning


def test_a_path_measures_what_shorter_trainings_would_have_been(inner: InnerLoop) -> None:
    path = inner.path(BIAS, inner.training_seed(BIAS), (2, 4))
    shorter: Candidate = replace(BIAS, steps=2)
    assert inner.scores(path[2][0]) == inner.evaluate(shorter).scores and inner.scores(path[4][0]) == inner.evaluate(BIAS).scores


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_rung_is_the_candidate_with_fewer_steps(settings: Settings, tmp_path, schedule: str) -> None:
    """Also where the learning rate decays over all steps of the study, and whether or not the training paused, was measured and kept there."""
    inner = InnerLoop(replace(settings, schedule=schedule), "cpu")
    before = weights(inner)
    with Tuning(inner, BIAS, state=tmp_path / "state.safetensors") as tuning:
        at_two = tuning.to(2)
        tuning.keep(tmp_path / "two.safetensors")
        tuning.save()
        at_four = tuning.to(4)
    shorter = inner.evaluate(replace(BIAS, steps=2), keep=tmp_path / "shorter.safetensors")
    assert (at_two.steps, at_four.steps) == (2, 4) and at_two.scores == shorter.scores and at_four.scores == inner.evaluate(BIAS).scores
    kept, expected = (checkpoint.read(tmp_path / f"{name}.safetensors") for name in ("two", "shorter"))
    assert kept.candidate == expected.candidate and all(torch.equal(tensor, expected.tensors[name]) for name, tensor in kept.tensors.items())
    assert tuned(inner, BIAS, state=tmp_path / "state.safetensors").scores == at_four.scores, "another worker goes on from the state"
    assert all(torch.equal(one, other) for one, other in zip(before, weights(inner)))


def test_a_repeat_is_another_training(inner: InnerLoop) -> None:
    assert inner.evaluate(BIAS, 1).training_loss != inner.evaluate(BIAS, 0).training_loss
    assert inner.training_seed(BIAS) == inner.training_seed(replace(BIAS, steps=2)) != inner.training_seed(BIAS, 1)


def test_a_result_says_how_much_memory_its_trial_took(inner: InnerLoop) -> None:
    result = inner.evaluate(BIAS)
    assert result.memory is None or 50e6 < result.memory < 100e9
