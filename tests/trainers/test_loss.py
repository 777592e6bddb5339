"""The loss: right targets, a known value for a known predictor, latents from the posterior, and weights by timestep and by sample."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from training import PLAN

from trainers.draws import Draws
from trainers.fit import Examples
from trainers.loss import Denoising, Loss, target_of
from trainers.mitigated import Mitigations
from trainers.mitigations.hooks import Batch, TrainingHooks
from trainers.weighting import min_snr


class Recorder:
    """In the place of a U-Net: keeps what it is given and answers with `answer(noisy, timesteps)`."""

    def __init__(self, answer=lambda noisy, timesteps: torch.zeros_like(noisy)):
        self.answer, self.noisy, self.timesteps, self.states = answer, [], [], []

    def __call__(self, noisy, timesteps, states):
        for kept, given in ((self.noisy, noisy), (self.timesteps, timesteps), (self.states, states)):
            kept.append(given)
        return SimpleNamespace(sample=self.answer(noisy, timesteps))


def knowing(scheduler, clean: float, error: float = 0.0):
    """A predictor that knows that every clean latent is `clean`, and is wrong by `error` in what it predicts."""

    def answer(noisy, timesteps):
        signal = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
        spread = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
        noise = (noisy - signal * clean) / spread
        return (signal * noise - spread * clean if scheduler.config.prediction_type == "v_prediction" else noise) + error

    return Recorder(answer)


def constant_examples(clean: float, count: int = 64, deviation: float = 0.0) -> Examples:
    return Examples(torch.full((count, 4, 8, 8), clean), torch.full((count, 4, 8, 8), deviation), torch.zeros(2, 5, 64), torch.zeros(count, dtype=torch.int64))


def loss(unet, scheduler, examples, plan=PLAN, hooks=(), step: int = 1) -> Loss:
    """Of one batch with every picture in it."""
    plan = replace(plan, batch_size=len(examples))
    task = Denoising(unet, scheduler, examples, plan, Mitigations(hooks, None))
    drawn = Draws(torch.arange(len(examples)), examples.mean.shape[1:], scheduler.config.num_train_timesteps, plan).next()
    return task.loss(step, drawn, task.mitigations.states(step, examples, drawn))


def test_targets_by_hand():
    """With ᾱ = 0.25 at the only timestep: v = √0.25 · ε − √0.75 · x (Salimans & Ho 2022), epsilon is the noise itself."""
    clean, noise, timesteps = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([0])
    schedule = {"num_train_timesteps": 1, "trained_betas": [0.75]}
    epsilon, v = DDPMScheduler(**schedule), DDPMScheduler(**schedule, prediction_type="v_prediction")
    assert target_of(epsilon, clean, noise, timesteps).item() == 3.0
    assert target_of(v, clean, noise, timesteps).item() == pytest.approx(0.5 * 3 - math.sqrt(0.75) * 2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("more", [{}, {"noise_offset": 0.2}])
def test_loss_of_a_perfect_predictor_is_zero_and_of_one_that_is_off_its_square(prediction_type, more):
    """The offset is part of the noise that is to be predicted."""
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    for error in (0.0, 0.5):
        found = loss(knowing(scheduler, 1.5, error), scheduler, constant_examples(1.5), replace(PLAN, **more))
        assert found.trained.item() == found.plain.item() == pytest.approx(error**2, abs=1e-4) and found.kept == 64


def test_latents_are_drawn_from_the_posterior():
    """At timestep 0 of a schedule with no noise the network sees mean + deviation · normal."""
    seen = Recorder()
    loss(seen, DDPMScheduler(num_train_timesteps=1, trained_betas=[0.0]), constant_examples(3.0, 500, 0.5))
    assert seen.noisy[0].mean().item() == pytest.approx(3.0, abs=0.01) and seen.noisy[0].std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_sample_by_its_timestep(prediction_type):
    """Every error is 1/2, so the loss is a quarter of the mean weight; the reported one knows no weights."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=prediction_type == "v_prediction")
    seen, examples = knowing(scheduler, 1.5, 0.5), constant_examples(1.5, 512)
    found = loss(seen, scheduler, examples, replace(PLAN, min_snr_gamma=5.0))
    weights = min_snr(scheduler.alphas_cumprod[seen.timesteps[0]], prediction_type, 5.0)
    assert found.trained.item() == pytest.approx(0.25 * weights.mean().item(), rel=1e-3) and found.plain.item() == pytest.approx(0.25, rel=1e-3)
    assert found.kept == 512 and weights.std() > 0.05


class Weights(TrainingHooks):
    def __init__(self, weights: torch.Tensor | None):
        self.given, self.batches = weights, []

    def weights(self, batch: Batch):
        self.batches.append(batch)
        return self.given


def off_by_its_row(scheduler):
    """Row k of the batch is wrong by k."""
    perfect = knowing(scheduler, 1.5)
    return lambda noisy, timesteps, states: SimpleNamespace(sample=perfect(noisy, timesteps, states).sample + torch.arange(4.0).view(-1, 1, 1, 1))


def test_weights_of_samples_by_hand():
    """Errors 0, 1, 4, 9 with weights 1, 0, 1/2, 0: their mean over all four is 1/2, of which two are kept; plain it is 3.5."""
    scheduler = DDPMScheduler()
    found = loss(off_by_its_row(scheduler), scheduler, constant_examples(1.5, 4), hooks=[Weights(torch.tensor([1.0, 0.0, 0.5, 0.0]))])
    assert (found.trained.item(), found.plain.item(), found.kept) == (pytest.approx(0.5, abs=1e-3), pytest.approx(3.5, abs=1e-3), 2)


def test_all_skipped_there_is_nothing_to_train_on():
    scheduler = DDPMScheduler()
    found = loss(off_by_its_row(scheduler), scheduler, constant_examples(1.5, 4), hooks=[Weights(torch.zeros(4))])
    assert found.trained is None and found.kept == 0 and found.plain.item() == pytest.approx(3.5, abs=1e-3)


def test_weights_of_one_are_as_none():
    scheduler = DDPMScheduler()
    plain, ones = (loss(off_by_its_row(scheduler), scheduler, constant_examples(1.5, 4), hooks=[Weights(given)]) for given in (None, torch.ones(4)))
    assert ones.trained.item() == pytest.approx(plain.trained.item()) and (ones.kept, plain.kept) == (4, 4)


def test_weights_of_samples_and_of_timesteps_multiply():
    scheduler, plan = DDPMScheduler(), replace(PLAN, min_snr_gamma=5.0)
    only_last = loss(off_by_its_row(scheduler), scheduler, constant_examples(1.5, 4), plan, [Weights(torch.tensor([0.0, 0.0, 0.0, 1.0]))])
    hook = Weights(None)
    loss(off_by_its_row(scheduler), scheduler, constant_examples(1.5, 4), plan, [hook])
    weight = min_snr(scheduler.alphas_cumprod[hook.batches[0].timesteps], "epsilon", 5.0)[-1].item()
    assert only_last.trained.item() == pytest.approx(weight * 9 / 4, rel=1e-3) and only_last.kept == 1


def test_a_hook_sees_the_forward_pass_and_may_ask_for_the_empty_caption_s(unet, scheduler, examples):
    hook, other = Weights(None), Weights(None)
    loss(unet, scheduler, examples, replace(PLAN, caption_dropout=0.0), [hook, other], step=3)
    (batch,) = hook.batches
    assert batch.step == 3 and batch.prediction_type == "v_prediction" and torch.equal(batch.alphas_cumprod, scheduler.alphas_cumprod)
    assert batch.predicted.shape == batch.noisy.shape == (10, 4, 8, 8) and not batch.predicted.requires_grad
    empty = batch.without_caption()
    with torch.no_grad():
        assert torch.equal(empty, unet(batch.noisy, batch.timesteps, examples.states[-1:].expand(10, -1, -1)).sample)
        assert torch.allclose(batch.predicted, unet(batch.noisy, batch.timesteps, examples.states[examples.caption[order(examples)]]).sample, atol=1e-5)
    assert not torch.allclose(empty, batch.predicted, atol=1e-3) and not empty.requires_grad
    assert other.batches[0] is not None and other.batches[0].without_caption() is empty, "asked twice it is computed once"


def order(examples) -> torch.Tensor:
    plan = replace(PLAN, batch_size=len(examples))
    return Draws(torch.arange(len(examples)), examples.mean.shape[1:], 1000, plan).next().rows
