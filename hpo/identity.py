"""What a study's scores depend on, by content: base model, encoder and pictures. Cheap, and without torch, so launch can ask first."""

from __future__ import annotations

import json
from pathlib import Path

from hpo.preparation import Dealt
from hpo.settings import Settings
from metrics import encoders
from trainers import base_model
from trainers.errors import BadModel

SHORT = 16  # hex digits: enough to tell contents apart, few enough to read in a message


def model_folder(settings: Settings) -> Path:
    return Path(settings.model) if settings.model is not None else base_model.MINIATURE


def encoder_spec(settings: Settings) -> str:
    return settings.encoder if settings.encoder is not None else str(base_model.MINIATURE_ENCODER)


def resolution_of(settings: Settings) -> int:
    """--resolution, or the model's own: latents a side times pixels a latent. Raises BadModel where neither is known."""
    folder = base_model.check_folder(model_folder(settings))
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text())
        vae = json.loads((folder / "vae" / "config.json").read_text())
        pixels = 2 ** (len(vae["block_out_channels"]) - 1)
        halvings = 2 ** (len(unet["block_out_channels"]) - 1)
        chosen = settings.resolution or unet["sample_size"] * pixels
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"--model {folder}: unet/config.json or vae/config.json cannot be read ({type(error).__name__}: {error}); "
                       "give a complete diffusers folder") from error
    if chosen % (pixels * halvings):
        raise BadModel(f"--resolution {chosen}: this model needs a multiple of {pixels * halvings}, "
                       f"take {max(round(chosen / (pixels * halvings)), 1) * pixels * halvings}")
    return chosen


def identity(settings: Settings, dealt: Dealt) -> dict[str, str | int]:
    """Contents as short hashes. Reads every file of model and encoder once, and refuses unusable ones in one line."""
    return {"resolution": resolution_of(settings), "model": base_model.content_hash(model_folder(settings))[:SHORT],
            "encoder": encoders.content_hash(encoder_spec(settings))[:SHORT],
            "data": dealt.content}
