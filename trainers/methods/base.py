"""The contract of a method, and the trainable subset that it hands to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from trainers.errors import BadSelection

if TYPE_CHECKING:
    import torch

    from trainers.candidate import Candidate
    from trainers.units import Units


class Subset(ABC):
    """The parameters of one candidate inside the U-Net, from `Method.apply` to `restore`.

    Between the two exactly `parameters` require a gradient. `restore` gives the U-Net back bit for bit as it was before
    `apply`, whatever was trained, and may be called once. A subset is used by one thread.
    """

    parameters: dict[str, torch.nn.Parameter]

    @property
    def count(self) -> int:
        """Trainable elements: what the optimizer holds."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of the subset's values on the CPU, as it is kept on disk."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the values that `tensors` of the same candidate gave. Raises BadSelection, before any is set, where one is
        missing or has another shape."""
        import torch

        for name, parameter in self.parameters.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                found = tuple(tensors[name].shape) if name in tensors else "missing"
                raise BadSelection(f"tensor {name!r} is {found}, this candidate's is {tuple(parameter.shape)}: take the tensors of the same candidate")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    @abstractmethod
    def restore(self) -> None:
        """Make the U-Net the untouched base again, bit for bit."""


class Method(ABC):
    """How units become trainable. One file a method, one line in `METHODS`."""

    name: ClassVar[str]
    title: ClassVar[str]  # in words: "LoRA"
    kinds: ClassVar[tuple[tuple[str, ...], ...]]  # the choices of kinds that the search offers
    learning_rates: ClassVar[tuple[float, float]]  # range of the search, log-uniform, on the bundled miniature
    reference_rate: ClassVar[float]  # of the method as a baseline
    ranks: ClassVar[tuple[int, ...]] = ()  # choices of rank; empty: the method has none

    @abstractmethod
    def apply(self, unet, units: Units, candidate: Candidate) -> Subset:
        """Make the candidate's parameters trainable in `unet`, all others frozen. At the start the U-Net computes what
        the base does. Raises BadSelection if the candidate selects nothing that the method can train."""

    @abstractmethod
    def count(self, unet, units: Units, candidate: Candidate) -> int:
        """Trainable elements of the candidate, without touching the U-Net."""
