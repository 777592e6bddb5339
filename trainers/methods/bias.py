"""Bias tuning (BitFit, arXiv 2106.10199): the biases, alone or with the norms."""

from trainers.methods.direct import Direct


class Bias(Direct):
    name, title = "bias", "bias tuning"
    paper = "Ben Zaken et al. 2022, arXiv 2106.10199"
    kinds = (("bias",), ("bias", "norm"))
    only = ("bias", "norm")
    learning_rates, reference_rate = (2e-3, 3e-2), 1e-2
