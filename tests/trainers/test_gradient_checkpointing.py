"""Gradient checkpointing: the same bits for fewer activations, and nothing computed twice below the first trained block."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from training import PLAN, same, subset_of, trained

from trainers.fit import fit
from trainers.gradient_checkpointing import blocks, gradient_checkpointing, reached

ALL = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
LATENTS, STATES = torch.zeros(2, 4, 8, 12), torch.zeros(2, 5, 64)


def train_only(unet, *beginnings: str) -> None:
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(name.startswith(beginnings))


@pytest.mark.parametrize("trained, first", [("conv_in", 0), ("time_embedding", 0), ("down_blocks.0", 0), ("down_blocks.1", 1), ("mid_block", 2),
                                            ("up_blocks.0", 3), ("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 4), ("conv_norm_out", 5),
                                            ("conv_out", 5)])
def test_gradients_reach_from_the_first_trained_block_on(unet, trained, first):
    train_only(unet, trained)
    assert list(blocks(unet)) == ALL and reached(unet) == ALL[first:]


def test_the_lowest_of_several_counts_also_inside_an_adapter(unet, units):
    train_only(unet, "up_blocks.1", "mid_block", "conv_out")
    assert reached(unet) == ALL[2:]
    unet.requires_grad_(False)
    from trainers.candidate import Candidate
    from trainers.methods import METHODS

    METHODS["lora"].apply(unet, units, Candidate.of("lora", ("up",), ("cross-attention",), 1e-3, 1, 4))
    assert reached(unet) == ALL[4:]


def kept_bytes(unet, wanted: bool) -> int:
    """Activations that autograd keeps for the backward pass, without the network's own weights."""
    weights, kept = {parameter.data_ptr() for parameter in unet.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor  # held, so that no address is given out twice
        return tensor

    with gradient_checkpointing(unet, wanted), saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(LATENTS, torch.tensor([1, 2]), STATES).sample.sum().backward()
    return sum(tensor.nbytes for tensor in kept.values())


def test_frozen_parameters_alone_keep_nothing_of_what_lies_below_and_checkpointing_less_of_the_rest(unet):
    found = {}
    for first in ("conv_in", "mid_block", "up_blocks.1", "conv_out"):
        train_only(unet, first)
        found[first] = [kept_bytes(unet, wanted) for wanted in (False, True)]
    plain = [without for without, _ in found.values()]
    assert plain == sorted(plain, reverse=True) and plain[-1] < 0.02 * plain[0]
    assert found["conv_in"][1] < 0.5 * found["conv_in"][0]
    assert found["conv_out"][0] == found["conv_out"][1], "where there is nothing to save, no inputs are kept for it either"


@pytest.mark.parametrize("trained, twice", [("up_blocks.1", {"up_blocks.1"}), ("mid_block", {"mid_block", "up_blocks.0", "up_blocks.1"}), ("conv_out", set())])
def test_only_reached_blocks_are_computed_twice(unet, trained, twice):
    train_only(unet, trained)
    calls = Counter()
    for name, block in blocks(unet).items():
        block.resnets[-1].conv1.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with gradient_checkpointing(unet, True):
        unet.train()
        unet(LATENTS, torch.tensor([1, 2]), STATES).sample.sum().backward()
    assert calls == {name: 2 if name in twice else 1 for name in ALL}


@pytest.mark.parametrize("method, kinds", [("full", ("everything",)), ("norm", ("norm",))])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trained_weights_are_the_same_bits(unet, units, scheduler, examples, method, kinds, precision):
    plan = replace(PLAN, steps=2, precision=precision)
    given = (unet, units, scheduler, examples)
    assert same(trained(*given, plan, method, kinds), trained(*given, replace(plan, gradient_checkpointing=True), method, kinds))


def test_it_is_off_again_after_training_also_after_an_exception(unet, units, scheduler, examples):
    def stop(step):
        assert unet.is_gradient_checkpointing
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(unet, scheduler, subset_of(unet, units), examples, replace(PLAN, gradient_checkpointing=True), stop)
    assert not unet.is_gradient_checkpointing
