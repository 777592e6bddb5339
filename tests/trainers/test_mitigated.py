"""Several mitigations as one: what is kept, said and weighed, and what cannot go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from training import PLAN

from trainers.draws import Draws
from trainers.errors import BadSelection
from trainers.mitigated import Mitigations
from trainers.mitigations.hooks import Batch, TrainingHooks


class Hook(TrainingHooks):
    """Does what it is given."""

    def __init__(self, **given):
        self.given, self.expected = given, None

    def kept(self):
        return self.given.get("kept")

    def expect(self, rows, steps):
        self.expected = (rows(1).tolist(), steps)

    def texts(self, step, rows):
        return [f"{self.given['texts']} {step} {row}" for row in rows] if "texts" in self.given else None

    def states(self, step, states):
        return states * self.given.get("factor", 1) + self.given.get("added", 0)

    def weights(self, batch):
        return self.given.get("weights")

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


def batch(count: int) -> Batch:
    return Batch(1, torch.zeros(count, 4, 1, 1), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 4, 1, 1), lambda: None, torch.ones(1), "epsilon", torch.zeros(count, dtype=torch.bool))


def drawn_of(examples, **plan):
    return Draws(torch.arange(len(examples)), examples.mean.shape[1:], 1000, replace(PLAN, **plan)).next()


def test_what_all_hooks_keep_is_kept():
    mitigations = Mitigations([Hook(), Hook(kept=np.array([9, 1, 4])), Hook(kept=np.array([4, 8, 9]))], None)
    assert mitigations.kept(10).tolist() == [4, 9] and Mitigations([], None).kept(3).tolist() == [0, 1, 2]


def test_nothing_kept_is_refused():
    with pytest.raises(BadSelection, match="leave none of 10 pictures"):
        Mitigations([Hook(kept=np.array([1])), Hook(kept=np.array([2]))], None).kept(10)


def test_each_hook_is_told_what_to_expect():
    hooks = [Hook(), Hook()]
    Mitigations(hooks, None).expect(lambda step: np.array([step, 7]), 12)
    assert [hook.expected for hook in hooks] == [([1, 7], 12)] * 2


def test_without_hooks_each_picture_has_its_own_caption_or_if_dropped_the_empty_one(examples):
    drawn = drawn_of(examples, batch_size=200, caption_dropout=0.3)
    states = Mitigations([], None).states(1, examples, drawn)
    assert 20 < drawn.dropped.sum() < 100
    for row, dropped, given in zip(drawn.rows, drawn.dropped, states):
        assert torch.equal(given, examples.states[examples.empty if dropped else examples.caption[row]])


def test_changed_captions_are_encoded_dropped_on_top_and_states_are_changed_last(examples):
    asked = []

    def encode(texts):
        asked.append(texts)
        return torch.stack([torch.full(examples.states.shape[1:], float(text.split()[-1])) for text in texts])

    drawn = drawn_of(examples, batch_size=50, caption_dropout=0.3)
    states = Mitigations([Hook(factor=2), Hook(texts="words"), Hook(added=1)], encode).states(3, examples, drawn)
    assert asked == [[f"words 3 {row}" for row in drawn.rows]]
    for row, dropped, given in zip(drawn.rows, drawn.dropped, states):
        heard = examples.states[-1] if dropped else torch.full_like(given, float(row))
        assert torch.equal(given, heard * 2 + 1)


def test_two_that_change_captions_are_refused(examples):
    with pytest.raises(BadSelection, match="2 mitigations change the captions of step 1"):
        Mitigations([Hook(texts="a"), Hook(texts="b")], lambda texts: examples.states[:1]).states(1, examples, drawn_of(examples))


def test_weights_multiply_and_none_is_one():
    weights = [torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 0.5, 1.0])]
    assert Mitigations([Hook(), *(Hook(weights=each) for each in weights), Hook()], None).weights(batch(3)).tolist() == [0.5, 0.25, 0.0]
    assert Mitigations([Hook(), Hook()], None).weights(batch(3)) is None and Mitigations([], None).weights(batch(3)) is None


@pytest.mark.parametrize("weights", [torch.ones(4), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0, float("nan"), 1.0]), torch.tensor(1.0)])
def test_weights_of_another_shape_or_below_zero_or_not_a_number_are_refused(weights):
    with pytest.raises(AssertionError, match=r"Hook: weights must be \(3,\) numbers from 0 on"):
        Mitigations([Hook(weights=weights)], None).weights(batch(3))


def test_states_of_all_hooks_go_over():
    first, second = Mitigations([Hook(a=1), Hook(b=2)], None), Mitigations([Hook(), Hook()], None)
    second.load_state_dict(first.state_dict())
    assert [hook.given for hook in second.hooks] == [{"a": 1}, {"b": 2}]
    with pytest.raises(ValueError):
        Mitigations([Hook()], None).load_state_dict(first.state_dict())
