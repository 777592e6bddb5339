"""Min-SNR weights against values by hand, the published fractions, and the ends of the schedule."""

from __future__ import annotations

import pytest
import torch

from trainers.weighting import min_snr

ALPHAS = torch.tensor([0.9, 0.8, 0.5, 0.2])  # SNR 9, 4, 1, 1/4


@pytest.mark.parametrize("kind, wanted", [("epsilon", [5 / 9, 1, 1, 1]), ("v_prediction", [5 / 10, 4 / 5, 1 / 2, 1 / 5])])
def test_four_ratios_by_hand(kind, wanted):
    assert min_snr(ALPHAS, kind, 5.0).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_it_is_the_published_fraction_wherever_that_is_finite(gamma):
    alphas = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    snr = alphas / (1 - alphas)
    torch.testing.assert_close(min_snr(alphas, "epsilon", gamma), snr.clamp(max=gamma) / snr)
    torch.testing.assert_close(min_snr(alphas, "v_prediction", gamma), snr.clamp(max=gamma) / (snr + 1))


def test_both_predictions_weigh_the_error_of_the_clean_picture_alike():
    """With x̂ the picture: |ε error|² = SNR · |x̂ error|² and |v error|² = (SNR + 1) · |x̂ error|²; min-SNR gives x̂ the weight min(SNR, γ) in both."""
    snr = ALPHAS / (1 - ALPHAS)
    torch.testing.assert_close(min_snr(ALPHAS, "epsilon", 5.0) * snr, min_snr(ALPHAS, "v_prediction", 5.0) * (snr + 1))


def test_zero_terminal_snr_and_no_noise_at_all_are_finite():
    ends = torch.tensor([0.0, 1.0])
    assert min_snr(ends, "epsilon", 5.0).tolist() == [1.0, 0.0]
    assert min_snr(ends, "v_prediction", 5.0).tolist() == [0.0, 0.0]


def test_on_the_miniature_s_own_schedule(scheduler):
    """v-prediction with zero terminal SNR: the last timestep has no weight, and no weight is above γ / (γ + 1)."""
    weights = min_snr(scheduler.alphas_cumprod, scheduler.config.prediction_type, 5.0)
    assert weights[-1] == 0 and weights.isfinite().all() and weights.max().item() == pytest.approx(5 / 6, abs=0.01)
