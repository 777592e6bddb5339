"""The contract of a method, and the trainable subset that it hands to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trainers.cache import key_of, remember
from trainers.errors import BadSelection, nearest
from trainers.units import KINDS, SETS

if TYPE_CHECKING:
    import torch

    from trainers.candidate import Candidate
    from trainers.units import Units


@dataclass(frozen=True)
class BaseCache:
    """A place for what is computed once per base model. folder: of caches; hash: the base model's content hash."""

    folder: Path
    hash: str

    def remember(self, kind: str, make: Callable[[], dict[str, np.ndarray]], *of: object) -> dict[str, np.ndarray]:
        """The arrays under `kind`, made if they are not there yet; read-only memory maps shared by all processes.

        of: what of the base model they are about, such as the name of a tensor, so that each is made only when it is asked for.
        """
        return remember(self.folder, kind, key_of(self.hash, *of), make)


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

    def rates(self, candidate: Candidate) -> dict[str, float]:
        """The learning rate of each parameter, by name."""
        return dict.fromkeys(self.parameters, candidate.learning_rate)

    @abstractmethod
    def merged(self) -> dict[str, torch.Tensor]:
        """The tensors of a plain U-Net, by the base's names, that differ from the base's: with them an unchanged U-Net computes
        what this one does. New float32 tensors on the CPU; the U-Net is not touched."""

    def generating(self) -> AbstractContextManager[None]:
        """While pictures are generated and losses measured: nothing is trained, so what a step computes anew may be computed once."""
        return nullcontext()

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
    paper: ClassVar[str] = ""  # "Hu et al. 2022, arXiv 2106.09685"
    only: ClassVar[tuple[str, ...]] = ()  # the kinds that the method is defined by; empty: all that there are
    own_kinds: ClassVar[tuple[str, ...]] = ()  # kinds that only this method has: parameters that it adds, no tensors of the U-Net
    norm_rates: ClassVar[tuple[float, float] | None] = None  # range of a rate of their own for one-dimensional parameters
    reference_norm_rate: ClassVar[float | None] = None
    ranks: ClassVar[tuple[int, ...]] = ()  # choices of rank; empty: the method has none

    @property
    def known_kinds(self) -> tuple[str, ...]:
        return self.only or (*KINDS, *SETS, *self.own_kinds)

    def check(self, candidate: Candidate) -> None:
        """Raises BadSelection for what this method has not, whatever the U-Net: a kind, a rank, an alpha, a rate of its own for norms."""
        for part in candidate.parts:
            for kind in part.kinds:
                if kind not in self.known_kinds:
                    raise BadSelection(f"kind {kind!r} is not trained by {self.title}: take {nearest(kind, self.known_kinds)}")
            if not self.ranks and (part.rank is not None or part.alpha is not None):
                raise BadSelection(f"{part.rank_words or f'alpha {part.alpha:g}'}: {self.title} has no rank, leave it out")
        if self.norm_rates is None and candidate.norm_rate is not None:
            raise BadSelection(f"norm rate {candidate.norm_rate:g}: {self.title} has no learning rate of its own for norms, leave it out")

    @abstractmethod
    def apply(self, unet, units: Units, candidate: Candidate, cache: BaseCache | None = None) -> Subset:
        """Make the candidate's parameters trainable in `unet`, all others frozen. At the start the U-Net computes what
        the base does. Raises BadSelection if the candidate selects nothing that the method can train.
        Trained parameters are float32, whatever the frozen ones are. cache: where what is computed once per base model is kept."""

    @abstractmethod
    def count(self, unet, units: Units, candidate: Candidate) -> int:
        """Trainable elements of the candidate, without touching the U-Net."""
