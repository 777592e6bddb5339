"""The inner fine-tune: repeatable, with the right targets, dropout, warm-up and clipping, and loud when it diverges."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from trainers.candidate import Candidate
from trainers.errors import TrainingDiverged
from trainers.fit import WARMUP_STEPS, Examples, Plan, batches, check_gradients, fit, loss_of, target_of
from trainers.methods import METHODS
from trainers.units import REGIONS

PLAN = Plan(steps=4, learning_rate=1e-3, batch_size=3, seed=5)


def subset_of(unet, units, method="bias", kinds=("bias",)):
    return METHODS[method].apply(unet, units, Candidate(method, REGIONS, kinds, 1e-3, 1))


def trained(unet, units, scheduler, examples, plan, method="bias", kinds=("bias",)) -> dict[str, torch.Tensor]:
    """The subset's values after training; the network is restored."""
    subset = subset_of(unet, units, method, kinds)
    try:
        fit(unet, scheduler, subset, examples, plan)
        return subset.tensors()
    finally:
        subset.restore()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


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


def constant_examples(clean: float, count: int = 64) -> Examples:
    return Examples(torch.full((count, 4, 8, 8), clean), torch.zeros(count, 4, 8, 8), torch.zeros(2, 5, 64), torch.zeros(count, dtype=torch.int64))


# Repeatable ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, kinds", [("full", ("everything",)), ("bias", ("bias",))])
def test_the_same_plan_gives_the_same_bits_whatever_the_global_generator_did(unet, units, scheduler, examples, method, kinds):
    torch.manual_seed(1)
    first = trained(unet, units, scheduler, examples, PLAN, method, kinds)
    torch.manual_seed(2)
    assert same(first, trained(unet, units, scheduler, examples, PLAN, method, kinds))
    assert not same(first, trained(unet, units, scheduler, examples, replace(PLAN, seed=6), method, kinds))


def test_a_shorter_training_is_the_beginning_of_a_longer_one(unet, units, scheduler, examples):
    """Rungs rest on it: what a trial is after k steps does not depend on how many were to come."""
    subset, midway = subset_of(unet, units), {}
    fit(unet, scheduler, subset, examples, replace(PLAN, steps=6), lambda step: midway.update(subset.tensors()) if step == 3 else None)
    subset.restore()
    assert same(midway, trained(unet, units, scheduler, examples, replace(PLAN, steps=3)))


# What is learned -----------------------------------------------------------------------------------------------------


def test_training_learns_a_picture(unet, units, scheduler):
    losses = []
    for steps in (1, 60):
        subset = subset_of(unet, units, "full", ("everything",))
        losses.append(fit(unet, scheduler, subset, constant_examples(1.5), Plan(steps, 2e-3, 8, seed=0)).loss)
        subset.restore()
    assert losses[1] < 0.4 * losses[0]


def test_targets_by_hand():
    """With ᾱ = 0.25 at the only timestep: v = √0.25 · ε − √0.75 · x (Salimans & Ho 2022), epsilon is the noise itself."""
    clean, noise, timesteps = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([0])
    schedule = {"num_train_timesteps": 1, "trained_betas": [0.75]}
    epsilon, v = DDPMScheduler(**schedule), DDPMScheduler(**schedule, prediction_type="v_prediction")
    assert target_of(epsilon, clean, noise, timesteps).item() == 3.0
    assert target_of(v, clean, noise, timesteps).item() == pytest.approx(0.5 * 3 - math.sqrt(0.75) * 2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_of_a_perfect_predictor_is_zero_and_of_one_that_is_off_its_square(prediction_type):
    scheduler, plan = DDPMScheduler(prediction_type=prediction_type), replace(PLAN, batch_size=64)
    for error in (0.0, 0.5):
        loss = loss_of(knowing(scheduler, 1.5, error), scheduler, constant_examples(1.5), torch.arange(64), plan, torch.Generator().manual_seed(0))
        assert loss.item() == pytest.approx(error**2, abs=1e-4)


def test_latents_are_drawn_from_the_posterior():
    """At timestep 0 of a schedule with no noise the network sees mean + deviation · normal."""
    scheduler = DDPMScheduler(num_train_timesteps=1, trained_betas=[0.0])
    count = 500
    examples = Examples(torch.full((count, 4, 8, 8), 3.0), torch.full((count, 4, 8, 8), 0.5), torch.zeros(1, 5, 64), torch.zeros(count, dtype=torch.int64))
    seen = Recorder()
    loss_of(seen, scheduler, examples, torch.arange(count), PLAN, torch.Generator().manual_seed(0))
    assert seen.noisy[0].mean().item() == pytest.approx(3.0, abs=0.01) and seen.noisy[0].std().item() == pytest.approx(0.5, abs=0.01)


def test_timesteps_are_uniform_over_the_whole_schedule(scheduler):
    seen, count = Recorder(), 20_000
    examples = Examples(*(torch.zeros(count, 1, 1, 1),) * 2, torch.zeros(1, 1, 1), torch.zeros(count, dtype=torch.int64))
    loss_of(seen, scheduler, examples, torch.arange(count), PLAN, torch.Generator().manual_seed(0))
    shares = torch.histc(seen.timesteps[0].float(), bins=10, min=0, max=1000) / count
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)
    assert seen.timesteps[0].min() < 5 and 995 <= seen.timesteps[0].max() <= 999


def test_caption_dropout_shows_the_empty_caption_in_its_share_and_else_the_pictures_own(scheduler):
    count, captions = 20_000, 3
    states = torch.arange(captions + 1.0).view(-1, 1, 1)
    caption = torch.arange(count) % captions
    examples, seen = Examples(*(torch.zeros(count, 1, 1, 1),) * 2, states, caption), Recorder()
    loss_of(seen, scheduler, examples, torch.arange(count), PLAN, torch.Generator().manual_seed(0))
    shown = seen.states[0].flatten().long()
    assert torch.equal(shown[shown != captions], caption[shown != captions])
    assert (shown == examples.empty).float().mean().item() == pytest.approx(PLAN.caption_dropout, abs=0.01)


@pytest.mark.parametrize("dropout, poisoned", [(1.0, slice(0, -1)), (0.0, slice(-1, None))])
def test_dropout_of_all_or_none_never_reads_the_other_captions(unet, units, scheduler, examples, dropout, poisoned):
    examples.states[poisoned] = float("nan")
    subset = subset_of(unet, units)
    assert math.isfinite(fit(unet, scheduler, subset, examples, replace(PLAN, caption_dropout=dropout)).loss)


def test_batches_show_every_picture_once_before_any_comes_again():
    for count, size in ((10, 4), (3, 8), (7, 7), (5, 1)):
        stream = batches(count, size, torch.Generator().manual_seed(0))
        taken = list(itertools.islice(stream, 3 * count))
        assert {len(rows) for rows in taken} == {size}
        drawn = torch.cat(taken).tolist()
        rounds = [drawn[start : start + count] for start in range(0, len(drawn) - count + 1, count)]
        assert all(sorted(each) == list(range(count)) for each in rounds)
        assert len({tuple(each) for each in rounds}) > 1, "each round has an order of its own"


# The optimizer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps():
    """Before each optimizer step: learning rate and norm of all gradients."""
    seen = []

    def hook(optimizer, *_):
        (group,) = optimizer.param_groups
        seen.append((group["lr"], torch.stack([p.grad.norm() for p in group["params"]]).norm().item(), group))

    handle = register_optimizer_step_pre_hook(hook)
    yield seen
    handle.remove()


def test_the_rate_warms_up_and_stays(unet, units, scheduler, examples, steps):
    fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, steps=WARMUP_STEPS + 3))
    wanted = [PLAN.learning_rate * min(1, step / WARMUP_STEPS) for step in range(1, WARMUP_STEPS + 4)]
    assert [rate for rate, *_ in steps] == pytest.approx(wanted)
    group = steps[0][2]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.9, 0.999), 1e-2, 1e-8)


def test_the_first_step_moves_by_the_rate(unet, units, scheduler, examples):
    """Adam's first update is rate · sign(gradient); the rate is a tenth of the plan's at step 1, decay a hundredth of that."""
    subset = subset_of(unet, units)
    start = subset.tensors()
    fit(unet, scheduler, subset, examples, replace(PLAN, steps=1, learning_rate=0.01))
    moved = torch.cat([(after - start[name]).abs().flatten() for name, after in subset.tensors().items()])
    assert moved.max().item() == pytest.approx(0.001, rel=0.02)
    assert moved.median().item() == pytest.approx(0.001, rel=0.02)


def test_gradients_are_clipped_over_all_parameters(unet, units, scheduler, examples, steps):
    fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, max_grad_norm=1e-3))
    assert [norm for _, norm, _ in steps] == pytest.approx([1e-3] * PLAN.steps, rel=1e-3)


def test_the_reported_loss_is_that_of_the_last_tenth(unet, units, scheduler, examples):
    """With a rate of 0 the network stays as it is, so each step's loss can be computed again."""
    plan = replace(PLAN, steps=20, learning_rate=0.0)
    done = fit(unet, scheduler, subset_of(unet, units), examples, plan)
    generator = torch.Generator().manual_seed(plan.seed)
    rows_of = batches(len(examples), plan.batch_size, generator)
    with torch.no_grad():
        losses = [loss_of(unet, scheduler, examples, next(rows_of), plan, generator).item() for _ in range(plan.steps)]
    assert done.loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-5)
    assert 0 < done.seconds < 60


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions_train_fp32_weights_to_finite_values(unet, units, scheduler, examples, precision):
    values = trained(unet, units, scheduler, examples, replace(PLAN, steps=2, precision=precision))
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in values.values())


def test_on_step_hears_every_step_once_with_the_network_in_training(unet, units, scheduler, examples):
    heard = []
    fit(unet, scheduler, subset_of(unet, units), examples, PLAN, lambda step: heard.append((step, unet.training)))
    assert heard == [(1, True), (2, True), (3, True), (4, True)] and not unet.training


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_huge_rate_diverges_after_its_first_step_and_says_where(unet, units, scheduler, examples):
    heard = []
    with pytest.raises(TrainingDiverged) as caught:
        fit(unet, scheduler, subset_of(unet, units, "full", ("everything",)), examples, replace(PLAN, steps=30, learning_rate=1e12), heard.append)
    assert 1 < caught.value.step <= 30 and heard == list(range(1, caught.value.step))
    assert not math.isfinite(caught.value.loss) and caught.value.learning_rate == 1e12
    assert not any(module.training for module in unet.modules())


def test_latents_that_are_not_finite_stop_the_first_step(unet, units, scheduler, examples):
    examples.mean[:] = float("nan")
    with pytest.raises(TrainingDiverged, match="loss is nan at step 1 "):
        fit(unet, scheduler, subset_of(unet, units), examples, PLAN)


def test_an_exception_leaves_the_network_in_evaluation(unet, units, scheduler, examples):
    def stop(step):
        raise RuntimeError("lease lost")

    with pytest.raises(RuntimeError, match="lease lost"):
        fit(unet, scheduler, subset_of(unet, units), examples, PLAN, stop)
    assert not any(module.training for module in unet.modules())


def test_training_stops_at_a_gradient_where_none_should_be(unet, units, scheduler, examples):
    unet.conv_in.weight.grad = torch.zeros(32, 4, 3, 3)
    with pytest.raises(AssertionError, match="conv_in.weight: selected False, gradient True"):
        fit(unet, scheduler, subset_of(unet, units), examples, PLAN)


def test_gradients_elsewhere_or_nowhere_are_noticed(unet, units):
    subset = subset_of(unet, units)
    unet(torch.zeros(1, 4, 8, 8), torch.tensor([5]), torch.zeros(1, 5, 64)).sample.mean().backward()
    check_gradients(unet, subset)
    unet.conv_in.bias.grad = None
    with pytest.raises(AssertionError, match="conv_in.bias: selected True, gradient False"):
        check_gradients(unet, subset)
    unet.conv_in.bias.grad, unet.conv_in.weight.grad = torch.zeros(32), torch.zeros(32, 4, 3, 3)
    with pytest.raises(AssertionError, match="conv_in.weight: selected False, gradient True"):
        check_gradients(unet, subset)
