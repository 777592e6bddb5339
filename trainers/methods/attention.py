"""Attention tuning: the weights of the attention layers (arXiv 2305.08252)."""

from trainers.methods.direct import Direct
from trainers.units import ATTENTION_PARTS


class Attention(Direct):
    name, title = "attention", "attention tuning"
    paper = "Dutt et al. 2023, arXiv 2305.08252"
    kinds = (("self-attention", "cross-attention"), ("self-attention",), ("cross-attention",))
    only = ("self-attention", "cross-attention", "attention", *ATTENTION_PARTS, "transformer", "transformer-block")
    learning_rates, reference_rate = (5e-4, 6e-3), 3e-3
