"""Hooks that change nothing, random numbers that repeat, and several generation hooks as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from trainers.mitigations.hooks import FirstStep, GenerationHooks, Guard, TrainingHooks


def test_hooks_change_nothing_by_default(batch):
    hooks, states = TrainingHooks(), torch.ones(2, 3, 4)
    assert hooks.kept() is None and hooks.texts(1, np.array([0])) is None and hooks.weights(batch([[1.0]])) is None
    assert hooks.states(1, states) is states and hooks.state_dict() == {}


def test_random_numbers_are_those_of_seed_name_and_numbers(learned):
    def drawn(learned, *asked):
        return tuple(learned.generator(*asked).integers(1 << 30, size=4))

    first = drawn(learned, "rwa", 1)
    assert first == drawn(learned, "rwa", 1)
    others = {drawn(learned, "rwa", 2), drawn(learned, "noise", 1), drawn(learned, "rwa"), drawn(replace(learned, seed=4), "rwa", 1),
              drawn(replace(learned, seed=(1 << 63) - 1), "rwa", 1)}
    assert len(others | {first}) == 6


def test_texts_are_those_of_the_pictures(learned):
    assert learned.texts(np.array([5, 0, 9])) == [learned.captions[1], learned.captions[0], learned.captions[1]]


class Says(GenerationHooks):
    """Adds a word, and to the states a number."""

    def __init__(self, word, number):
        self.word, self.number = word, number

    def texts(self, captions, pictures):
        return None if self.word is None else [f"{caption} {self.word}{picture}" for caption, picture in zip(captions, pictures)]

    def states(self, first, states):
        return states * 2 + self.number


def test_a_guard_asks_its_hooks_in_turn_texts_first():
    first = FirstStep(torch.zeros(1, 1, 1), lambda states: states, 0.5, "epsilon")
    heard = []

    def encode(texts):
        heard.append(texts)
        return torch.full((len(texts), 1, 1), 10.0)

    states, rows, pictures = torch.ones(2, 1, 1), np.array([1, 0]), np.array([4, 5])
    found = Guard((Says("x", 1), Says(None, 0), Says("y", 3)), ["a", "b"], encode).states(first, states, rows, pictures)
    assert heard == [["b x4 y4", "a x5 y5"]] and found.flatten().tolist() == [((10 * 2 + 1) * 2 + 0) * 2 + 3] * 2
    assert Guard((Says(None, 1),), ["a", "b"], encode).states(first, states, rows, pictures).flatten().tolist() == [3, 3]
    assert len(heard) == 1, "where no text changes, the states at hand are taken"
