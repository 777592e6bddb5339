"""Norm tuning: scales and shifts of the normalisation layers."""

from trainers.methods.direct import Direct


class Norm(Direct):
    name, title = "norm", "norm tuning"
    paper = "Dutt et al. 2023, arXiv 2305.08252"
    kinds = (("norm",),)
    only = ("norm",)
    learning_rates, reference_rate = (3e-3, 4e-2), 2e-2
