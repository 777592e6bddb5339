"""Versions of the libraries that this program leans on most, with which it was tried."""

from __future__ import annotations

from importlib.metadata import version

TRIED = {"optuna": ("5.0",), "ray": ("2.60",)}  # major.minor; adding one is an entry here, after the whole test suite has passed with it
ENGINES = {"ray": ("optuna", "ray")}  # what an engine needs; the others need Optuna only


def warnings(engine: str) -> list[str]:
    """A line for each library of which the installed version was not tried."""
    found = []
    for name in ENGINES.get(engine, ("optuna",)):
        installed = version(name)
        if ".".join(installed.split(".")[:2]) not in TRIED[name]:
            found.append(f"{name} {installed} was not tried with this program, only {' and '.join(TRIED[name])}: if anything is odd, install {name}=={TRIED[name][-1]}.*")
    return found
