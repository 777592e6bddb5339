"""SV-DIFF's own: published counts, the formula and its gradient against plain autograd, the cache, and what is not kept in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from training import gradients_both_ways

from trainers.candidate import Candidate, Part
from trainers.errors import BadSelection
from trainers.methods import METHODS, BaseCache, svdiff
from trainers.methods.svdiff import ShiftedConvolution, ShiftedLinear, ShiftedNorm, as_matrix, decompose, spectrum
from trainers.units import REGIONS, walk

SVDIFF = METHODS["svdiff"]
LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
STATES = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
MASKED = (*(f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)), "mid_block.attentions.0",
          *(f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(2)))  # the 13 bits of the papers' code


def candidate(kinds=("cross-attention",), regions=REGIONS, frozen=(), norm_rate=None) -> Candidate:
    return Candidate.of("svdiff", regions, kinds, 1e-3, 1, frozen=frozen, norm_rate=norm_rate)


def output(unet) -> torch.Tensor:
    return unet(LATENTS, torch.tensor([10, 900]), STATES).sample


def wrapped(kind, layer, scale: float = 0.3):
    """The layer with shifts that also switch some singular values off."""
    shifted = kind(layer.requires_grad_(False), **spectrum("weight", layer.weight, None))
    with torch.no_grad():
        shifted.delta.copy_(scale * torch.randn(shifted.delta.shape, generator=torch.Generator().manual_seed(5)))
        shifted.delta[-1] = -2 * shifted.sigma[-1]
    return shifted


def formula(weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(as_matrix(weight).double(), full_matrices=False)
    return (u @ torch.diag(torch.relu(sigma + delta.double())) @ vh).view(weight.shape)


@pytest.fixture(scope="module")
def stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    return unet, walk(unet)


@pytest.mark.parametrize("frozen, count", [((), 222_805), (MASKED[:1], 222_805 - 3_203), (MASKED[2:3], 222_805 - 6_403), (MASKED[6:7], 222_805 - 11_779),
                                           (MASKED, 125_486)])
def test_counts_on_stable_diffusion_are_the_papers(stable_diffusion, frozen, count):
    """All of it, and what is left when blocks of the memorization papers' mask are off."""
    parts = (Part(frozen, ("transformer-block",)),) if frozen else ()
    assert SVDIFF.count(*stable_diffusion, candidate(("everything",), frozen=parts)) == count


def test_a_diagonal_weight_by_hand():
    layer = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    shifted = wrapped(ShiftedLinear, layer)
    with torch.no_grad():
        shifted.delta.copy_(torch.tensor([1.0, -2.0]))  # 3 + 1 and relu(1 − 2)
    torch.testing.assert_close(shifted(torch.tensor([[1.0, 1.0]])), torch.tensor([[4.0, 0.0]]))


@pytest.mark.parametrize("make", [lambda: torch.nn.GroupNorm(2, 4), lambda: torch.nn.LayerNorm(4)])
def test_a_norm_has_one_shift_of_its_length(make):
    norm = make()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 2.0, 4.0]))  # of length 5
        norm.bias.uniform_()
    shifted, x = ShiftedNorm(norm, **spectrum("weight", norm.weight, None)), torch.randn(3, 4, 4)
    assert shifted.delta.shape == (1,)
    with torch.no_grad():
        shifted.delta.fill_(2.5)
    longer = make()
    longer.load_state_dict({"weight": 1.5 * norm.weight, "bias": norm.bias})
    torch.testing.assert_close(shifted(x), longer(x))
    torch.testing.assert_close(shifted.exact(), 1.5 * norm.weight)


LAYERS = {
    "wide": (ShiftedLinear, lambda: torch.nn.Linear(7, 4), (2, 3, 7)), "tall": (ShiftedLinear, lambda: torch.nn.Linear(4, 7, bias=False), (2, 4)),
    "square": (ShiftedLinear, lambda: torch.nn.Linear(5, 5), (2, 3, 2, 5)),
    "convolution": (ShiftedConvolution, lambda: torch.nn.Conv2d(3, 5, 3, stride=2, padding=1), (2, 3, 6, 6)),
    "tall convolution": (ShiftedConvolution, lambda: torch.nn.Conv2d(2, 20, 3, padding=1, bias=False), (1, 2, 4, 4)),
    "grouped convolution": (ShiftedConvolution, lambda: torch.nn.Conv2d(4, 6, 3, dilation=2, groups=2), (1, 4, 7, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_the_formula(name):
    kind, make, shape = LAYERS[name]
    torch.manual_seed(1)
    shifted = wrapped(kind, make())
    x, delta = torch.randn(shape, requires_grad=True), shifted.delta.detach().clone().requires_grad_()
    plain_x = x.detach().clone().requires_grad_()
    plain = torch.func.functional_call(shifted.base, {"weight": formula(shifted.base.weight, delta).float()}, (plain_x,))
    found = shifted(x)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    for result in (found, plain):
        result.square().sum().backward()
    torch.testing.assert_close(x.grad, plain_x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted.delta.grad, delta.grad, rtol=1e-4, atol=1e-4)
    assert shifted.delta.grad[-1] == 0 and shifted.delta.grad[0] != 0
    torch.testing.assert_close(shifted.exact().double(), formula(shifted.base.weight, delta), rtol=1e-5, atol=1e-6)


def test_rows_in_another_order_give_the_same_rows():
    torch.manual_seed(1)
    layer, order = torch.nn.Linear(9, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    other = torch.nn.Linear(9, 6)
    other.load_state_dict({"weight": layer.weight[order], "bias": layer.bias[order]})
    torch.testing.assert_close(wrapped(ShiftedLinear, other).exact(), wrapped(ShiftedLinear, layer).exact()[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows, columns", [(40, 40), (12, 90), (90, 12), (1, 8)])
@pytest.mark.parametrize("deficient", [False, True])
def test_a_decomposition_is_one(rows, columns, deficient):
    torch.manual_seed(1)
    weight = torch.randn(rows, columns)
    if deficient:
        weight[:, 1:] = weight[:, :1]
    found = {name: torch.from_numpy(array) for name, array in decompose(weight).items()}
    u, sigma, vh = found["u"], found["sigma"], found["vh"]
    k = min(rows, columns)
    assert u.shape == (rows, k) and sigma.shape == (k,) and vh.shape == (k, columns) and {each.dtype for each in found.values()} == {torch.float32}
    torch.testing.assert_close((u * sigma) @ vh, weight, rtol=1e-5, atol=1e-5 * float(sigma[0]))
    for product in (u.T @ u, vh @ vh.T):
        torch.testing.assert_close(product, torch.eye(k), rtol=0, atol=1e-5)
    torch.testing.assert_close(sigma.double(), torch.linalg.svdvals(weight.double()), rtol=1e-6, atol=1e-7 * float(sigma[0]))


def test_what_is_kept_for_the_backward_pass_is_the_input_and_the_shifts():
    shifted, kept = wrapped(ShiftedLinear, torch.nn.Linear(7, 4)), []
    x = torch.randn(2, 7)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        shifted(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr(), shifted.delta.data_ptr()]


def test_while_generating_each_weight_is_computed_once_to_the_same_bits(unet, units):
    subset = SVDIFF.apply(unet, units, candidate(("everything",)))
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(0.05)
        trained = output(unet)
        with subset.generating():
            for parameter in subset.parameters.values():
                parameter.add_(0.05)
            assert torch.equal(output(unet), trained)
        assert not torch.equal(output(unet), trained)


def test_norms_have_a_rate_of_their_own(unet, units):
    subset = SVDIFF.apply(unet, units, candidate(("everything",)))
    norms = {f"{name}.delta" for name, module in unet.named_modules() if isinstance(module, ShiftedNorm)}
    rates = subset.rates(candidate(("everything",), norm_rate=1e-6))
    assert {name for name, rate in rates.items() if rate == 1e-6} == norms and set(rates.values()) == {1e-3, 1e-6} and rates.keys() == subset.parameters.keys()
    assert set(subset.rates(candidate(("everything",))).values()) == {1e-3}


def test_decompositions_are_made_once_for_a_base_model_and_only_of_what_is_selected(unet, units, tmp_path, monkeypatch):
    plain = SVDIFF.apply(unet, units, candidate())
    expected = {name: shifted.exact() for name, shifted in plain.shifted.items()}
    plain.restore()
    SVDIFF.apply(unet, units, candidate(), BaseCache(tmp_path, "base")).restore()
    assert sum(each.is_dir() for each in (tmp_path / "svd").iterdir()) == len(expected) < 20

    def never(weight):
        raise AssertionError("it should have been there")

    monkeypatch.setattr(svdiff, "decompose", never)
    again = SVDIFF.apply(unet, units, candidate(), BaseCache(tmp_path, "base"))
    assert all(torch.equal(shifted.exact(), expected[name]) for name, shifted in again.shifted.items())
    again.restore()
    for other in (BaseCache(tmp_path, "another base"), None):
        with pytest.raises(AssertionError):
            SVDIFF.apply(unet, units, candidate(), other)
    with pytest.raises(AssertionError):
        SVDIFF.apply(unet, units, candidate(("feed-forward",)), BaseCache(tmp_path, "base"))


def test_shifts_from_the_cache_train_as_those_computed_anew(unet, units, tmp_path):
    gradients = []
    for cache in (None, BaseCache(tmp_path, "base"), BaseCache(tmp_path, "base")):
        subset = SVDIFF.apply(unet, units, candidate(), cache)
        output(unet).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in subset.parameters.items()})
        subset.restore()
    for other in gradients[1:]:
        assert all(torch.equal(other[name], gradient) for name, gradient in gradients[0].items())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say how much of a map is in memory")
def test_while_generating_and_after_merging_the_cache_takes_no_memory(unet, units, tmp_path):
    def resident() -> int:
        maps = Path("/proc/self/smaps").read_text().splitlines()
        ours = [number for number, line in enumerate(maps) if str(tmp_path) in line]
        return sum(int(next(line for line in maps[number:] if line.startswith("Rss:")).split()[1]) for number in ours)

    subset = SVDIFF.apply(unet, units, candidate(), BaseCache(tmp_path, "base"))
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(0.05)
        trained = output(unet)
        assert resident() > 0
        with subset.generating():
            assert torch.equal(output(unet), trained) and resident() == 0
        assert torch.equal(output(unet), trained) and resident() > 0
        merged = subset.merged()
        assert resident() == 0 and all(torch.equal(merged[f"{name}.weight"], shifted.exact()) for name, shifted in subset.shifted.items())


def test_gradient_checkpointing_gives_the_same_gradients(unet, units):
    plain, checkpointed = gradients_both_ways(unet, SVDIFF.apply(unet, units, candidate(("everything",))), output)
    assert all(map(torch.equal, plain, checkpointed))


@pytest.mark.parametrize("kinds", [("everything",), ("norm",)])
def test_in_low_precision_the_start_is_the_base_and_shifts_are_float32(unet, kinds):
    unet.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        base = output(unet)
        subset = SVDIFF.apply(unet, walk(unet), candidate(kinds))
        start = output(unet)
    start.float().square().mean().backward()
    assert torch.equal(start, base)
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 and parameter.grad.any() for parameter in subset.parameters.values())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for parameter in subset.parameters.values():
            parameter.add_(0.77)
        trained = output(unet)
        with subset.generating():
            assert torch.equal(output(unet), trained) and not torch.equal(trained, base)
    assert {tensor.dtype for tensor in subset.merged().values()} == {torch.float32}
    subset.restore()
    after = unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_gradients_in_low_precision_are_near_those_in_full(unet, units):
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        unet.to(dtype)
        subset = SVDIFF.apply(unet, units, candidate(("projection",)))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = output(unet)
        loss.float().square().mean().backward()
        # Singular vectors of rounded weights are turned a little, so that only sums over all shifts of a layer agree.
        gradients.append(torch.stack([parameter.grad.norm() for parameter in subset.parameters.values()]))
        subset.restore()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.2, atol=0)


def check_untouched(unet, modules, names) -> None:
    assert dict(unet.named_modules()) == modules and list(unet.state_dict()) == names


@pytest.mark.parametrize("kinds", [("bias",)])
def test_kinds_without_anything_to_shift_are_refused(unet, units, kinds):
    modules, names = dict(unet.named_modules()), list(unet.state_dict())
    for act in (SVDIFF.apply, SVDIFF.count):
        with pytest.raises(BadSelection, match="nothing to shift in SV-DIFF on bias"):
            act(unet, units, candidate(kinds))
    check_untouched(unet, modules, names)


def test_a_layer_of_another_make_is_refused_by_name(unet, units):
    unet.conv_in.padding_mode = "circular"
    modules, names = dict(unet.named_modules()), list(unet.state_dict())
    with pytest.raises(BadSelection, match="cannot shift conv_in") as caught:
        SVDIFF.apply(unet, units, candidate(("everything",)))
    assert "\n" not in str(caught.value)
    check_untouched(unet, modules, names)


def test_what_was_wrapped_is_put_back_when_there_is_no_memory_for_the_rest(unet, units, monkeypatch):
    modules, names, made = dict(unet.named_modules()), list(unet.state_dict()), []

    def scarce(tensor, weight, cache):
        if len(made) == 3:
            raise torch.OutOfMemoryError("no memory")
        made.append(tensor)
        return spectrum(tensor, weight, cache)

    monkeypatch.setattr(svdiff, "spectrum", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        SVDIFF.apply(unet, units, candidate())
    assert len(made) == 3
    check_untouched(unet, modules, names)
