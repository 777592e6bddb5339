"""Pictures in, features out. Which encoders there are, and what each promises; no distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from metrics.errors import BadArray, BadEncoder

if TYPE_CHECKING:
    import numpy as np

PIXELS = "pixels"


class Encoder(Protocol):
    """An encoder is deterministic, keeps rows in order, and never trains. Its features depend on nothing but the
    picture and the encoder (to rounding: batches may change the last digits)."""

    name: str
    dimension: int
    content_hash: str  # changes whenever the features may: part of the key of what is cached and of what a score means
    networks: Sequence[Any]  # torch modules that it computes with, a batch at a time

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """pictures (n, H, W) grey or (n, H, W, 3) RGB, uint8 -> (n, dimension) float32.

        Raises:
            BadArray: another shape or type.
        """
        ...


def load(spec: str | Path, device: str = "cpu") -> Encoder:
    """The encoder that `spec` names: "pixels", or the folder of a CLIP model in transformers' layout.

    Raises:
        BadEncoder: neither, or the folder holds no usable CLIP.
    """
    from metrics.encoders.clip import ClipEncoder
    from metrics.encoders.pixels import PixelEncoder

    if str(spec) == PIXELS:
        return PixelEncoder()
    return ClipEncoder(_folder(spec), device)


def content_hash(spec: str | Path) -> str:
    """The `content_hash` of the encoder that `spec` names, without loading it.

    Raises:
        BadEncoder: neither "pixels" nor a folder with a CLIP's files.
    """
    from metrics.encoders.clip import check_folder, folder_hash
    from metrics.encoders.pixels import PixelEncoder

    if str(spec) == PIXELS:
        return PixelEncoder().content_hash
    folder = _folder(spec)
    check_folder(folder)
    return folder_hash(folder)


def _folder(spec: str | Path) -> Path:
    if not Path(spec).is_dir():
        raise BadEncoder(
            f"encoder {str(spec)!r} is neither {PIXELS!r} nor a folder: give {PIXELS!r} or the folder of a CLIP model "
            "(config.json, preprocessor_config.json, model.safetensors)"
        )
    return Path(spec)


def checked_pictures(pictures: np.ndarray) -> np.ndarray:
    """`pictures` if they are what every encoder takes.

    Raises:
        BadArray: not uint8, or neither (n, H, W) nor (n, H, W, 3).
    """
    shape = pictures.shape
    if str(pictures.dtype) != "uint8" or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        raise BadArray(
            f"pictures has shape {shape} and type {pictures.dtype}, needs uint8 (n, H, W) grey or (n, H, W, 3) RGB"
        )
    return pictures
