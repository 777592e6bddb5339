"""Threshold mitigation: which samples are skipped, in both kinds of prediction, and how a training goes on without them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from training import PLAN, subset_of

from trainers.errors import TrainingDiverged
from trainers.fit import fit
from trainers.mitigations import MITIGATIONS
from trainers.mitigations.noise_norm import rms_noise_difference
from trainers.mitigations.threshold import noise_norms

THRESHOLD = MITIGATIONS["threshold"]


def kept(batch, rms):
    return THRESHOLD.hooks({"rms": rms}, learned=None).weights(batch).tolist()


def test_by_hand(batch):
    """Differences of (1, 1, 1, 1), (4, 0, 0, 0) and none: norms 2, 4 and 0, root mean squares 1, 2 and 0."""
    differences = [[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 0]]
    assert kept(batch(differences), 1.5) == [1, 0, 1]
    assert kept(batch(differences), 1.0) == [0, 0, 1], "at the threshold is skipped too"
    assert kept(batch(differences), 2.01) == [1, 1, 1]


def test_a_difference_of_v_is_multiplied_by_the_root_of_alpha(batch):
    """With ᾱ = 0.25 a difference of 1 in v is one of 0.5 in the noise."""
    v = batch([[1, 1, 1, 1], [4, 0, 0, 0]], alphas_cumprod=0.25, prediction_type="v_prediction")
    assert kept(v, 0.5) == [0, 0] and kept(v, 0.51) == [1, 0] and kept(v, 1.01) == [1, 1]
    assert kept(batch([[9, 9, 9, 9]], alphas_cumprod=0.0, prediction_type="v_prediction"), 1e-6) == [1], "at pure noise no caption moves it"


def test_the_published_constant_is_a_norm_of_two_at_512():
    difference = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    difference *= 2 / difference.flatten(1).norm(dim=1).view(2, 1, 1, 1)
    norms = rms_noise_difference(difference, torch.zeros(2, 4, 64, 64), torch.tensor(0.3), "epsilon")
    torch.testing.assert_close(norms, torch.full((2,), 2 / 128))
    assert THRESHOLD.strengths["rms"][0] == pytest.approx(2 / 128, rel=5e-3)


def test_the_norm_is_that_of_the_noise_that_v_stands_for():
    """Both v-predictions turned into noise as a DDPM scheduler's formulas have it, then compared."""
    generator = torch.Generator().manual_seed(1)
    noisy, captioned, plain = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(3))
    alpha = DDPMScheduler(prediction_type="v_prediction").alphas_cumprod[torch.tensor([0, 500, 999])]
    noise = [alpha.sqrt().view(-1, 1, 1, 1) * v + (1 - alpha).sqrt().view(-1, 1, 1, 1) * noisy for v in (captioned, plain)]
    torch.testing.assert_close(rms_noise_difference(captioned, plain, alpha, "v_prediction"), rms_noise_difference(*noise, alpha, "epsilon"))


def test_the_order_of_samples_and_the_resolution_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    captioned, plain, alpha = torch.randn(5, 4, 8, 8, generator=generator), torch.randn(5, 4, 8, 8, generator=generator), torch.rand(5, generator=generator)
    norms, order = rms_noise_difference(captioned, plain, alpha, "v_prediction"), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(rms_noise_difference(captioned[order], plain[order], alpha[order], "v_prediction"), norms[order])
    larger = [each.repeat(1, 1, 3, 2) for each in (captioned, plain)]
    torch.testing.assert_close(rms_noise_difference(*larger, alpha, "v_prediction"), norms)


def test_predictions_in_half_precision_are_compared_in_full(batch):
    plain = torch.full((1, 4, 1, 1), 1024.0, dtype=torch.float16)
    assert rms_noise_difference(plain, plain - 1, torch.tensor(1.0), "epsilon").item() == 1.0
    large = torch.full((1, 4, 64, 64), 200.0, dtype=torch.float16)  # whose squares add up to more than float16 holds
    assert rms_noise_difference(large, -large, torch.tensor(1.0), "epsilon").item() == pytest.approx(400)


# In a training -------------------------------------------------------------------------------------------------------


def trained_at(rms, *given, plan=PLAN):
    """What `fit` says and the trained values; without the mitigation for None."""
    unet, units, scheduler, examples = given
    subset = subset_of(unet, units)
    try:
        return fit(unet, scheduler, subset, examples, plan, hooks=[] if rms is None else [THRESHOLD.hooks({"rms": rms}, learned=None)]), subset.tensors()
    finally:
        subset.restore()


def test_a_threshold_over_everything_changes_nothing(unet, units, scheduler, examples):
    done, values = trained_at(1e6, unet, units, scheduler, examples)
    assert done.kept == 1
    for name, tensor in trained_at(None, unet, units, scheduler, examples)[1].items():
        torch.testing.assert_close(values[name], tensor, atol=1e-6, rtol=0)


def test_a_dropped_caption_that_noise_has_moved_is_learned_from_all_the_same(batch):
    assert noise_norms(batch([1.0, 1.0], dropped=(1,))).tolist() == [1.0, 0.0]


def test_a_threshold_under_everything_trains_on_dropped_captions_alone(unet, units, scheduler, examples):
    for dropout, share in ((0.0, 0.0), (1.0, 1.0)):
        done, values = trained_at(1e-9, unet, units, scheduler, examples, plan=replace(PLAN, caption_dropout=dropout))
        assert done.kept == share
        assert torch.equal(values["conv_in.bias"], unet.conv_in.bias) == (share == 0), "without any sample a step changes nothing"


def test_a_loss_that_is_not_finite_is_not_hidden_by_skipping(unet, units, scheduler, examples):
    examples.mean[:] = math.nan
    with pytest.raises(TrainingDiverged, match="loss is nan at step 1 "):
        trained_at(1e-9, unet, units, scheduler, examples)
