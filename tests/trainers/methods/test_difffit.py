"""DiffFit's own: published counts, where each factor acts, and that a model is kept and merged with its factors."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from training import gradients_both_ways

from trainers import checkpoint
from trainers.candidate import Candidate, Part
from trainers.errors import BadModel, BadSelection
from trainers.methods import METHODS
from trainers.units import REGIONS, walk

DIFFFIT = METHODS["difffit"]
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
STATES = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
WIDTH = 32
ALL = ("scale", "bias", "norm")
FACTORS = {"gamma_attn1", "gamma_attn2", "gamma_ff", *(f"{attention}.gamma_{name}" for attention in ("attn1", "attn2") for name in ("q", "k", "v", "out"))}
MASKED = (*(f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)), "mid_block.attentions.0",
          *(f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(2)))  # the 13 bits of the papers' code


def candidate(kinds=ALL, regions=REGIONS, frozen=()) -> Candidate:
    return Candidate.of("difffit", regions, kinds, 1e-3, 1, frozen=frozen)


def output(unet) -> torch.Tensor:
    return unet(LATENTS, torch.tensor([10, 900]), STATES).sample


@torch.no_grad()
def spread(subset, seed: int = 4) -> None:
    """Values as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in subset.parameters.values():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    return unet, walk(unet)


@pytest.mark.parametrize("kinds, frozen, count", [(ALL, (), 581_124), (("scale",), (), 137_280), (("bias", "norm"), (), 443_844), (ALL, MASKED, 468_484)])
def test_counts_on_stable_diffusion_are_the_papers(stable_diffusion, kinds, frozen, count):
    """The last: all 13 bits of the memorization papers' mask are off, which freezes factors alone."""
    parts = (Part(frozen, ("scale",)),) if frozen else ()
    assert DIFFFIT.count(*stable_diffusion, candidate(kinds, frozen=parts)) == count


def test_a_transformer_block_has_eleven_factors_of_its_width(unet, units):
    subset = DIFFFIT.apply(unet, units, candidate(("scale",)))
    of_block = {name.removeprefix(f"{BLOCK}."): parameter for name, parameter in subset.parameters.items() if name.startswith(BLOCK)}
    assert of_block.keys() == FACTORS and {tuple(parameter.shape) for parameter in of_block.values()} == {(WIDTH,)}


@pytest.mark.parametrize("layer, factor", [("attn1.to_q", "attn1.gamma_q"), ("attn1.to_k", "attn1.gamma_k"), ("attn2.to_v", "attn2.gamma_v"),
                                           ("attn2.to_out.0", "attn2.gamma_out"), ("ff", "gamma_ff")])
def test_a_factor_multiplies_the_output_of_its_layer(unet, units, layer, factor):
    module = unet.get_submodule(f"{BLOCK}.{layer}")
    x = torch.randn(2, 3, 64 if layer == "attn2.to_v" else WIDTH)
    with torch.no_grad():
        before = module(x)
        subset = DIFFFIT.apply(unet, units, candidate(("scale",)))
        subset.parameters[f"{BLOCK}.{factor}"].copy_(torch.arange(WIDTH))
        assert torch.equal(module(x), before * torch.arange(WIDTH))


def test_a_block_whose_branches_have_factor_zero_gives_back_its_input(unet, units):
    subset, block = DIFFFIT.apply(unet, units, candidate(("scale",))), unet.get_submodule(BLOCK)
    x = torch.randn(2, 3, WIDTH)
    with torch.no_grad():
        for name in ("gamma_attn1", "gamma_attn2", "gamma_ff"):
            assert not torch.equal(block(x, encoder_hidden_states=STATES), x)
            subset.parameters[f"{BLOCK}.{name}"].zero_()
        assert torch.equal(block(x, encoder_hidden_states=STATES), x)


def test_the_scale_of_a_site_can_be_frozen_alone(unet, units):
    site = "down_blocks.0.attentions.0"
    whole = DIFFFIT.apply(unet, units, candidate())
    whole.restore()
    masked = DIFFFIT.apply(unet, units, candidate(frozen=(Part((site,), ("scale",)),)))
    assert whole.parameters.keys() - masked.parameters.keys() == {f"{BLOCK}.{factor}" for factor in FACTORS}
    masked.restore()
    strict = DIFFFIT.apply(unet, units, candidate(frozen=(Part((site,), ("everything", "scale")),)))
    assert not any(name.startswith(site) for name in strict.parameters) and strict.parameters


def test_merged_weights_are_rows_times_factors(unet, units):
    subset = DIFFFIT.apply(unet, units, candidate())
    spread(subset)
    merged, own, values = subset.merged(), dict(unet.named_parameters()), {name: parameter.detach() for name, parameter in subset.parameters.items()}
    queries, out = f"{BLOCK}.attn1.to_q.weight", f"{BLOCK}.attn1.to_out.0"
    both = values[f"{BLOCK}.gamma_attn1"] * values[f"{BLOCK}.attn1.gamma_out"]
    torch.testing.assert_close(merged[queries], own[queries].detach() * values[f"{BLOCK}.attn1.gamma_q"][:, None])
    torch.testing.assert_close(merged[f"{out}.weight"], own[f"{out}.weight"].detach() * both[:, None])
    torch.testing.assert_close(merged[f"{out}.bias"], values[f"{out}.bias"] * both)


@pytest.mark.parametrize("kinds", [ALL, ("scale",)])
def test_an_unchanged_network_with_merged_weights_computes_the_same(unet, units, kinds):
    subset = DIFFFIT.apply(unet, units, candidate(kinds))
    spread(subset)
    with torch.no_grad():
        trained, merged = output(unet), subset.merged()
        subset.restore()
        base = output(unet)
        unet.load_state_dict({**unet.state_dict(), **merged})
        torch.testing.assert_close(output(unet), trained, rtol=1e-5, atol=1e-5)
    assert (base - trained).abs().max() > 0.01


def test_kept_and_loaded_again_it_has_its_factors(unet, units, tmp_path):
    subset = DIFFFIT.apply(unet, units, candidate())
    spread(subset)
    with torch.no_grad():
        trained = output(unet)
        checkpoint.save(tmp_path / "kept.safetensors", subset, candidate(), "base")
        subset.restore()
        assert not torch.equal(output(unet), trained)
        again = checkpoint.load(tmp_path / "kept.safetensors", unet, units, "base")
        assert torch.equal(output(unet), trained)
        again.restore()
    assert sum("gamma_" in name for name in checkpoint.read(tmp_path / "kept.safetensors").tensors) == 4 * len(FACTORS)
    checkpoint.save(tmp_path / "other.safetensors", subset, candidate(("bias", "norm")), "base")
    with pytest.raises(BadModel, match="gamma_"):  # the published code leaves them out in silence
        checkpoint.load(tmp_path / "other.safetensors", unet, units, "base")


def test_gradient_checkpointing_gives_the_same_gradients(unet, units):
    plain, checkpointed = gradients_both_ways(unet, DIFFFIT.apply(unet, units, candidate()), output)
    assert all(map(torch.equal, plain, checkpointed))


@pytest.mark.parametrize("kinds", [ALL, ("scale",)])
def test_in_low_precision_the_start_is_the_base_and_the_end_its_very_tensors(unet, units, kinds):
    unet.to(torch.bfloat16)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in unet.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        base = output(unet)
        subset = DIFFFIT.apply(unet, units, candidate(kinds))
        start = output(unet)
    start.float().square().mean().backward()
    assert torch.equal(start, base) and start.dtype == base.dtype
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.any() for parameter in subset.parameters.values())
    spread(subset)
    subset.restore()
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].data_ptr() == place and torch.equal(after[name], tensor) for name, (place, tensor) in before.items())


def test_nothing_is_left_behind(unet, units):
    modules = dict(unet.named_modules())
    DIFFFIT.apply(unet, units, candidate()).restore()
    assert dict(unet.named_modules()) == modules
    assert not any(module._forward_hooks for module in unet.modules()) and not any("gamma" in name for name, _ in unet.named_parameters())


def test_what_was_added_is_taken_away_when_there_is_no_memory_for_the_rest(unet, units, monkeypatch):
    names, register, made = list(unet.state_dict()), torch.nn.Module.register_parameter, []

    def scarce(self, name, parameter):
        if len(made) == 3:
            raise torch.OutOfMemoryError("no memory")
        made.append(name)
        register(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        DIFFFIT.apply(unet, units, candidate())
    assert len(made) == 3 and list(unet.state_dict()) == names
    assert not any(module._forward_hooks for module in unet.modules()) and not any(parameter.requires_grad for parameter in unet.parameters())


@pytest.mark.parametrize("regions, kinds, frozen, words", [
    (("mid_block.resnets",), ("scale",), (), ["nothing to train in DiffFit on scale of mid_block.resnets", "choose"]),
    (("up",), ("scale",), (Part(("up",), ("scale",)),), ["nothing to train", "frozen: scale of up blocks"]),
    (("upp",), ("scale",), (), ["region 'upp'", "up"]),
    (("up",), ("scale", "biass"), (), ["kind 'biass'", "bias"]),
])
def test_a_selection_that_is_wrong_or_empty_is_refused_in_one_line(unet, units, regions, kinds, frozen, words):
    for act in (DIFFFIT.apply, DIFFFIT.count):
        with pytest.raises(BadSelection) as caught:
            act(unet, units, candidate(kinds, regions, frozen))
        assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words)
    assert not any("gamma" in name for name, _ in unet.named_parameters())
