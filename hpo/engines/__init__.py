"""The table of engines: adding one is a file and a line here."""

from __future__ import annotations

from importlib import import_module

from hpo.engines.base import Engine

CLASSES = {"local": "hpo.engines.local:Local", "ray": "hpo.engines.ray:Ray"}  # imported when chosen: Ray takes seconds


def named(name: str) -> Engine:
    """The engine of that name. Raises KeyError."""
    module, _, cls = CLASSES[name].partition(":")
    return getattr(import_module(module), cls)()


__all__ = ["CLASSES", "Engine", "named"]
