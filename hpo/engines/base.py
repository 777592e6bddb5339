"""The contract of an engine: something that runs a study's trials on some machines until the study has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from hpo.settings import Settings

Watch = Callable[[], None]


class Engine(ABC):
    """Places trials; proposes none, and holds nothing that is not in the database.

    `run` returns the study's exit status once it has ended: 0, or 1 with the reason logged. It calls `watch` about once
    a second, so that progress shows. When it is interrupted it gives running trials back and raises KeyboardInterrupt.
    A bad setting that only a worker can notice is raised as SearchError with the worker's line.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, settings: Settings, url: str, watch: Watch) -> int:
        """Run trials of the study, which is registered already, until it has ended."""
