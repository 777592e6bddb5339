"""The threshold that follows the training: a quantile of the norms before, a warm-up, and a state that goes on."""

from __future__ import annotations

import json

import pytest
import torch

from trainers.mitigations import MITIGATIONS
from trainers.mitigations.threshold_quantile import REMEMBERED, WARM_UP

QUANTILE = MITIGATIONS["threshold-quantile"]


def hooks(quantile=0.5):
    return QUANTILE.hooks({"quantile": quantile}, learned=None)


def test_by_hand(batch):
    """After norms of 1 to 128 their median is 64.5; with 64 and 65 among them it is 64.5 still; a 0.9 quantile is 115.3."""
    norms = [[float(norm)] for norm in range(1, WARM_UP + 1)]
    median, high = hooks(0.5), hooks(0.9)
    for each in (median, high):
        assert each.weights(batch(norms)).tolist() == [1] * WARM_UP, "nothing is skipped in the warm-up"
    assert median.weights(batch([[64.0], [65.0]])).tolist() == [1, 0]
    assert median.weights(batch([[64.4], [64.5]])).tolist() == [1, 0], "at the threshold is skipped too"
    assert high.weights(batch([[115.0], [116.0]])).tolist() == [1, 0]


def test_the_batch_itself_is_no_part_of_its_threshold(batch):
    """So a batch of hard samples is skipped whole, and one of easy ones kept whole, where the batch's own quantile would halve each."""
    running = hooks(0.5)
    running.weights(batch([[1.0], [2.0]] * WARM_UP))
    assert running.weights(batch([[5.0], [6.0], [7.0]])).tolist() == [0, 0, 0]
    assert running.weights(batch([[0.1], [0.2], [0.3]])).tolist() == [1, 1, 1]


def test_the_distribution_follows_the_training(batch):
    running = hooks(0.5)
    running.weights(batch([[1.0]] * REMEMBERED))
    assert running.weights(batch([[3.0]] * 10)).tolist() == [0] * 10
    running.weights(batch([[3.0 + number / REMEMBERED] for number in range(REMEMBERED)]))
    assert running.weights(batch([[3.0]] * 10)).tolist() == [1] * 10, "what was before the last samples is forgotten"


@pytest.mark.parametrize("quantile, share", [(0.9, 0.1), (0.5, 0.5)])
def test_of_samples_from_one_distribution_its_share_is_skipped_whatever_the_batch_size(batch, quantile, share):
    norms = torch.rand(4000, generator=torch.Generator().manual_seed(0))[:, None]
    for size in (1, 7, 64):
        running = hooks(quantile)
        skipped = torch.cat([1 - running.weights(batch(part)) for part in norms.split(size)])
        assert skipped[WARM_UP + 64 :].mean().item() == pytest.approx(share, abs=0.03)


def test_dropped_captions_neither_warm_up_nor_lower_the_threshold(batch):
    running = hooks(0.1)
    running.weights(batch([[0.0]] * 5 * WARM_UP))
    assert running.state_dict() == {"norms": []}
    running.weights(batch([[1.0], [2.0], [0.0]] * WARM_UP))
    assert running.weights(batch([[0.0], [0.5], [1.0]])).tolist() == [1, 1, 0]


def test_its_state_goes_through_json_and_goes_on(batch):
    norms = torch.rand(400, generator=torch.Generator().manual_seed(0))[:, None]
    whole, first = hooks(), hooks()
    expected = [whole.weights(batch(part)) for part in norms.split(8)][25:]
    for part in norms[:200].split(8):
        first.weights(batch(part))
    resumed = hooks()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert torch.equal(torch.cat([resumed.weights(batch(part)) for part in norms[200:].split(8)]), torch.cat(expected))


def test_a_norm_that_is_not_a_number_skips_nothing(batch):
    running = hooks()
    running.weights(batch([[1.0]] * WARM_UP))
    assert running.weights(batch([[float("nan")]])).tolist() == [1]
