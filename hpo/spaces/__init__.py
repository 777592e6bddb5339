"""The table of search spaces: adding one is a file and a line here. Users' own are files that --space names."""

from hpo.command import items
from hpo.errors import BadSetting
from hpo.spaces.base import BadProposal, Bounds, Space
from hpo.spaces.default import Default
from hpo.spaces.file import File
from hpo.spaces.function import Function
from hpo.spaces.memcontrol import PRESETS
from hpo.spaces.reference import Reference
from trainers.errors import nearest
from trainers.methods import METHODS

SPACES: dict[str, Space] = {space.name: space for space in (Default(), Reference(), *PRESETS)}


def named(name: str) -> Space:
    """The space of that name, of that TOML file, or of that function. Raises BadSetting, for an unknown name with the nearest."""
    if name in SPACES:
        return SPACES[name]
    if name.endswith(".toml"):
        return File(name)
    if ":" in name:
        return Function(name)
    raise BadSetting(f"--space {name!r} is unknown: take {nearest(name, SPACES)}, a file SPACE.toml, or a function FILE.py:function")


def methods(given: str) -> tuple[str, ...]:
    """The names of --methods. Raises BadSetting for one that is unknown or empty."""
    names = tuple(dict.fromkeys(items("--methods", given)))
    for name in names:
        if name not in METHODS:
            raise BadSetting(f"--methods {name!r} is unknown: take {nearest(name, METHODS)}")
    return names


def check(space: str, given: str, usual: str) -> None:
    """BadSetting where --space or --methods is not usable, or the space does not read --methods and they are not the usual ones."""
    methods(given)
    if not named(space).takes_methods and given != usual:
        readers = " or ".join(name for name, each in SPACES.items() if each.takes_methods)
        raise BadSetting(f"--methods {given}: --space {space} has methods of its own, leave the flag out or take --space {readers}")


__all__ = ["SPACES", "BadProposal", "Bounds", "Space", "check", "methods", "named"]
