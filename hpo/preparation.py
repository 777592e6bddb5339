"""From settings to what every trial of the study reads: sides, latents and caption embeddings, through the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpo import home
from hpo.settings import Settings
from trainers import base_model
from trainers.cache import key_of, remember
from trainers.captions import encode_captions
from trainers.data import mimic, phantoms, sides
from trainers.data.picture import Picture
from trainers.data.resolution import Resolution

SPLITS = ("train", "twin", "second_twin", "validate")
DATA_VERSION = 2  # of what is cached under "sides"; a change of dealing or decoding raises it


@dataclass(frozen=True)
class Dealt:
    """A study's pictures before any model has seen them, by split: pixels (n, H, W) uint8, and what is known of each.

    corrupt: how many unreadable pictures were skipped on the way.
    """

    pixels: dict[str, np.ndarray]
    pictures: dict[str, tuple[Picture, ...]]
    corrupt: int

    @property
    def content(self) -> str:
        """Hash of pixels, patients and captions: two studies with the same one learn from the same pictures."""
        digest = hashlib.sha256()
        for name in SPLITS:
            digest.update(np.ascontiguousarray(self.pixels[name]))
            digest.update(json.dumps([[picture.patient, picture.caption] for picture in self.pictures[name]]).encode())
        return digest.hexdigest()[:16]

    @property
    def warnings(self) -> list[str]:
        """What a user should know before the first trial, a line each."""
        skipped = f"{self.corrupt} corrupt picture{'s were' if self.corrupt > 1 else ' was'} skipped" if self.corrupt else None
        few = sides.warning(sides.Sides(*(self.pictures[name] for name in sides.SIDES)))
        return [line for line in (skipped, few) if line]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one side with their pixels, latents and the rows of their captions.

    pixels: (n, H, W) uint8; mean, deviation: (n, 4, H/8, W/8) float32; caption: (n,) rows of `Prepared.states`.
    """

    pictures: tuple[Picture, ...]
    pixels: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    caption: np.ndarray

    @property
    def patients(self) -> np.ndarray:
        return np.array([picture.patient for picture in self.pictures])


@dataclass(frozen=True)
class Prepared:
    """What is the same for all trials. captions: the distinct ones; states: (captions + 1, tokens, width) float32, the empty caption last."""

    train: Pictures
    twin: Pictures
    second_twin: Pictures
    validate: Pictures
    captions: list[str]
    states: np.ndarray
    content: str  # `Dealt.content`


def data_root(settings: Settings) -> Path:
    """The MIMIC folder; the phantoms are written if there is none."""
    return Path(settings.data) if settings.data is not None else phantoms.ensure(home.phantoms_folder())


def folder_fingerprint(root: Path) -> str:
    """Hash of the tables and the zipped reports: what decides which pictures there are and what they are called."""
    digest = hashlib.sha256(str(root.resolve()).encode())
    for file in sorted([*root.glob("*.csv*"), *root.glob("*.zip")]):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def deal(settings: Settings, resolution: Resolution) -> dict[str, np.ndarray]:
    """Sides and validate pictures, freshly read: pixels by split, and `pictures` as the bytes of their JSON."""
    root = data_root(settings)
    found = mimic.read(root)
    dealt = sides.deal(found, settings.train_images, settings.seed, resolution)
    validate = sides.validate_pictures(found, sides.VALIDATE_LIMIT, settings.seed, resolution, dealt)
    listed = {**dealt.sides.to_json(), "validate": [picture.to_json() for picture in validate.pictures]}
    listed["corrupt"] = len(dealt.corrupt) + len(validate.corrupt)
    listed["stamps"] = stamps_of(root, listed)
    return {**dealt.pixels, "validate": validate.pixels, "pictures": np.frombuffer(json.dumps(listed).encode(), np.uint8)}


def stamps_of(root: Path, listed: dict) -> list[list[int]]:
    """Of the files that chosen pictures and their captions were read from."""
    pictures = [Picture.from_json(each) for name in SPLITS for each in listed[name]]
    return [stamp(path) for path in (*(picture.path for picture in pictures), *mimic.report_files(root, pictures))]


def stamp(path: Path) -> list[int]:
    """Size and time of change of a file, to notice that it is another one now; -1 where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def dealt_sides(settings: Settings, resolution: Resolution) -> Dealt:
    """`deal` through the cache, dealt again when a chosen file has changed."""
    root = data_root(settings)
    if not root.is_dir():
        mimic.read(root)  # says in one line what is wrong
    stamps: list = []
    while True:
        key = key_of(DATA_VERSION, folder_fingerprint(root), settings.train_images, settings.seed, resolution.written, stamps)
        arrays = remember(home.cache_folder(), "sides", key, lambda: deal(settings, resolution))
        listed = json.loads(arrays["pictures"].tobytes())
        now = stamps_of(root, listed)
        if now == listed["stamps"] or now == stamps:
            return Dealt({name: arrays[name] for name in SPLITS},
                         {name: tuple(map(Picture.from_json, listed[name])) for name in SPLITS}, listed["corrupt"])
        stamps = now


def prepare(settings: Settings, pipeline: base_model.FrozenPipeline, resolution: Resolution) -> Prepared:
    """Everything that is computed once, from the cache or made now. Raises BadData and BadModel in one line."""
    dealt = dealt_sides(settings, resolution)
    content = dealt.content
    cache = home.cache_folder()

    def encode() -> dict[str, np.ndarray]:
        out = {}
        for name in SPLITS:
            out[f"{name}_mean"], out[f"{name}_deviation"] = base_model.encode_pictures(pipeline.vae, dealt.pixels[name])
        return out

    latents = remember(cache, "latents", key_of(content, pipeline.hash), encode)
    captions = sorted({picture.caption for name in SPLITS for picture in dealt.pictures[name]})
    states = remember(cache, "captions", key_of(captions, pipeline.hash), lambda: {
        "states": encode_captions(pipeline.source, [*captions, ""], pipeline.device)})["states"]
    row = {caption: number for number, caption in enumerate(captions)}
    made = {}
    for name in SPLITS:
        pictures = dealt.pictures[name]
        made[name] = Pictures(pictures, dealt.pixels[name], latents[f"{name}_mean"], latents[f"{name}_deviation"],
                              np.array([row[picture.caption] for picture in pictures], np.int64))
    return Prepared(**made, captions=captions, states=states, content=content)
