"""The average against values by hand; swapped in and out without a bit lost."""

from __future__ import annotations

import pytest
import torch

from trainers.ema import Average


@pytest.fixture
def parameter():
    return torch.nn.Parameter(torch.tensor([1.0, 2.0]))


def test_two_updates_by_hand(parameter):
    """Decays min(0.9, 1/10) and min(0.9, 2/11)."""
    average = Average([parameter], 0.9)
    parameter.data = torch.tensor([2.0, 2.0])
    average.update()
    assert average.values[0].tolist() == pytest.approx([1.9, 2.0])
    parameter.data = torch.tensor([3.0, 2.0])
    average.update()
    assert average.values[0].tolist() == pytest.approx([1.9 * 2 / 11 + 3 * 9 / 11, 2.0])


def test_later_the_decay_is_the_given_one(parameter):
    average = Average([parameter], 0.5)
    average.updates = 1000
    parameter.data = torch.tensor([2.0, 4.0])
    average.update()
    assert average.values[0].tolist() == [1.5, 3.0]


def test_the_average_of_what_stays_is_that(parameter):
    average = Average([parameter], 0.99)
    for _ in range(20):
        average.update()
    assert torch.equal(average.values[0], parameter.detach())


def test_swapped_in_inside_and_back_bit_for_bit_also_after_an_exception(parameter):
    average = Average([parameter], 0.9)
    parameter.data = torch.tensor([0.1, 0.3])
    own, mean = parameter.detach().clone(), average.values[0].clone()
    with pytest.raises(KeyboardInterrupt), average.swapped():
        assert torch.equal(parameter.detach(), mean)
        raise KeyboardInterrupt
    assert torch.equal(parameter.detach(), own) and torch.equal(average.values[0], mean)


def test_adopted_the_parameters_have_it(parameter):
    average = Average([parameter], 0.9)
    parameter.data = torch.tensor([7.0, 7.0])
    average.adopt()
    assert parameter.tolist() == [1.0, 2.0] and parameter.requires_grad


def test_without_a_decay_nothing_is_held_and_nothing_done(parameter):
    average = Average([parameter], None)
    average.update()
    parameter.data = torch.tensor([5.0, 6.0])
    with average.swapped():
        assert parameter.tolist() == [5.0, 6.0]
    average.adopt()
    assert parameter.tolist() == [5.0, 6.0] and average.values == []


def test_state_goes_over_to_another(parameter):
    first, second = (Average([torch.nn.Parameter(parameter.detach().clone())], 0.9) for _ in range(2))
    first.parameters[0].data += 1
    first.update()
    second.load_state_dict(first.state_dict())
    assert second.updates == 1 and torch.equal(second.values[0], first.values[0])
    with pytest.raises(ValueError):
        Average([], 0.9).load_state_dict(first.state_dict())
