"""The curve of the validation loss: the denoising losses of either side, stable, every so many steps, without a trace in the training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training import PLAN, same, subset_of, trained

from trainers import held_out
from trainers.denoising import losses
from trainers.errors import TrainingDiverged
from trainers.fit import fit
from trainers.held_out import Curve


@pytest.fixture
def twin(examples):
    return replace(examples, mean=examples.mean.flip(0).roll(1, dims=3))


def test_each_point_is_the_mean_denoising_loss_of_either_side_as_the_network_is_then(unet, units, scheduler, examples, twin):
    subset, kept, wanted = subset_of(unet, units), Curve(1e-3), {}

    def on_step(step):
        if step % 2 == 0:
            unet.eval()
            wanted[step] = tuple(losses(unet, scheduler, side, 9, draws=2, span=(0.0, 0.5)).mean() for side in (examples, twin))
            unet.train()

    curve = held_out.curve(unet, scheduler, examples, twin, every=2, seed=9, found=kept, draws=2, span=(0.0, 0.5))
    wanted[0] = tuple(losses(unet, scheduler, side, 9, draws=2, span=(0.0, 0.5)).mean() for side in (examples, twin))
    fit(unet, scheduler, subset, examples, PLAN, on_step, evaluations=[curve])
    assert kept.points == wanted and list(kept.points) == [0, 2, 4]
    assert all(type(value) is float for pair in kept.points.values() for value in pair)


def test_it_is_stable_a_network_that_stays_has_a_flat_curve(unet, units, scheduler, examples, twin):
    found = []
    curve = held_out.curve(unet, scheduler, examples, twin, every=1, seed=0, found=Curve(1e-3, lambda *point: found.append(point)), draws=1)
    fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, steps=3, learning_rate=0.0), evaluations=[curve])
    assert [step for step, *_ in found] == [0, 1, 2, 3] and len({tuple(pair) for _, *pair in found}) == 1


def test_both_sides_have_the_same_noise(unet, scheduler, examples):
    found = []
    curve = held_out.curve(unet, scheduler, examples, examples, every=1, seed=0, found=Curve(1e-3, lambda *point: found.append(point)), draws=1)
    curve.look(3)
    assert found[0][0] == 3 and found[0][1] == found[0][2]


@pytest.mark.parametrize("losses", [(float("nan"), 1.0), (1.0, float("inf"))])
def test_a_loss_that_is_not_finite_is_divergence_and_no_point(losses):
    found, told = Curve(1e20, lambda *point: told.append(point)), []
    found.add(0, 1.0, 1.0)
    with pytest.raises(TrainingDiverged, match="loss is (nan|inf) at step 1 with learning rate 1e\\+20"):
        found.add(1, *losses)
    assert list(found.points) == [0] and told == [(0, 1.0, 1.0)]


def test_training_is_the_same_bits_with_it_and_without(unet, units, scheduler, examples, twin):
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    given = (unet, units, scheduler, examples, replace(PLAN, ema_decay=0.9, precision="bf16"))
    curve = held_out.curve(unet, scheduler, examples, twin, every=1, seed=0, found=Curve(1e-3), draws=1, precision="bf16")
    assert same(trained(*given), trained(*given, evaluations=[curve]))


def test_however_many_pictures_there_are_a_point_costs_no_more(scheduler, examples):
    many = replace(examples, mean=examples.mean.repeat(20, 1, 1, 1), deviation=examples.deviation.repeat(20, 1, 1, 1), caption=examples.caption.repeat(20))
    seen = []

    def unet(noisy, timesteps, states):
        seen.append(len(noisy))
        return type("Output", (), {"sample": torch.zeros_like(noisy)})

    held_out.curve(unet, scheduler, many, many, every=1, seed=0, found=Curve(1e-3), draws=2).look(1)
    assert sum(seen) == 2 * 2 * held_out.PICTURES
