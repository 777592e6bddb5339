"""What is random: every picture once a round, uniform timesteps, dropped captions in their share, and all of it known ahead and resumable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training import PLAN

from trainers.draws import Ahead, Drawn, Draws

SHAPE = torch.Size((4, 8, 12))


def draws_of(count: int = 10, shape: tuple[int, ...] = SHAPE, **plan) -> Draws:
    return Draws(torch.arange(count), torch.Size(shape), 1000, replace(PLAN, **plan))


def equal(a: Drawn, b: Drawn) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@pytest.mark.parametrize("count, size", [(10, 4), (3, 8), (7, 7), (5, 1)])
def test_every_picture_comes_once_before_any_comes_again(count, size):
    draws = draws_of(count, (1, 1, 1), batch_size=size)
    taken = [draws.next().rows for _ in range(3 * count)]
    assert {len(rows) for rows in taken} == {size}
    drawn = torch.cat(taken).tolist()
    rounds = [drawn[start : start + count] for start in range(0, len(drawn) - count + 1, count)]
    assert all(sorted(each) == list(range(count)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1, "each round has an order of its own"


def test_only_the_kept_pictures_come():
    draws = Draws(torch.tensor([3, 7, 8]), SHAPE, 1000, PLAN)
    assert set(torch.cat([draws.next().rows for _ in range(4)]).tolist()) == {3, 7, 8}


def test_shapes_and_a_distribution_each():
    drawn = draws_of(20_000, (1, 2, 3), batch_size=20_000, caption_dropout=0.1).next()
    assert drawn.noise.shape == drawn.posterior_noise.shape == (20_000, 1, 2, 3) and not torch.equal(drawn.noise, drawn.posterior_noise)
    for noise in (drawn.noise, drawn.posterior_noise):
        assert abs(noise.mean()) < 0.01 and noise.std().item() == pytest.approx(1, abs=0.01)
    shares = torch.histc(drawn.timesteps.float(), bins=10, min=0, max=1000) / 20_000
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)
    assert drawn.timesteps.min() < 5 and 995 <= drawn.timesteps.max() <= 999
    assert drawn.dropped.float().mean().item() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("dropout, wanted", [(0.0, {False}), (1.0, {True})])
def test_captions_are_dropped_never_or_always(dropout, wanted):
    assert set(draws_of(caption_dropout=dropout, batch_size=200).next().dropped.tolist()) == wanted


def test_noise_offset_moves_whole_channels_and_nothing_else_of_the_batch():
    """Its variance adds to each element's, and a channel's mean, else about 0, has the offset as its deviation."""
    plain, moved = (draws_of(noise_offset=offset, batch_size=4_000, shape=(4, 8, 8)).next() for offset in (0.0, 0.3))
    change = moved.noise - plain.noise
    assert torch.allclose(change, change[..., :1, :1].expand_as(change), atol=1e-6)
    assert change.std().item() == pytest.approx(0.3, abs=0.01) and moved.noise.std().item() == pytest.approx((1 + 0.3**2) ** 0.5, abs=0.01)
    assert equal(replace(moved, noise=plain.noise), plain)


def test_the_order_is_known_ahead_from_any_step_and_asking_moves_nothing():
    draws, other = draws_of(), draws_of()
    other.next()
    ahead = [Ahead(draws), Ahead(other)]
    late = ahead[0](5)
    wanted = [draws.next().rows.numpy() for _ in range(6)]
    for step, rows in enumerate(wanted, 1):
        assert all(np.array_equal(known(step), rows) for known in ahead)
    assert np.array_equal(late, wanted[4])


def test_parts_are_as_equal_as_can_be_and_make_up_the_batch():
    drawn = draws_of(40, batch_size=32).next()
    for count, sizes in ((1, [32]), (2, [16, 16]), (5, [6, 6, 7, 6, 7]), (32, [1] * 32), (99, [1] * 32)):
        parts = list(drawn.parts(count))
        assert [len(part) for _, part in parts] == sizes
        assert torch.equal(torch.cat([part.noise for _, part in parts]), drawn.noise)
        assert torch.equal(torch.cat([drawn.rows[place] for place, _ in parts]), drawn.rows)


def test_state_goes_over_in_the_middle_of_a_round():
    first, second = draws_of(shape=(1, 1, 1)), draws_of(shape=(1, 1, 1), seed=99)  # an odd number of normals leaves one in the generator
    for _ in range(3):
        first.next()
    second.load_state_dict(first.state_dict())
    assert all(equal(first.next(), second.next()) for _ in range(5))
