"""Full fine-tuning of whole units, the yardstick of everything else."""

from trainers.methods.direct import Direct


class Full(Direct):
    name, title = "full", "full fine-tuning"
    kinds = (("everything",), ("resnet",), ("feed-forward",), ("resnet", "feed-forward"))
    learning_rates, reference_rate = (2e-4, 4e-3), 2e-3
