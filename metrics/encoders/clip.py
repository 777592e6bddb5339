"""CLIP's picture half, from a folder in transformers' layout, with its own preprocessing and without torchvision."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np

from metrics.encoders import checked_pictures
from metrics.errors import BadEncoder

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "*.safetensors"
BATCH = 32  # fixed: the last digits of features depend on it
CLIP_SIDE = 224  # transformers' default where the file names no size
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEncoder:
    """`image_embeds` of a CLIPModel or CLIPVisionModelWithProjection, scaled to a root mean square of 1.

    CLIP's embeddings are compared by their direction, so their length is set aside. It is made sqrt(dimension), not
    1: then x·y / d, which the cubic kernel of `kid` takes, is the cosine, and `fd` is of the order of 1.

    Raises:
        BadEncoder: a file is missing, the weights are pickled or do not fit the config, or it is no CLIP.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.folder = Path(folder)
        self.device = device
        self._preprocessing = _Preprocessing.read(self.folder)
        self._model = _load_model(self.folder).to(device)
        self.networks = (self._model.vision_model,)
        self.name = self.folder.name
        self.dimension = self._model.visual_projection.out_features

    @cached_property
    def content_hash(self) -> str:
        return folder_hash(self.folder)

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """pictures (n, H, W) grey or (n, H, W, 3) RGB, uint8 -> (n, dimension) float32 of length sqrt(dimension).

        Raises:
            BadArray: another shape or type.
        """
        import torch

        checked_pictures(pictures)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                pixels = torch.from_numpy(self._preprocessing(pictures[start : start + BATCH])).to(self.device)
                pooled = self._model.vision_model(pixel_values=pixels).pooler_output
                embeds = torch.nn.functional.normalize(self._model.visual_projection(pooled), dim=-1)
                rows.append((embeds * math.sqrt(self.dimension)).cpu().numpy())
        return np.concatenate(rows)


def folder_hash(folder: Path) -> str:
    """sha256 over config, preprocessing and weights, names included."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob(CONFIG), *folder.glob(PREPROCESSOR), *folder.glob(WEIGHTS)]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class _Preprocessing:
    """What preprocessor_config.json asks for: resize, centre crop, rescale, normalise, in CLIP's order.

    But for one thing: a picture that is not square is squeezed into the square that "shortest_edge" names, where transformers would resize
    its shorter edge and the crop then cut off the ends of the longer one, which scores would never see. Metrics on CLIP resize so (CMMD,
    arXiv 2401.09603, its reference code). Square pictures come out as transformers' own.
    """

    def __init__(self, settings: dict) -> None:
        self.resize = _size(settings.get("size", CLIP_SIDE)) if settings.get("do_resize", True) else None
        self.crop = _size(settings.get("crop_size", CLIP_SIDE)) if settings.get("do_center_crop", True) else None
        self.resample = int(settings.get("resample", 3))  # PIL's number; 3 = bicubic
        scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
        normalise = settings.get("do_normalize", True)
        mean = np.array(settings.get("image_mean", CLIP_MEAN) if normalise else (0.0, 0.0, 0.0), dtype=np.float32)
        std = np.array(settings.get("image_std", CLIP_STD) if normalise else (1.0, 1.0, 1.0), dtype=np.float32)
        self.scale, self.mean, self.std = np.float32(scale), mean[:, None, None], std[:, None, None]

    @classmethod
    def read(cls, folder: Path) -> _Preprocessing:
        path = folder / PREPROCESSOR
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise BadEncoder(f"{folder} has no {PREPROCESSOR}: save the model's image processor into it") from error
        except (ValueError, TypeError, KeyError) as error:
            raise BadEncoder(f"{path} is not CLIP preprocessing ({error}): save the image processor anew") from error

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 pictures -> (n, 3, height, width) float32."""
        rows = np.stack([self._sized(picture) for picture in pictures]).astype(np.float32) * self.scale
        # Grey becomes three equal channels here and nowhere else.
        channels = rows.transpose(0, 3, 1, 2) if rows.ndim == 4 else np.repeat(rows[:, None], 3, axis=1)
        return np.ascontiguousarray((channels - self.mean) / self.std)

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        if self.resize and self.resize != picture.shape[:2]:
            height, width = self.resize
            picture = np.asarray(Image.fromarray(picture).resize((width, height), self.resample))
        return picture if self.crop is None else _centre_crop(picture, *self.crop)


def _size(size: int | dict) -> tuple[int, int]:
    """Height and width of a size as transformers writes it, a number or a dictionary."""
    if not isinstance(size, int):
        if not ({"shortest_edge"} <= size.keys() or {"height", "width"} <= size.keys()):
            raise KeyError(f"size {size} names neither shortest_edge nor height and width")
        if "shortest_edge" not in size:
            return size["height"], size["width"]
        size = size["shortest_edge"]
    return size, size


def _centre_crop(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle height × width pixels; a smaller picture is put in the middle of black."""
    missing = [max(0, wanted - have) for wanted, have in zip((height, width), picture.shape[:2], strict=True)]
    if any(missing):
        pads = [((gap + 1) // 2, gap // 2) for gap in missing] + [(0, 0)] * (picture.ndim - 2)
        picture = np.pad(picture, pads)
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def check_folder(folder: Path) -> str:
    """The model type of a CLIP folder, from its small files alone.

    Raises:
        BadEncoder: a file is missing or no JSON, or it is no CLIP.
    """
    _Preprocessing.read(folder)
    for needed in (CONFIG, WEIGHTS):
        if not any(folder.glob(needed)):
            raise BadEncoder(
                f"{folder} has no {needed}: give a CLIP folder as transformers' save_pretrained writes it; "
                "pickled weights (.bin, .pt) are not loaded"
            )
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise BadEncoder(f"{folder / CONFIG} is not JSON ({error}): save the model anew") from error
    if kind not in ("clip", "clip_vision_model"):
        raise BadEncoder(f"{folder / CONFIG} has model_type {kind!r}, needs 'clip' or 'clip_vision_model': give a CLIP folder")
    return kind


def _load_model(folder: Path):
    """The model on the CPU in fp32, in evaluation mode."""
    kind = check_folder(folder)

    import torch
    from safetensors import SafetensorError
    from transformers import CLIPModel, CLIPVisionModelWithProjection
    from transformers.utils import logging

    architecture = CLIPModel if kind == "clip" else CLIPVisionModelWithProjection
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar of its own would tear the caller's display
    try:
        model, report = architecture.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise BadEncoder(f"{folder} cannot be loaded as {architecture.__name__}: {_one_line(error)}") from error
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise BadEncoder(
            f"{folder} lacks {len(missing)} weights of {architecture.__name__}, e.g. {missing[0]}: "
            "transformers would fill them at random; give the complete model"
        )
    return model.eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
