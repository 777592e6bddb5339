"""The table of search spaces: adding one is a file and a line here."""

from hpo.errors import BadSetting
from hpo.spaces.base import Bounds, Space
from hpo.spaces.default import Default
from hpo.spaces.reference import Reference
from trainers.errors import nearest

SPACES: dict[str, Space] = {space.name: space for space in (Default(), Reference())}


def named(name: str) -> Space:
    """The space of that name. Raises BadSetting with the nearest names."""
    if name not in SPACES:
        raise BadSetting(f"--space {name!r} is unknown: take {nearest(name, SPACES)}")
    return SPACES[name]


__all__ = ["SPACES", "Bounds", "Space", "named"]
