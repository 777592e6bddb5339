"""How much memory one training step takes, by running it on tensors that have shapes and no values. What is written of it is elsewhere's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers import optimizers
from trainers.base_model import PIXELS_AT_ONCE
from trainers.candidate import Candidate
from trainers.gradient_checkpointing import gradient_checkpointing
from trainers.loss import AUTOCAST
from trainers.methods import METHODS
from trainers.methods.peft_adapter import Tuner
from trainers.methods.svdiff import as_matrix, wrapper
from trainers.model_files import LAYOUTS
from trainers.units import walk

PIXELS_A_LATENT = 8
ENCODED_SIDE = 512
TOKENS = 77  # of CLIP's window
LAYOUT = LAYOUTS / "sd15"
# What autocast computes in float32 on CUDA and in the given precision on a CPU, of the functions that a U-Net calls.
FLOAT32_ON_CUDA = ("layer_norm", "group_norm")


@dataclass(frozen=True)
class Footprint:
    """Bytes. trainable: elements. resident: what is there before the first step: frozen weights, the method's additions and the trained values.
    state: gradients and optimizer. activations: kept by the forward pass. peak: the most at any moment of a step, temporaries included.
    """

    trainable: int
    resident: int
    state: int
    activations: int
    peak: int


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, now and at most, counted once for each storage."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, weakref.ref] = {}

    def add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:  # a sparse tensor's indices and values are tensors themselves
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.known:
                continue
            size = storage.nbytes()
            self.known[key] = weakref.ref(storage, lambda gone, key=key, size=size: self.drop(key, size))
            self.now += size
            self.most = max(self.most, self.now)

    def drop(self, key: int, size: int) -> None:
        self.known.pop(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default:  # a scale that is read as a number, which decides no size
            return 1.0
        result = function(*arguments, **(keywords or {}))
        self.add(tree_leaves(result))
        return result


class AsOnCuda(TorchFunctionMode):
    """Norms in float32, as CUDA's autocast has them."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if getattr(function, "__name__", "") in FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            arguments, keywords = ([in_full(each) for each in arguments], {name: in_full(each) for name, each in keywords.items()})
        return function(*arguments, **keywords)


def in_full(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@contextmanager
def shapes_only() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def blank(precision: str) -> Any:
    """Stable Diffusion v1.5's U-Net, frozen, in the precision in which frozen weights are kept. Its values are left as they are found."""
    from diffusers import UNet2DConditionModel

    usual = torch.get_default_dtype()
    torch.set_default_dtype(AUTOCAST[precision] or usual)
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(LAYOUT / "unet"))
    finally:
        torch.set_default_dtype(usual)
    return unet.to_empty(device="cpu").requires_grad_(False)


def valueless(unet: Any) -> dict[int, torch.nn.Parameter]:
    """Give every parameter and buffer of a U-Net a tensor of shapes in its place; gives the new parameters by the old ones' id."""
    replaced: dict[int, torch.nn.Parameter] = {}
    for module in unet.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = replaced.setdefault(id(old), torch.nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad))
                module._parameters[name] = new
        for name, old in module._buffers.items():
            module._buffers[name] = old if old is None else torch.empty(old.shape, dtype=old.dtype)
    return replaced


def shifted(unet: Any, candidate: Candidate) -> list[torch.nn.Parameter]:
    """SV-DIFF's layers, of shapes alone: there are no values to decompose."""
    trained = []
    for name, layer in METHODS["svdiff"].layers(unet, walk(unet), candidate).items():
        rows, columns = as_matrix(layer.weight).shape
        rank, dtype = min(rows, columns), layer.weight.dtype if layer.weight.ndim > 1 else torch.float32
        made = wrapper(layer)(layer, torch.empty(rows, rank, dtype=dtype), torch.empty(rank), torch.empty(rank, columns, dtype=dtype))
        unet.set_submodule(name, made)
        trained.append(made.delta)
    return trained


def footprints(candidate: Candidate, sizes: Iterable[tuple[int, int]], precision: str, checkpointed: bool = False) -> dict[tuple[int, int], Footprint]:
    """Of one step of AdamW on Stable Diffusion v1.5, for each (pixels a side, pictures a batch), after the first step, which makes the optimizer's state.
    checkpointed: with gradient checkpointing.

    PEFT's adapters are made on a U-Net whose memory is never touched, since some look at values; the rest is made of shapes.
    """
    found, method, unet = {}, METHODS[candidate.method], blank(precision).train()
    with_values = method.apply(unet, walk(unet), candidate) if isinstance(method, Tuner) else None
    with shapes_only(), Live() as live, AsOnCuda(), ExitStack() as stack:
        new, subset = valueless(unet), None
        if with_values is not None:
            trained = [new[id(parameter)] for parameter in with_values.parameters.values()]
        elif candidate.method == "svdiff":
            trained = shifted(unet, candidate)
        else:
            subset = method.apply(unet, walk(unet), candidate)  # kept: it holds the base's values beside the trained ones
            trained = list(subset.parameters.values())
        resident, named = live.now, dict(enumerate(trained))
        optimizer = optimizers.optimizer_of("adamw", named, dict.fromkeys(named, candidate.learning_rate))
        stack.enter_context(gradient_checkpointing(unet, checkpointed))
        first, *_ = sizes = list(sizes)
        for resolution, batch in (first, *sizes):
            optimizer.zero_grad(set_to_none=True)
            side = resolution // PIXELS_A_LATENT
            latents, states = torch.empty(batch, unet.config.in_channels, side, side), torch.empty(batch, TOKENS, unet.config.cross_attention_dim)
            before = live.most = live.now
            with torch.autocast("cpu", dtype=AUTOCAST[precision], enabled=AUTOCAST[precision] is not None):
                predicted = unet(latents, torch.empty(batch, dtype=torch.int64), states).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), latents)
            del predicted
            kept = live.now - before
            torch.autograd.backward(loss)  # a tensor's own `backward` would suspend AsOnCuda, also for what is computed again
            del loss
            optimizer.step()
            found[resolution, batch] = Footprint(sum(each.numel() for each in trained), resident, live.now - resident, kept, live.most)
        del subset
    return found


def generating(resolution: int, batch: int, precision: str) -> int:
    """Bytes at most, beside the weights, of one step of sampling with guidance, where each picture is in the batch twice."""
    unet, side = blank(precision).eval(), resolution // PIXELS_A_LATENT
    with shapes_only(), Live() as live, AsOnCuda(), torch.no_grad():
        valueless(unet)
        before = live.most = live.now
        with torch.autocast("cpu", dtype=AUTOCAST[precision], enabled=AUTOCAST[precision] is not None):
            unet(torch.empty(2 * batch, 4, side, side), 0, torch.empty(2 * batch, TOKENS, unet.config.cross_attention_dim))
        return live.most - before


def decoding(resolution: int, batch: int) -> int:
    """Bytes at most, beside the weights, of decoding pictures with the VAE in fp32."""
    side = resolution // PIXELS_A_LATENT
    return of_vae(lambda vae: vae.decode(torch.empty(batch, 4, side, side)))


def encoding() -> int:
    """Bytes at most, beside the weights, of encoding as many pictures as are encoded at a time."""
    return of_vae(lambda vae: vae.encode(torch.empty(1, 3, PIXELS_AT_ONCE // ENCODED_SIDE, ENCODED_SIDE)))


def of_vae(use: Callable[[Any], Any]) -> int:
    from diffusers import AutoencoderKL

    with shapes_only(), Live() as live, torch.no_grad():
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(LAYOUT / "vae")).eval()
        before = live.most = live.now
        use(vae)
        return live.most - before
