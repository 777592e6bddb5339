"""SV-DIFF (Han et al. 2023, arXiv 2303.11305): shifts δ of singular values, W = U diag(relu(σ + δ)) Vᵀ."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import group_norm, layer_norm, linear

from trainers.candidate import Candidate
from trainers.errors import BadSelection
from trainers.methods.base import BaseCache, Method, Subset
from trainers.units import Units

SVD_VERSION = 1  # of what is cached under "svd"


class SvDiff(Method):
    """Every matrix, every convolution as a matrix (out, in · h · w) and every norm's scale as a matrix (1, n), so that a norm has
    one δ. Biases are not trained. As in the papers' code, norms have a learning rate of their own."""

    name, title, paper = "svdiff", "SV-DIFF", "Han et al. 2023, arXiv 2303.11305"
    kinds = (("everything",), ("attention",), ("cross-attention",), ("resnet",))
    learning_rates, reference_rate = (3e-3, 1e-1), 3e-2
    norm_rates, reference_norm_rate = (3e-3, 1e-1), 3e-2

    def apply(self, unet, units: Units, candidate: Candidate, cache: BaseCache | None = None) -> SvDiffSubset:
        return SvDiffSubset(unet, self.layers(unet, units, candidate), cache)

    def count(self, unet, units: Units, candidate: Candidate) -> int:
        return sum(min(as_matrix(layer.weight).shape) for layer in self.layers(unet, units, candidate).values())

    def layers(self, unet, units: Units, candidate: Candidate) -> dict[str, torch.nn.Module]:
        """The layers whose weight the candidate selects, by name. Raises BadSelection if there is none, or one of another make."""
        owners = [tensor.removesuffix(".weight") for tensor in units.chosen(candidate) if tensor.endswith(".weight")]
        found = {owner: unet.get_submodule(owner) for owner in owners}
        if not found:
            raise BadSelection(f"SV-DIFF has nothing to shift in {candidate.words}: choose kinds with matrices, convolutions or norms")
        for name, layer in found.items():
            if wrapper(layer) is None:
                raise BadSelection(f"SV-DIFF cannot shift {name} ({layer}): it takes linear layers, convolutions padded with zeros and norms; "
                                   "choose kinds or regions without it")
        return found


class SvDiffSubset(Subset):
    """The shifts, float32, named "<layer>.delta". The layers are wrapped; the base's tensors are never written."""

    def __init__(self, unet, layers: Mapping[str, torch.nn.Module], cache: BaseCache | None):
        self.unet, self.base = unet, dict(layers)
        self.shifted: dict[str, Shifted] = {}
        unet.requires_grad_(False)
        try:
            for name, layer in self.base.items():
                self.shifted[name] = wrapper(layer)(layer, **spectrum(f"{name}.weight", layer.weight, cache))
                unet.set_submodule(name, self.shifted[name])
        except BaseException:  # out of memory half-way: what is wrapped already is put back
            self.restore()
            raise
        self.parameters = {f"{name}.delta": shifted.delta for name, shifted in self.shifted.items()}

    def rates(self, candidate: Candidate) -> dict[str, float]:
        norm_rate = candidate.learning_rate if candidate.norm_rate is None else candidate.norm_rate
        return {f"{name}.delta": norm_rate if isinstance(shifted, ShiftedNorm) else candidate.learning_rate for name, shifted in self.shifted.items()}

    @torch.no_grad()
    def merged(self) -> dict[str, torch.Tensor]:
        merged = {}
        for name, shifted in self.shifted.items():
            if shifted.delta.any():
                merged[f"{name}.weight"] = shifted.exact().cpu()
                shifted.release()
        return merged

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Every W is computed once, to the same bits as in training."""
        try:
            with torch.no_grad():
                for shifted in self.shifted.values():
                    shifted.ready = shifted.weight(shifted.delta)
                    shifted.release()
            yield
        finally:
            for shifted in self.shifted.values():
                shifted.ready = None

    def restore(self) -> None:
        for name, layer in self.base.items():
            self.unet.set_submodule(name, layer)


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) of a linear layer as it is, (out, in, h, w) of a convolution as (out, in · h · w), (n,) of a norm as (1, n)."""
    return weight.flatten(1) if weight.ndim > 1 else weight[None]


def decompose(weight: torch.Tensor) -> dict[str, np.ndarray]:
    """The thin singular value decomposition of a weight as a matrix (rows, columns), k = min(rows, columns): "u" (rows, k),
    "sigma" (k,), descending, and "vh" (k, columns), float32.

    In float64, so that σ is exact to float32's last digit where float32's own is to 1e-4; of the triangular factor of a QR
    where the matrix is not square, which takes a third of the time and is as exact.
    """
    matrix = as_matrix(weight.detach()).cpu().double()
    rows, columns = matrix.shape
    if rows == columns:
        u, sigma, vh = torch.linalg.svd(matrix)
    elif rows > columns:
        orthogonal, triangular = torch.linalg.qr(matrix)
        u, sigma, vh = torch.linalg.svd(triangular)
        u = orthogonal @ u
    else:
        orthogonal, triangular = torch.linalg.qr(matrix.T)
        v, sigma, uh = torch.linalg.svd(triangular)
        u, vh = uh.T, (orthogonal @ v).T
    return {name: array.float().contiguous().numpy() for name, array in (("u", u), ("sigma", sigma), ("vh", vh))}  # in one layout: the same bits


def spectrum(tensor: str, weight: torch.Tensor, cache: BaseCache | None) -> dict[str, Any]:
    """`decompose` of a tensor of the base model, from the cache if there is one, on the weight's device; u and vh in its dtype, but float32 of a norm.

    On a CPU in float32 they stay memory maps, which are "maps": of a whole Stable Diffusion they are larger than the U-Net. A norm's is
    quicker made than read. Weights in low precision have a decomposition of their own, since rounding turns singular vectors.
    """
    def make() -> dict[str, np.ndarray]:
        return decompose(weight)

    arrays = make() if cache is None or weight.ndim == 1 else cache.remember("svd", make, SVD_VERSION, tensor, str(weight.dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to them
        found = {name: torch.from_numpy(array).to(weight.device) for name, array in arrays.items()}
    parts = {name: array if name == "sigma" or weight.ndim == 1 else array.to(weight.dtype) for name, array in found.items()}
    maps = tuple(array.base for name, array in arrays.items() if isinstance(array.base, mmap.mmap) and parts[name].data_ptr() == array.ctypes.data)
    return {**parts, "maps": maps}


class Shifted(torch.nn.Module):
    """A layer of the base model with W = W₀ + U diag(relu(σ + δ) − σ) Vᵀ in the place of its weight: at δ = 0 the base's own bits.

    u: (rows, k), vh: (k, columns), in W₀'s dtype; sigma: (k,); delta: (k,) float32. They are no buffers, since they belong to no
    state dict. maps: of files that they are read from when they are needed. ready: W where it is computed once for many passes.
    """

    def __init__(self, base: torch.nn.Module, u: torch.Tensor, sigma: torch.Tensor, vh: torch.Tensor, maps: tuple[mmap.mmap, ...] = ()):
        super().__init__()
        self.base, self.u, self.sigma, self.vh, self.maps = base, u, sigma, vh, maps
        self.delta = torch.nn.Parameter(torch.zeros_like(self.sigma))
        self.ready: torch.Tensor | None = None
        self.train(base.training)

    def release(self) -> None:
        """Give the maps' memory back; what is needed again is read again."""
        for pages in self.maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def change(self, delta: torch.Tensor) -> torch.Tensor:
        """relu(σ + δ) − σ, without the rounding error of that difference: (k,) float32."""
        return torch.maximum(delta, -self.sigma)

    def product(self, change: torch.Tensor, u: torch.Tensor, vh: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """start + U diag(change) Vᵀ: (rows, columns). The smaller factor is scaled; there is no diagonal matrix."""
        with torch.autocast(start.device.type, enabled=False):
            change = change.to(u.dtype)
            return torch.addmm(start, u * change, vh) if len(u) <= vh.shape[1] else torch.addmm(start, u, change[:, None] * vh)

    def exact(self) -> torch.Tensor:
        """W in float32, whatever the base's dtype."""
        weight = self.base.weight.detach()
        return self.product(self.change(self.delta), self.u.float(), self.vh.float(), as_matrix(weight).float()).view(weight.shape)

    def weight(self, delta: torch.Tensor) -> torch.Tensor:
        """W at these shifts, as it is used: in the base's dtype and shape."""
        return self.product(self.change(delta), self.u, self.vh, as_matrix(self.base.weight)).view(self.base.weight.shape)


class ShiftedLayer(Shifted):
    """A linear layer or a convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.ready is not None:
            return self.apply_weight(x, self.ready)
        device = x.device.type
        return Recomputed.apply(x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x, self.delta, self)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_x: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Of the loss by x, if it is wanted, and by W as a matrix, from that by the output."""
        raise NotImplementedError

    def by_delta(self, by_weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """∂L/∂δᵢ = uᵢᵀ (∂L/∂W) vᵢ where σᵢ + δᵢ > 0, else 0: (k,) float32."""
        by_weight = by_weight.to(self.u.dtype)
        if len(self.u) <= self.vh.shape[1]:
            products = self.u.float() * (by_weight @ self.vh.T).float()  # (rows, k)
            return products.sum(0).where(delta > -self.sigma, 0.0)
        products = (self.u.T @ by_weight).float() * self.vh.float()  # (k, columns)
        return products.sum(1).where(delta > -self.sigma, 0.0)


class ShiftedLinear(ShiftedLayer):
    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, self.base.bias)

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_x: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        return gradient @ weight if of_x else None, gradient.flatten(0, -2).T @ x.flatten(0, -2)


class ShiftedConvolution(ShiftedLayer):
    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        base = self.base
        return torch.nn.functional.conv2d(x, weight, base.bias, base.stride, base.padding, base.dilation, base.groups)

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of_x: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        base = self.base
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, base.stride, base.padding, base.dilation, False, (0, 0),
                                                                 base.groups, (of_x, True, False))
        return by_x, as_matrix(by_weight)


class Recomputed(torch.autograd.Function):
    """A layer's output with W(δ). W is computed again in the backward pass: kept, those of a whole U-Net would be its second copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, delta: torch.Tensor, layer: ShiftedLayer) -> torch.Tensor:
        ctx.save_for_backward(x, delta)
        ctx.layer = layer
        return layer.apply_weight(x, layer.weight(delta))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        x, delta = ctx.saved_tensors
        weight = ctx.layer.weight(delta).to(gradient.dtype)
        by_x, by_weight = ctx.layer.gradients(gradient, x, weight, ctx.needs_input_grad[0])
        return by_x, ctx.layer.by_delta(by_weight, delta), None


class ShiftedNorm(Shifted):
    """A norm layer: its scale is a vector, and its only singular value the vector's length. Its scale is float32 whatever the base's dtype
    is: near 1, low precision has no room for small shifts."""

    def weight(self, delta: torch.Tensor) -> torch.Tensor:
        return self.base.weight.float() + self.change(delta) * (self.u * self.vh)[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base, weight = self.base, self.weight(self.delta) if self.ready is None else self.ready
        bias = None if base.bias is None else base.bias.float()
        if isinstance(base, torch.nn.LayerNorm):
            return layer_norm(x, base.normalized_shape, weight, bias, base.eps)
        return group_norm(x, base.num_groups, weight, bias, base.eps)


def wrapper(layer: torch.nn.Module) -> type[Shifted] | None:
    """What wraps a layer of this make, if anything does."""
    if isinstance(layer, torch.nn.Linear):
        return ShiftedLinear
    if isinstance(layer, torch.nn.Conv2d):
        return ShiftedConvolution if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    return ShiftedNorm if isinstance(layer, (torch.nn.GroupNorm, torch.nn.LayerNorm)) else None
