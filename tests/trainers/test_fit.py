"""The inner fine-tune: repeatable, as it was measured, in parts or at once, with mitigations and evaluations, and loud when it diverges."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import mse_loss
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import PLAN, same, subset_of, trained

from trainers.candidate import Candidate
from trainers.errors import BadSelection, TrainingDiverged
from trainers.fit import Evaluation, Examples, Plan, fit
from trainers.loss import target_of
from trainers.methods import METHODS
from trainers.mitigations.hooks import Batch, TrainingHooks
from trainers.sampling import initial_noise, sample
from trainers.schedules import WARMUP_STEPS
from trainers.training import check_gradients
from trainers.units import REGIONS


@pytest.fixture
def steps():
    """Before each optimizer step: learning rate, norm of all gradients, and the gradients."""
    seen = []

    def hook(optimizer, *_):
        gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
        seen.append((optimizer.param_groups[0]["lr"], torch.stack([gradient.norm() for gradient in gradients]).norm().item(), gradients))

    handle = register_optimizer_step_pre_hook(hook)
    yield seen
    handle.remove()


def constant_examples(clean: float, count: int = 64) -> Examples:
    return Examples(torch.full((count, 4, 8, 8), clean), torch.zeros(count, 4, 8, 8), torch.zeros(2, 5, 64), torch.zeros(count, dtype=torch.int64))


def drop_out(unet, share: float = 0.1) -> None:
    """Give the network what draws from torch's own generator."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


# Repeatable ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, kinds", [("full", ("everything",)), ("bias", ("bias",))])
def test_the_same_plan_gives_the_same_bits_whatever_the_global_generator_did(unet, units, scheduler, examples, method, kinds):
    drop_out(unet)
    torch.manual_seed(1)
    first = trained(unet, units, scheduler, examples, PLAN, method, kinds)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, trained(unet, units, scheduler, examples, PLAN, method, kinds))
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(first, trained(unet, units, scheduler, examples, replace(PLAN, seed=6), method, kinds))


@pytest.mark.parametrize("more", [{}, {"schedule": "cosine", "schedule_steps": 6, "warmup_steps": 1}])
def test_a_shorter_training_is_the_beginning_of_a_longer_one(unet, units, scheduler, examples, more):
    """Rungs rest on it: what a trial is after k steps does not depend on how many were to come."""
    subset, midway, plan = subset_of(unet, units), {}, replace(PLAN, steps=6, **more)
    fit(unet, scheduler, subset, examples, plan, lambda step: midway.update(subset.tensors()) if step == 3 else None)
    subset.restore()
    assert same(midway, trained(unet, units, scheduler, examples, replace(plan, steps=3)))


def test_the_default_plan_is_the_training_that_was_measured(unet, units, scheduler, examples):
    """Written out once more, with its order of random draws: published figures rest on these bits."""
    plan = replace(PLAN, steps=12)
    subset = subset_of(unet, units)
    parameters = list(subset.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8, fused=True)
    generator, waiting, losses = torch.Generator().manual_seed(plan.seed), torch.empty(0, dtype=torch.int64), []
    unet.train()
    for step in range(1, 13):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, step / 10)
        while len(waiting) < 3:
            waiting = torch.cat([waiting, torch.randperm(10, generator=generator)])
        rows, waiting = waiting[:3], waiting[3:]
        posterior, noise = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)
        timesteps = torch.randint(1000, (3,), generator=generator)
        caption = torch.where(torch.rand(3, generator=generator) < 0.1, 4, examples.caption[rows])
        clean = examples.mean[rows] + examples.deviation[rows] * posterior
        loss = mse_loss(unet(scheduler.add_noise(clean, noise, timesteps), timesteps, examples.states[caption]).sample,
                        target_of(scheduler, clean, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    wanted = subset.tensors()
    subset.restore()
    again = subset_of(unet, units)
    done = fit(unet, scheduler, again, examples, plan)
    assert same(wanted, again.tensors()) and done.loss == losses[-1] and done.kept == 1.0
    assert 0 < done.seconds < 60


# What is learned -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type, more", [
    ("v_prediction", {}), ("epsilon", {"min_snr_gamma": 5.0, "ema_decay": 0.9, "schedule": "cosine", "accumulate": 2, "noise_offset": 0.05})])
def test_training_learns_a_picture(unet, units, prediction_type, more):
    scheduler = DDPMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=prediction_type == "v_prediction")
    losses = []
    for steps in (1, 40):
        subset = subset_of(unet, units, "full", ("everything",))
        losses.append(fit(unet, scheduler, subset, constant_examples(1.5), Plan(steps, 2e-3, 4, seed=0, **more)).loss)
        subset.restore()
    assert losses[1] < 0.4 * losses[0]


@pytest.mark.parametrize("dropout, poisoned", [(1.0, slice(0, -1)), (0.0, slice(-1, None))])
def test_dropout_of_all_or_none_never_reads_the_other_captions(unet, units, scheduler, examples, dropout, poisoned):
    examples.states[poisoned] = float("nan")
    assert math.isfinite(fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, caption_dropout=dropout)).loss)


@pytest.mark.parametrize("height, width", [(8, 12), (7, 9)])
def test_latents_need_be_neither_square_nor_even(unet, units, scheduler, examples, height, width):
    generator = torch.Generator().manual_seed(0)
    other = replace(examples, mean=torch.randn(10, 4, height, width, generator=generator), deviation=torch.rand(10, 4, height, width, generator=generator))
    plan = replace(PLAN, steps=2, accumulate=2, min_snr_gamma=5.0, noise_offset=0.1, gradient_checkpointing=True)
    done = fit(unet, scheduler, subset_of(unet, units), other, plan, hooks=[BelowTimestep(600)])
    assert math.isfinite(done.loss) and done.loss > 0


# The optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, factors", [
    ({}, [*(step / WARMUP_STEPS for step in range(1, WARMUP_STEPS + 1)), 1, 1]),
    ({"warmup_steps": 2, "schedule": "linear", "schedule_steps": 22}, [0.5, 1, *(1 - k / 20 for k in range(10))])])
def test_the_rate_follows_the_schedule_whose_end_is_not_the_candidate_s(unet, units, scheduler, examples, steps, more, factors):
    plan = replace(PLAN, steps=12, **more)
    fit(unet, scheduler, subset_of(unet, units), examples, plan)
    assert [rate for rate, *_ in steps] == pytest.approx([PLAN.learning_rate * factor for factor in factors])


def test_the_first_step_moves_by_the_rate_of_each_parameter(unet, units, scheduler, examples):
    """Adam's first update is rate · sign(gradient); the rate is a tenth of the plan's at step 1, decay a hundredth of that."""
    subset = subset_of(unet, units)
    start = subset.tensors()
    rates = {name: 0.05 if "conv" in name else 0.01 for name in start}
    fit(unet, scheduler, subset, examples, replace(PLAN, steps=1), rates=rates)
    for rate in (0.05, 0.01):
        moved = torch.cat([(after - start[name]).abs().flatten() for name, after in subset.tensors().items() if rates[name] == rate])
        assert moved.max().item() == pytest.approx(rate / 10, rel=0.02) and moved.median().item() == pytest.approx(rate / 10, rel=0.02)


def test_gradients_are_clipped_over_all_parameters(unet, units, scheduler, examples, steps):
    fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, max_grad_norm=1e-3))
    assert [norm for _, norm, _ in steps] == pytest.approx([1e-3] * PLAN.steps, rel=1e-3)


class BelowTimestep(TrainingHooks):
    """Keeps the samples below a timestep; `steps`: only at these, none is kept."""

    def __init__(self, least: int, steps: tuple[int, ...] = ()):
        self.least, self.steps, self.kept_samples = least, steps, 0

    def weights(self, batch: Batch):
        kept = batch.timesteps < (0 if batch.step in self.steps else self.least)
        self.kept_samples += int(kept.sum())
        return kept.float()


@pytest.mark.parametrize("more", [{}, {"min_snr_gamma": 5.0}])
@pytest.mark.parametrize("hooks", [(), (600,)])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(unet, units, scheduler, examples, steps, more, hooks):
    """With a rate of 0 the network stays as it is, so that each step's gradients compare."""
    for parts in (1, 2, 3, 9):
        plan = replace(PLAN, steps=2, batch_size=8, learning_rate=0.0, max_grad_norm=1e9, accumulate=parts, **more)
        subset = subset_of(unet, units)
        fit(unet, scheduler, subset, examples, plan, hooks=[BelowTimestep(least) for least in hooks])
        subset.restore()
    whole = steps[:2]
    for part in range(1, 4):
        for (_, norm, gradients), (_, again, others) in zip(whole, steps[2 * part : 2 * part + 2]):
            assert again == pytest.approx(norm, rel=1e-4)
            for gradient, other in zip(gradients, others):
                torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-5 * norm)


@pytest.mark.parametrize("method, kinds", [("attention", ("self-attention", "cross-attention")), ("bias", ("bias",)), ("lora", ("cross-attention",))])
@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_frozen_weights_in_low_precision_trained_ones_in_fp32(unet, units, scheduler, examples, precision, dtype, method, kinds):
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    subset = METHODS[method].apply(unet, units, Candidate.of(method, REGIONS, kinds, 1e-3, 1, 4 if method == "lora" else None))
    own = {id(parameter) for parameter in subset.parameters.values()}
    frozen = {name: parameter.clone() for name, parameter in unet.named_parameters() if id(parameter) not in own}
    start = subset.tensors()
    done = fit(unet, scheduler, subset, examples, replace(PLAN, steps=2, precision=precision, accumulate=2, ema_decay=0.9), hooks=[BelowTimestep(900)])
    assert done.loss == pytest.approx(1.1, rel=0.2)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in subset.tensors().values())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in subset.tensors().items())
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in unet.named_parameters() if name in frozen)
    assert dtype in {parameter.dtype for parameter in frozen.values()}


# Mitigations ---------------------------------------------------------------------------------------------------------


def test_hooks_that_change_nothing_change_nothing(unet, units, scheduler, examples):
    given = (unet, units, scheduler, examples, PLAN)
    assert same(trained(*given), trained(*given, hooks=[TrainingHooks(), TrainingHooks()]))


def test_a_step_that_skips_all_samples_changes_nothing_but_the_schedule_goes_on(unet, units, scheduler, examples, steps):
    values, hook = {}, BelowTimestep(1000, steps=(2, 3))
    subset = subset_of(unet, units)
    done = fit(unet, scheduler, subset, examples, PLAN, lambda step: values.update({step: subset.tensors()}), hooks=[hook])
    assert same(values[1], values[2]) and same(values[2], values[3]) and not same(values[3], values[4])
    assert [rate for rate, *_ in steps] == pytest.approx([PLAN.learning_rate * step / WARMUP_STEPS for step in (1, 4)])
    assert done.kept == 0.5 and math.isfinite(done.loss)


def test_where_all_is_skipped_throughout_the_base_stays(unet, units, scheduler, examples):
    subset = subset_of(unet, units)
    start = subset.tensors()
    done = fit(unet, scheduler, subset, examples, replace(PLAN, ema_decay=0.9), hooks=[BelowTimestep(0)])
    assert same(start, subset.tensors()) and done.kept == 0 and math.isfinite(done.loss)


class OnlyPictures(TrainingHooks):
    def __init__(self, *rows: int):
        self.rows, self.told, self.seen = np.array(rows), None, []

    def kept(self):
        return self.rows

    def expect(self, rows, steps):
        self.told = [rows(step).tolist() for step in range(1, steps + 1)]

    def texts(self, step, rows):
        self.seen.append(rows.tolist())
        return [str(row) for row in rows]


def test_pictures_that_are_not_kept_are_never_learned_from_and_the_order_is_told_beforehand(unet, units, scheduler, examples):
    examples.mean[:7] = float("nan")
    hook = OnlyPictures(7, 8, 9)
    done = fit(unet, scheduler, subset_of(unet, units), examples, PLAN, hooks=[hook], encode=lambda texts: examples.states[[int(text) - 7 for text in texts]])
    assert math.isfinite(done.loss) and hook.told == hook.seen and {row for rows in hook.seen for row in rows} == {7, 8, 9}


def test_captions_that_are_said_again_as_they_are_give_the_same_bits(unet, units, scheduler, examples):
    class Repeating(TrainingHooks):
        def texts(self, step, rows):
            return [str(int(examples.caption[row])) for row in rows]

    given = (unet, units, scheduler, examples, replace(PLAN, caption_dropout=0.5))
    assert same(trained(*given), trained(*given, hooks=[Repeating()], encode=lambda texts: examples.states[[int(text) for text in texts]]))


def test_nothing_left_to_learn_from_is_refused_before_anything_is_changed(unet, units, scheduler, examples):
    with pytest.raises(BadSelection, match="leave none of 10 pictures"):
        fit(unet, scheduler, subset_of(unet, units), examples, PLAN, hooks=[OnlyPictures()])
    assert not unet.training


# Average and evaluations ---------------------------------------------------------------------------------------------


def test_at_the_end_the_subset_has_the_average_of_the_values_on_the_way(unet, units, scheduler, examples):
    subset, seen = subset_of(unet, units), {}
    seen[0] = subset.tensors()
    fit(unet, scheduler, subset, examples, replace(PLAN, ema_decay=0.15), lambda step: seen.update({step: subset.tensors()}))
    for name, found in subset.tensors().items():
        wanted = seen[0][name]
        for step, decay in zip(range(1, 5), (0.1, 0.15, 0.15, 0.15)):
            wanted = decay * wanted + (1 - decay) * seen[step][name]
        torch.testing.assert_close(found, wanted)
    subset.restore()
    assert same(seen[4], trained(unet, units, scheduler, examples, PLAN)), "the average does not steer the training"


def test_evaluations_see_the_average_in_evaluation_mode_and_disturb_nothing(unet, units, scheduler, examples):
    drop_out(unet)
    plan, seen, raw = replace(PLAN, ema_decay=0.5), {}, {}
    given = (unet, units, scheduler, examples, plan)
    subset = subset_of(unet, units)

    def look(step):
        assert not unet.training and not any(module.training for module in unet.modules())
        seen[step] = subset.tensors()
        torch.rand(1 + step)

    fit(unet, scheduler, subset, examples, plan, lambda step: raw.update({step: subset.tensors()}), evaluations=[Evaluation(lambda step: step != 1, look)])
    end = subset.tensors()
    subset.restore()
    assert same(end, trained(*given))
    assert list(seen) == [0, 2, 3, 4] and same(seen[4], end) and not same(seen[3], raw[3])


def test_an_evaluation_that_raises_leaves_the_trained_values(unet, units, scheduler, examples):
    def stop(step):
        raise RuntimeError("lease lost")

    subset, values = subset_of(unet, units), {}
    with pytest.raises(RuntimeError, match="lease lost"):
        fit(unet, scheduler, subset, examples, replace(PLAN, ema_decay=0.5), lambda step: values.update(subset.tensors()),
            evaluations=[Evaluation(lambda step: step == 2, stop), Evaluation(lambda step: False, stop)])
    assert not unet.training and not same(values, subset.tensors())
    own = subset.tensors()
    subset.restore()
    assert same(own, trained(unet, units, scheduler, examples, replace(PLAN, steps=2)))


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


def test_values_that_the_last_step_spoils_are_noticed(unet, units, scheduler, examples):
    """Its own loss was still finite: only the next one would tell."""
    def spoil(step):
        if step == PLAN.steps:
            unet.conv_in.bias.data[3] = float("inf")

    with pytest.raises(TrainingDiverged, match="at step 4"):
        fit(unet, scheduler, subset_of(unet, units), examples, PLAN, spoil)


@pytest.mark.parametrize("stop", [RuntimeError("lease lost"), torch.OutOfMemoryError("as a GPU says it"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["step", "forward", "evaluation"])
def test_whatever_is_raised_leaves_the_network_in_evaluation_without_gradients(unet, units, scheduler, examples, stop, where):
    def raising(*_):
        raise stop

    forward = unet.mid_block.register_full_backward_hook(raising) if where == "forward" else None
    with pytest.raises(type(stop)):
        fit(unet, scheduler, subset_of(unet, units, "full", ("everything",)), examples, PLAN, raising if where == "step" else lambda step: None,
            evaluations=[Evaluation(lambda step: step == 2, raising)] if where == "evaluation" else ())
    if forward:
        forward.remove()
    assert not any(module.training for module in unet.modules())
    assert all(parameter.grad is None for parameter in unet.parameters())


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


@pytest.mark.parametrize("more, word", [({"optimizer": "adam"}, "'adam' is unknown: take adamw"), ({"schedule": "step"}, "'step' is unknown: take")])
def test_unknown_names_are_refused_in_one_line(unet, units, scheduler, examples, more, word):
    with pytest.raises(BadSelection, match=word):
        fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, **more))
    assert not unet.training


@pytest.mark.parametrize("shape", [(9, 11), (1, 1)])
@pytest.mark.parametrize("method", ["full", "attention", "norm", "bias", "svdiff", "difffit", "lora"])
def test_latents_of_any_shape_are_learned_and_made_again(unet, units, scheduler, method, shape):
    """Also such as the U-Net's halvings do not divide, down to one latent: it trains, and the base comes back to the bit."""
    each, generator = METHODS[method], torch.Generator().manual_seed(3)
    examples = Examples(torch.randn(6, 4, *shape, generator=generator), 0.1 * torch.rand(6, 4, *shape, generator=generator),
                        torch.randn(3, 5, 64, generator=generator), torch.arange(6) % 2)
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    subset = each.apply(unet, units, Candidate.of(method, REGIONS, each.kinds[0], 1e-3, 2, each.ranks[0] if each.ranks else None))
    try:
        start = {name: tensor.clone() for name, tensor in subset.tensors().items()}
        done = fit(unet, scheduler, subset, examples, replace(PLAN, steps=2, batch_size=1, warmup_steps=0))
        assert 0 < done.loss < 100
        assert any(not torch.equal(tensor, start[name]) for name, tensor in subset.tensors().items())
        with subset.generating():
            made = sample(unet, dict(scheduler.config), examples.states, examples.caption[:2], initial_noise(2, (4, *shape), 0), steps=2, guidance_scale=1.5, batch_size=2)
        assert made.shape == (2, 4, *shape) and made.isfinite().all()
    finally:
        subset.restore()
    assert all(torch.equal(parameter, before[name]) for name, parameter in unet.named_parameters())
