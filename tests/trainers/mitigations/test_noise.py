"""Gaussian noise on embeddings: its size, its independence, the same whenever it is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.mitigations import MITIGATIONS

NOISE = MITIGATIONS["noise"]


def noisy(learned, scale=0.1, step=1, states=None):
    states = torch.zeros(8, 77, 64) if states is None else states
    return NOISE.hooks({"scale": scale}, learned).states(step, states)


def test_noise_is_standard_normal_times_its_scale(learned):
    for scale in (0.1, 1.0):
        drawn = noisy(learned, scale) / scale
        assert drawn.mean().item() == pytest.approx(0, abs=0.02) and drawn.std().item() == pytest.approx(1, abs=0.02)
        assert drawn.square().mean().item() == pytest.approx(1, abs=0.02) and drawn.pow(4).mean().item() == pytest.approx(3, abs=0.2)


def test_it_is_added_to_the_states(learned):
    states = torch.randn(8, 77, 64, generator=torch.Generator().manual_seed(0))
    before = states.clone()
    torch.testing.assert_close(noisy(learned, states=states) - states, noisy(learned))
    assert torch.equal(states, before), "the states at hand are not written to"


def test_draws_are_those_of_seed_and_step(learned):
    first = noisy(learned)
    torch.manual_seed(9)
    assert torch.equal(noisy(learned), first) and torch.equal(noisy(learned, 0.2), 2 * first)
    for other in (noisy(learned, step=2), noisy(replace(learned, seed=4))):
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.02


def test_rows_are_independent(learned):
    drawn = noisy(learned).flatten(1)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.06


def test_states_keep_their_type(learned):
    assert noisy(learned, states=torch.zeros(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_as_trained_states_have_a_draw_of_the_noise(learned):
    states = torch.ones(3, 77, 64)
    heard = NOISE.as_trained_states(states, {"scale": 0.3}, learned)
    assert torch.equal(heard, NOISE.as_trained_states(states, {"scale": 0.3}, learned))
    assert (heard - states).std().item() == pytest.approx(0.3, abs=0.02)
    assert NOISE.as_trained(["left lung"], {"scale": 0.3}, learned) == ["left lung"]
