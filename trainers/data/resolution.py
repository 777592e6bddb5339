"""How large pictures are, and how that is written: 512, or 448x512 where a picture is not square."""

from __future__ import annotations

import re
from typing import NamedTuple

from trainers.errors import BadData

WRITTEN = re.compile(r"0*([1-9][0-9]{0,4})(?:x0*([1-9][0-9]{0,4}))?")
LONGEST_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION


class Resolution(NamedTuple):
    """Sides of a picture in pixels, in the order of an array's axes. It is written as users know it, WIDTHxHEIGHT."""

    height: int
    width: int

    @classmethod
    def read(cls, written: int | str) -> Resolution:
        """Of 512 or "512", pixels a side, and "448x512". BadData if it is no such size."""
        found = WRITTEN.fullmatch(str(written))
        width, height = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= min(width, height) <= max(width, height) <= LONGEST_SIDE:
            raise BadData(f"--resolution {written}: it must be pixels a side, as 512, or WIDTHxHEIGHT, as 448x512, each at least 1 and at most {LONGEST_SIDE}; "
                          "give such a size, or leave the flag out")
        return cls(height, width)

    @property
    def written(self) -> int | str:
        """The one spelling of a size, which `read` takes: a number for a square, else text."""
        return self.width if self.width == self.height else f"{self.width}x{self.height}"
