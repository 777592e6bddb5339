"""Full fine-tuning of whole units, the yardstick of everything else."""

from trainers.methods.direct import Direct


class Full(Direct):
    name, title = "full", "full fine-tuning"
    paper = "Rombach et al. 2022, arXiv 2112.10752"
    kinds = (("everything",), ("resnet",), ("feed-forward",), ("resnet", "feed-forward"))
    learning_rates, reference_rate = (2e-4, 4e-3), 2e-3
