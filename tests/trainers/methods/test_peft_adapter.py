"""What every tuner shares: ranks by part, wrapping and putting back, float32, merging, and PEFT's own folders."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel

from trainers.candidate import Candidate, Part
from trainers.methods import METHODS
from trainers.methods.conformance import STEPS, gradients, train
from trainers.methods.peft_adapter import peft_folder
from trainers.units import REGIONS

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
STATES = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
ATTENTION = ("self-attention", "cross-attention")
TO_K = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
SELF_K = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
DOWN_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


def candidate(name="lora", *parts: Part, **more) -> Candidate:
    return Candidate(name, parts or (Part(REGIONS, ATTENTION, 4),), 1e-3, 1, **more)


def apply(unet, units, wanted: Candidate, seed: int = 0):
    torch.manual_seed(seed)
    return METHODS[wanted.method].apply(unet, units, wanted)


@torch.no_grad()
def trained(subset):
    """The subset with values that are no start."""
    generator = torch.Generator().manual_seed(6)
    for parameter in subset.parameters.values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return subset


@torch.no_grad()
def output(unet) -> torch.Tensor:
    return unet(LATENTS, torch.tensor([10, 900]), STATES).sample


def ranks(subset) -> dict[str, int]:
    return {name.split(".lora_A")[0]: parameter.shape[0] for name, parameter in subset.parameters.items() if ".lora_A." in name}


def test_each_part_has_its_rank_and_the_last_one_that_selects_a_tensor_counts(unet, units):
    wanted = candidate("lora", Part(REGIONS, ATTENTION, 4), Part(("up",), ("cross-attention",), 8, 16.0), Part(("down",), ("self-attention",), 2),
                       frozen=(Part(("mid",), ("cross-attention",)),))
    declared = METHODS["lora"].count(unet, units, wanted)
    subset = apply(unet, units, wanted)
    found = ranks(subset)
    assert (found[TO_K], found[SELF_K], found[DOWN_K]) == (8, 4, 2) and set(found.values()) == {2, 4, 8}
    assert not any(name.startswith("mid") and ".attn2." in name for name in found) and any(name.startswith("mid") for name in found)
    assert declared == subset.count
    scales = {name: unet.get_submodule(name).scaling["default"] for name in (TO_K, SELF_K, DOWN_K)}
    assert scales == {TO_K: 2.0, SELF_K: 1.0, DOWN_K: 1.0}


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "dora", "hira", "oft", "hra", "vera", "miss", "randlora"])
def test_ranks_by_part_hold_for_every_tuner(unet, units, name):
    """Those whose configuration has no patterns become several adapters on different layers."""
    if name not in METHODS:
        pytest.skip(f"{name}: this version of PEFT has it not")
    before, plain = output(unet), copy.deepcopy(unet)
    wanted = candidate(name, Part(("down",), ATTENTION, 4), Part(("up",), ATTENTION, 2))
    declared = METHODS[name].count(unet, units, wanted)
    subset = apply(unet, units, wanted)
    torch.testing.assert_close(output(unet), before, rtol=1e-5, atol=1e-5)
    assert declared == subset.count == sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    flat = []
    train(unet, subset, "fp32", lambda step: flat.extend(gradients(unet, subset) if step == STEPS else ()))
    assert flat == []
    after = output(unet)
    plain.load_state_dict(subset.merged(), strict=False)
    torch.testing.assert_close(output(plain), after, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3)
    tensors = subset.tensors()
    subset.restore()
    assert torch.equal(output(unet), before)
    apply(unet, units, wanted, seed=9).load(tensors)
    assert torch.equal(output(unet), after)


def test_the_order_of_patterns_does_not_mix_layers_whose_names_begin_alike(unet, units):
    """attentions.1 is no beginning of attentions.10, and a dot is a dot."""
    wanted = candidate("lora", Part(("up_blocks.1",), ("cross-attention",), 2), Part(("up_blocks.1.attentions.1",), ("cross-attention",), 8))
    found = ranks(apply(unet, units, wanted))
    assert {rank for name, rank in found.items() if ".attentions.1." in name} == {8} and {rank for name, rank in found.items() if ".attentions.0." in name} == {2}


def test_only_the_layers_of_the_selection_are_adapted(unet, units):
    subset = apply(unet, units, candidate("lora", Part(("up",), ("cross-attention",), 4)))
    assert subset.parameters and all(name.startswith("up_blocks.") and ".attn2." in name for name in subset.parameters)


def test_the_start_is_random_and_repeats_with_its_seed(unet, units):
    starts = []
    for seed in (1, 1, 2):
        subset = apply(unet, units, candidate(), seed)
        starts.append(subset.tensors())
        subset.restore()
    name = next(name for name in starts[0] if "lora_A" in name)
    assert torch.equal(starts[0][name], starts[1][name]) and not torch.equal(starts[0][name], starts[2][name])


@pytest.mark.parametrize("parts", [(Part(REGIONS, ATTENTION, 4),), (Part(("down",), ATTENTION, 4), Part(("up",), ATTENTION, 2))])
@pytest.mark.parametrize("name, made", [("lora", "peft.tuners.lora.layer.Linear"), ("hra", "peft.tuners.hra.layer.HRALinear")])
def test_what_was_wrapped_is_put_back_when_there_is_no_memory_for_the_rest(unet, units, monkeypatch, name, made, parts):
    module, _, cls = made.rpartition(".")
    layer = getattr(__import__(module, fromlist=[cls]), cls)
    before, layers, attributes, wrap, wrapped = list(unet.state_dict()), dict(unet.named_modules()), set(vars(unet)), layer.__init__, []
    many = len(METHODS[name].chosen(unet, units, candidate(name, *parts))) - 1

    def scarce(self, *given, **named):
        if len(wrapped) == many:
            raise torch.OutOfMemoryError("no memory")
        wrapped.append(self)
        wrap(self, *given, **named)

    monkeypatch.setattr(layer, "__init__", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        apply(unet, units, candidate(name, *parts))
    assert len(wrapped) == many and dict(unet.named_modules()) == layers and list(unet.state_dict()) == before and set(vars(unet)) == attributes


def test_on_a_base_in_low_precision_the_merge_is_computed_in_float32(unet, units):
    unet.to(torch.bfloat16)
    base = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    subset = trained(apply(unet, units, candidate()))
    merged = subset.merged()
    a, b = subset.parameters[f"{TO_K}.lora_A.default.weight"], subset.parameters[f"{TO_K}.lora_B.default.weight"]
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(merged[f"{TO_K}.weight"], base[f"{TO_K}.weight"].float() + (b @ a).detach(), rtol=1e-6, atol=1e-7)
    assert merged.keys() == {f"{name}.weight" for name in subset.base}  # biases do not differ from the base's
    subset.restore()
    assert all(torch.equal(base[name], tensor) and tensor.dtype == torch.bfloat16 for name, tensor in unet.state_dict().items())


def test_while_generating_plain_layers_stand_in_and_the_wrapped_ones_come_back(unet, units):
    subset = trained(apply(unet, units, candidate()))
    wrapped, computed, merged = dict(unet.named_modules()), output(unet), subset.merged()
    with pytest.raises(KeyboardInterrupt), subset.generating():
        assert type(unet.get_submodule(TO_K)) is torch.nn.Linear and not any(parameter.requires_grad for parameter in unet.parameters())
        torch.testing.assert_close(output(unet), computed, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(merged[name], tensor) for name, tensor in subset.merged().items())
        raise KeyboardInterrupt
    assert dict(unet.named_modules()) == wrapped and torch.equal(output(unet), computed)


def test_in_low_precision_the_adapter_stays_while_generating(unet, units):
    """A change of 1e-4 of a weight is less than bfloat16 can tell apart; beside the base it is not lost."""
    unet.to(torch.bfloat16)
    subset = trained(apply(unet, units, candidate()))
    with subset.generating():
        assert unet.get_submodule(TO_K) is subset.wrapped[TO_K]


def load(unet, folder, *further: str):
    """The U-Net with the adapters of a folder, as someone without our code would load it."""
    model = PeftModel.from_pretrained(unet, str(folder))
    for adapter in further:
        model.load_adapter(str(folder / adapter), adapter)
    model.base_model.set_adapter(["default", *further])
    return model.base_model.model


@pytest.mark.parametrize("name, parts, further", [
    ("lora", (Part(REGIONS, ATTENTION, 4),), ()),
    ("lora", (Part(REGIONS, (*ATTENTION, "resnet"), 4, 2.0), Part(("up",), ATTENTION, 8, 16.0)), ()),
    ("dora", (Part(REGIONS, ATTENTION, 4),), ()),
    ("oft", (Part(REGIONS, ATTENTION, 8),), ()),
    ("vera", (Part(REGIONS, ATTENTION, 8),), ()),
    ("hra", (Part(("down",), ATTENTION, 4), Part(("up",), ATTENTION, 2)), ("2",))])
def test_a_folder_is_loaded_by_peft_itself(unet, units, tmp_path, name, parts, further):
    plain = copy.deepcopy(unet)
    subset = trained(apply(unet, units, candidate(name, *parts)))
    computed = output(unet)
    peft_folder(subset, tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", *further}
    assert torch.equal(output(unet), computed)
    torch.testing.assert_close(output(load(plain, tmp_path / "adapter", *further)), computed, rtol=1e-5, atol=1e-5)
