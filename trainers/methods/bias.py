"""Bias tuning (BitFit, arXiv 2106.10199): the biases, alone or with the norms."""

from trainers.methods.direct import Direct


class Bias(Direct):
    name, title = "bias", "bias tuning"
    kinds = (("bias",), ("bias", "norm"))
    learning_rates, reference_rate = (2e-3, 2e-2), 1e-2
