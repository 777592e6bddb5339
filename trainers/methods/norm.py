"""Norm tuning: scales and shifts of the normalisation layers."""

from trainers.methods.direct import Direct


class Norm(Direct):
    name, title = "norm", "norm tuning"
    kinds = (("norm",),)
    learning_rates, reference_rate = (2e-3, 2e-2), 1e-2
