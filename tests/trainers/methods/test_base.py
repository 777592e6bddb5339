"""What the base classes of a method give, and that methods follow one another on one U-Net. What each method must keep is in
`test_conformance`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.candidate import Candidate
from trainers.methods import METHODS, BaseCache
from trainers.methods.conformance import RATE, Snapshot, specimen, train


def test_all_methods_one_after_another_leave_the_same_bits(unet, units):
    before = Snapshot(unet)
    for method in METHODS.values():
        subset = specimen(method).apply(unet, units)
        train(unet, subset, "fp32")
        subset.restore()
    assert before.faults() == []


@pytest.mark.parametrize("name", ["full", "lora"])
def test_all_parameters_have_the_candidates_rate_unless_a_method_says_otherwise(unet, units, name):
    subject = specimen(METHODS[name])
    subset = subject.apply(unet, units)
    assert subset.rates(subject.candidate) == dict.fromkeys(subset.parameters, RATE)


def test_generating_is_open_to_a_method_that_has_nothing_to_prepare(unet, units):
    subset = METHODS["bias"].apply(unet, units, Candidate.of("bias", ("mid",), ("bias",), 1e-3, 1))
    with subset.generating() as nothing:
        assert nothing is None and all(parameter.requires_grad for parameter in subset.parameters.values())


def test_what_is_computed_once_per_base_model_is_made_once(tmp_path):
    made = []

    def make(value: float):
        def arrays() -> dict[str, np.ndarray]:
            made.append(value)
            return {"values": np.full(3, value)}
        return arrays

    cache, other = BaseCache(tmp_path, "one"), BaseCache(tmp_path, "other")
    assert [float(each.remember("kind", make(value), *of)["values"][0]) for each, value, of in
            ((cache, 1, ()), (cache, 2, ()), (cache, 3, ("tensor",)), (other, 4, ()), (BaseCache(tmp_path, "one"), 5, ("tensor",)))] == [1, 1, 3, 4, 3]
    assert made == [1, 3, 4]


def test_tensors_are_copies(unet, units):
    subset = specimen(METHODS["lora"]).apply(unet, units)
    for tensor in subset.tensors().values():
        tensor.fill_(7.0)
    assert not any(torch.all(parameter == 7.0) for parameter in subset.parameters.values())
