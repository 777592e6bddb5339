"""One picture on disk with its caption, and its decoding to grey values of one size. Which pictures there are is up to
the readers (`mimic`), who gets which is up to `sides`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.data.resolution import Resolution
from trainers.errors import BadData, CorruptPicture

CORRUPT_LIMIT = 0.01  # share of pictures that may be corrupt; they are skipped and counted
CORRUPT_PROBE = 2_000  # so many pictures of a folder are looked at to tell its share of corrupt ones


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of one study of one patient, as a reader found it. `caption` is never empty."""

    path: Path
    patient: str
    study: str
    picture: str  # DICOM id
    view: str  # "AP", "PA", ...
    split: str  # "train", "validate" or "test"
    caption: str

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> Picture:
        return cls(**{**values, "path": Path(values["path"])})


@dataclass(frozen=True)
class Decoded:
    """Pictures and their pixels, row by row: pixels (n, H, W) uint8. `corrupt` were left out."""

    pictures: tuple[Picture, ...]
    pixels: np.ndarray
    corrupt: tuple[Path, ...] = ()


def decode(picture: Picture, resolution: Resolution) -> np.ndarray:
    """The picture in grey, resized with antialiasing to the least that covers `resolution`, then cropped to the centre.

    Returns (height, width) uint8. CorruptPicture if the file is no readable picture, BadData if there is
    no file or it may not be read.
    """
    height, width = resolution
    try:
        with Image.open(picture.path) as image:
            # libjpeg scales by 2, 4 or 8 while it decodes, which spares most of the work on 3,000-pixel radiographs.
            # Twice the resolution is left for the filter below.
            image.draft("L", (2 * width, 2 * height))
            grey = image.convert("L")
    except (FileNotFoundError, PermissionError) as error:
        raise BadData(
            f"picture {picture.path} cannot be opened ({error.strerror}): complete the data folder"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptPicture(picture.path) from error
    scale = max(width / grey.width, height / grey.height)
    covering = max(width, round(grey.width * scale)), max(height, round(grey.height * scale))
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    small = grey.resize(covering, Image.Resampling.LANCZOS)
    return np.asarray(small.crop((left, top, left + width, top + height)), dtype=np.uint8)


def decode_all(pictures: Sequence[Picture], resolution: Resolution) -> Decoded:
    """All pictures decoded, in their order; corrupt ones are left out and named.

    BadData if more than CORRUPT_LIMIT of them are corrupt, or if one is missing.
    """
    kept, pixels, corrupt = [], [], []
    for picture in pictures:
        try:
            pixels.append(decode(picture, resolution))
            kept.append(picture)
        except CorruptPicture as error:
            corrupt.append(error.path)
    refuse_corrupt(corrupt, len(pictures))
    stacked = np.stack(pixels) if pixels else np.zeros((0, *resolution), np.uint8)
    return Decoded(tuple(kept), stacked, tuple(corrupt))


def refuse_corrupt(corrupt: Sequence[Path], looked_at: int) -> None:
    """BadData if more than CORRUPT_LIMIT of the pictures that were looked at are corrupt."""
    if len(corrupt) > CORRUPT_LIMIT * looked_at:
        raise BadData(
            f"{len(corrupt)} of {looked_at} pictures are corrupt, at most {CORRUPT_LIMIT:.0%} may be "
            f"(the first: {corrupt[0]}): "
            "copy the data folder anew"
        )


def probe(pictures: Sequence[Picture]) -> None:
    """BadData if more than CORRUPT_LIMIT of the folder is corrupt, judged by CORRUPT_PROBE evenly spread pictures.

    For use once a corrupt picture has been met: a few dozen chosen pictures cannot tell 0.5 % from 2 %, and most
    folders, having none, need not pay for this look.
    """
    step = max(1, -(-len(pictures) // CORRUPT_PROBE))
    decode_all(pictures[::step], Resolution(8, 8))
