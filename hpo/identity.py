"""What a study's scores depend on, by content: base model, encoder and pictures. Cheap, and without torch, so launch can ask first."""

from __future__ import annotations

import json
import math
from operator import index
from pathlib import Path

from hpo.preparation import Dealt
from hpo.settings import Settings
from metrics import encoders
from trainers import base_model
from trainers.data.resolution import Resolution
from trainers.errors import BadModel

SHORT = 16  # hex digits: enough to tell contents apart, few enough to read in a message


def model_folder(settings: Settings) -> Path:
    return Path(settings.model) if settings.model is not None else base_model.MINIATURE


def encoder_spec(settings: Settings) -> str:
    return settings.encoder if settings.encoder is not None else str(base_model.MINIATURE_ENCODER)


def resolution_of(settings: Settings) -> Resolution:
    """--resolution, or the model's own: latents a side times pixels a latent. Raises BadModel where neither is known, and for sides that
    are no whole latents; the U-Net takes any number of them, also odd ones."""
    given = None if settings.resolution is None else Resolution.read(settings.resolution)
    folder = base_model.check_folder(model_folder(settings))
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text())
        vae = json.loads((folder / "vae" / "config.json").read_text())
        pixels = 2 ** (len(vae["block_out_channels"]) - 1)
        own = unet.get("sample_size")
        chosen = given or (None if own is None else Resolution(*(index(side) * pixels for side in (own if isinstance(own, list) else [own, own]))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"--model {folder}: unet/config.json or vae/config.json cannot be read ({type(error).__name__}: {error}); "
                       "give a complete diffusers folder") from error
    if chosen is None:
        raise BadModel(f"--model {folder}: its unet/config.json names no sample_size, give --resolution")
    if any(side % pixels for side in chosen):
        near = [Resolution(*(max(rounded(side / pixels), 1) * pixels for side in chosen)) for rounded in (math.floor, math.ceil)]
        raise BadModel(f"--resolution {chosen.written}: this model needs multiples of {pixels}, "
                       f"take {' or '.join(dict.fromkeys(str(each.written) for each in near))}")
    return chosen


def identity(settings: Settings, dealt: Dealt) -> dict[str, str | int]:
    """Contents as short hashes. Reads every file of model and encoder once, and refuses unusable ones in one line."""
    return {"resolution": resolution_of(settings).written, "model": base_model.content_hash(model_folder(settings))[:SHORT],
            "encoder": encoders.content_hash(encoder_spec(settings))[:SHORT],
            "data": dealt.content}
