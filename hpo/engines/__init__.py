"""The table of engines: adding one is a file and a line here."""

from hpo.engines.base import Engine
from hpo.engines.local import Local
from hpo.engines.ray import Ray

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Local(), Ray())}

__all__ = ["ENGINES", "Engine"]
