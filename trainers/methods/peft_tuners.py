"""The table of PEFT's tuners: adding one is a line here. What fails in PEFT is left out, with the reason, in docs/methods.md."""

from __future__ import annotations

import math
from importlib.metadata import version

from trainers.methods.peft_adapter import LINEAR, NORM, POINTWISE, Shape, Tuner

INSTALLED = version("peft")
RSLORA_ALPHA = 8.0  # PEFT's default; Kalajdzievski 2023 keeps alpha fixed, the scale is alpha / √rank


def tuners_of(tuners: tuple[Tuner, ...], peft: str) -> tuple[Tuner, ...]:
    """Those that a version of PEFT has."""
    return tuple(tuner for tuner in tuners if tuner.since <= parsed(peft))


def missing(name: str, tuners: tuple[Tuner, ...], peft: str) -> str | None:
    """What to say of a tuner that this version of PEFT does not have; None if there is no such tuner."""
    needed = next((".".join(map(str, tuner.since)) for tuner in tuners if tuner.name == name), None)
    return needed and f"method {name!r} needs peft {needed}, {peft} is installed: pip install 'peft>={needed},<0.23'"


def parsed(peft: str) -> tuple[int, ...]:
    return tuple(map(int, peft.split(".")[:2]))


def low_rank(shape: Shape, rank: int) -> int:
    """A (rank, inner) and B (out, rank); of a convolution, A keeps the kernel and B is 1 × 1."""
    return rank * (shape.inner + shape.out)


def kronecker(shape: Shape, rank: int) -> int:
    """LoKr: w1 ⊗ w2, both from the factors of in and out nearest to their square roots; w2 is itself of low rank if that is less."""
    (inner_small, inner_large), (out_small, out_large) = factors(shape.channels), factors(shape.out)
    if rank < max(inner_large, out_large) / 2:
        return out_small * inner_small + rank * (out_large + inner_large * shape.area)
    return out_small * inner_small + out_large * inner_large * shape.area


def factors(number: int) -> tuple[int, int]:
    """The pair of factors nearest to each other, smaller first."""
    small = next(divisor for divisor in range(math.isqrt(number), 0, -1) if number % divisor == 0)
    return small, number // small


def random_bases(shape: Shape, rank: int) -> int:
    """RandLoRA: a diagonal Λ (rank) and Γ (width) for each of the width / rank random bases of full rank."""
    width = min(shape.out, shape.inner)
    return math.ceil(width / rank) * (rank + width)


def without_butterfly_kernel() -> None:
    """BOFT tries to compile a CUDA kernel, and has one butterfly factor or several depending on whether that worked. With the one
    factor that is used here the kernel gains nothing, so it is not tried and a candidate means the same on every machine."""
    from peft.tuners.boft import layer

    layer._FBD_CUDA = False


def trusted_indices() -> None:
    """SHiRA's sparse tensors are made at every step from indices that are right; torch warns unless one says so."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()


TUNERS = (
    Tuner("lora", "LoRA", "LoraConfig", "Hu et al. 2022, arXiv 2106.09685", low_rank, (1e-3, 2e-2), 9e-3, (2, 4, 8, 16, 32), alpha_name="lora_alpha"),
    Tuner("rslora", "rsLoRA", "LoraConfig", "Kalajdzievski 2023, arXiv 2312.03732", low_rank, (6e-4, 1e-2), 6e-3, (2, 4, 8, 16, 32),
          alpha_name="lora_alpha", alpha=RSLORA_ALPHA, options={"use_rslora": True}),
    Tuner("dora", "DoRA", "LoraConfig", "Liu et al. 2024, arXiv 2402.09353", lambda shape, rank: low_rank(shape, rank) + shape.out, (1e-3, 2e-2), 1e-2,
          (2, 4, 8, 16, 32), alpha_name="lora_alpha", options={"use_dora": True}),
    Tuner("loha", "LoHa", "LoHaConfig", "Hyeon-Woo et al. 2022, arXiv 2108.06098", lambda shape, rank: 2 * low_rank(shape, rank), (1e-3, 3e-2), 1e-2,
          (2, 4, 8, 16), alpha_name="alpha"),
    Tuner("lokr", "LoKr", "LoKrConfig", "Yeh et al. 2024, arXiv 2309.14859", kronecker, (3e-3, 1e-1), 3e-2, (1, 2, 4), alpha_name="alpha"),
    Tuner("hira", "HiRA", "HiraConfig", "Huang et al. 2025, ICLR", low_rank, (3e-3, 6e-2), 3e-2, (2, 4, 8, 16, 32), since=(0, 20)),
    Tuner("gralora", "GraLoRA", "GraloraConfig", "Jung et al. 2025, arXiv 2505.20355", low_rank, (1e-3, 2e-2), 1e-2, (2, 4, 8, 16, 32), layers=(LINEAR,),
          alpha_name="alpha", multiple=2, since=(0, 19)),
    Tuner("miss", "MiSS", "MissConfig", "Kang & Yin 2025, arXiv 2409.15371", lambda shape, rank: rank * shape.out, (6e-4, 1e-2), 6e-3, (2, 4, 8, 16, 32),
          layers=(LINEAR,)),
    Tuner("oft", "OFT", "OFTConfig", "Qiu et al. 2023, arXiv 2306.07280", lambda shape, block: shape.inner * (block - 1) // 2, (5e-4, 6e-3), 3e-3,
          (4, 8, 16, 32), layers=(LINEAR, POINTWISE), rank_name="oft_block_size", rank_means="block size", multiple=2, divides=True),
    Tuner("boft", "BOFT", "BOFTConfig", "Liu et al. 2024, arXiv 2311.06243", lambda shape, block: shape.inner * block + shape.out, (5e-4, 1e-2), 5e-3,
          (4, 8, 16, 32), rank_name="boft_block_size", rank_means="block size", multiple=2, divides=True,
          options={"boft_n_butterfly_factor": 1}, prepare=without_butterfly_kernel),
    Tuner("hra", "HRA", "HRAConfig", "Yuan et al. 2024, arXiv 2405.17484", lambda shape, rank: shape.inner * rank, (1e-3, 2e-2), 1e-2, (2, 4, 8),
          rank_means="number of reflections", multiple=2),
    Tuner("ia3", "(IA)³", "IA3Config", "Liu et al. 2022, arXiv 2205.05638", lambda shape, rank: shape.out, (1e-2, 2e-1), 6e-2, rank_name=None,
          options={"feedforward_modules": []}),
    Tuner("vera", "VeRA", "VeraConfig", "Kopiczko et al. 2024, arXiv 2310.11454", lambda shape, rank: shape.out + rank, (6e-3, 2e-1), 6e-2, (8, 16, 32),
          layers=(LINEAR,)),
    Tuner("randlora", "RandLoRA", "RandLoraConfig", "Albert et al. 2025, arXiv 2502.00987", random_bases, (1e-3, 2e-2), 1e-2, (2, 4, 8, 16, 32),
          layers=(LINEAR,), rank_means="rank of a random basis (a lower one trains more)", alpha_name="randlora_alpha"),
    Tuner("shira", "SHiRA", "ShiraConfig", "Bhardwaj et al. 2024, arXiv 2406.13175", low_rank, (1e-3, 2e-2), 1e-2, (1, 2, 4, 8), layers=(LINEAR,),
          limit=lambda shape: shape.out * shape.inner // (shape.out + shape.inner), options={"random_seed": 0}, prepare=trusted_indices),
    Tuner("ln-tuning", "LN tuning", "LNTuningConfig", "Zhao et al. 2024, arXiv 2312.11420", lambda shape, rank: shape.own, (3e-3, 4e-2), 2e-2, layers=(NORM,),
          kinds=(("norm",),), rank_name=None),
)
