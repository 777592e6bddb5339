"""The inner loop of a trial that has too few pictures to score: it fine-tunes and generates as any other, and measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpo import home
from hpo.identity import encoder_spec, model_folder, resolution_of
from hpo.inner_loop import InnerLoop, Stage
from hpo.preparation import Pictures, data_root
from hpo.settings import Settings
from metrics import encoders
from metrics.evaluate import Measured
from metrics.scores import Scores
from trainers import base_model
from trainers.candidate import Candidate
from trainers.captions import CaptionEncoder, encode_captions
from trainers.data import mimic
from trainers.data.picture import Picture, decode
from trainers.data.resolution import Resolution
from trainers.errors import BadData, CorruptPicture
from trainers.held_out import Curve
from trainers.loss import AUTOCAST
from trainers.methods import BaseCache
from trainers.mitigations.hooks import Learned
from trainers.training import Evaluation
from trainers.units import walk


@dataclass(frozen=True)
class Few:
    """What is learned from, without the sides that scores compare. captions: the distinct ones."""

    train: Pictures
    captions: list[str]


class Unscored(InnerLoop):
    """As `InnerLoop`, with the pictures that are learned from and no others; its results have no scores, and pictures are generated from
    the captions that were learned."""

    prepared: Few

    def __init__(self, settings: Settings, device: str, on_stage: Stage = lambda stage: None):
        on_stage("loading the base model")
        self.settings, self.device = settings, device
        self.resolution = resolution_of(settings)
        self.encoder = encoders.load(encoder_spec(settings), device)
        self.pipeline = base_model.load(model_folder(settings), device, AUTOCAST[settings.precision])
        self.units = walk(self.pipeline.unet)
        self.cache = BaseCache(home.cache_folder(), self.pipeline.hash)
        self.scheduler = self.pipeline.scheduler()
        on_stage("encoding")
        pictures, pixels = some_pictures(data_root(settings), settings.train_images, settings.seed, self.resolution)
        captions = sorted({picture.caption for picture in pictures})
        row = {caption: number for number, caption in enumerate(captions)}
        self.states = torch.from_numpy(encode_captions(self.pipeline.source, [*captions, ""], device)).to(device)
        self.captions = CaptionEncoder(self.pipeline.source, device, known=([*captions, ""], self.states))
        mean, deviation = base_model.encode_pictures(self.pipeline.vae, pixels)
        self.prepared = Few(Pictures(pictures, pixels, mean, deviation, np.array([row[picture.caption] for picture in pictures])), captions)
        self.examples = {"train": self.examples_of(self.prepared.train)}

    def held_out(self, found: Curve) -> list[Evaluation]:
        """None: there is no twin."""
        return []

    def measure_all(self, candidate: Candidate, learned: Learned, on_stage: Stage = lambda stage: None) -> tuple[list[Measured], np.ndarray]:
        """Nothing, and pictures from the captions that were learned."""
        on_stage("generating")
        return [], self.generate("train", guard=self.guard(candidate, learned))[1]

    def scores(self, measured: list[Measured]) -> Scores:
        return Scores({})


def some_pictures(root: Path, count: int, seed: int, resolution: Resolution) -> tuple[tuple[Picture, ...], np.ndarray]:
    """Pictures of the train split in an order that the seed decides, and their pixels (count, H, W) uint8; corrupt ones are left out.

    Raises BadData if there are too few.
    """
    found = [picture for picture in mimic.read(root) if picture.split == "train"]
    kept, pixels = [], []
    for index in np.random.default_rng(seed).permutation(len(found)):
        if len(kept) == count:
            break
        try:
            pixels.append(decode(found[index], resolution))
            kept.append(found[index])
        except CorruptPicture:
            continue
    if len(kept) < count:
        raise BadData(f"--train-images={count}: this data folder has {len(kept)} usable pictures in its train split: lower it to {len(kept)}")
    return tuple(kept), np.stack(pixels)
