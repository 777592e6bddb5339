"""The base model: a Stable Diffusion folder in diffusers' layout, read from safetensors, frozen, with its content hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import BadModel

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
PREDICTIONS = ("epsilon", "v_prediction")
MORE_THAN_CAPTIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")  # in a U-Net's config
READ_BLOCK = 1 << 20  # bytes
MINIATURE = Path(__file__).parent / "miniature" / "base"
MINIATURE_ENCODER = Path(__file__).parent / "miniature" / "clip"


def check_folder(folder: Path) -> Path:
    """The folder, if it is a diffusers pipeline with safetensors weights whose files are whole. Raises BadModel in one line.

    Reads the JSON files and the headers of the weights, no tensor.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadModel(f"--model {folder}: there is no such folder; give a Stable Diffusion folder in diffusers' layout")
    for part in PARTS:
        if not (folder / part).is_dir():
            raise BadModel(f"--model {folder}: it has no {part}/ folder; a diffusers pipeline has {', '.join(PARTS)}")
    for part in WEIGHTED:
        if not list((folder / part).glob("*.safetensors")):
            pickled = [file.name for file in (folder / part).iterdir() if file.suffix in PICKLES]
            why = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
            raise BadModel(f"--model {folder}: {part}/ has {why}; save the pipeline again with safe_serialization=True")
    for config in CONFIGS:
        if not (folder / config).is_file():
            raise BadModel(f"--model {folder}: it has no {config}; copy the model anew")
    for part in PARTS:
        for file in sorted((folder / part).iterdir()):
            check_file(folder, file)
    return folder


def check_file(folder: Path, file: Path) -> None:
    """Raises BadModel for JSON that is no object, and for weights whose header is broken or whose end is missing."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
            raise ValueError("it holds no JSON object")
        if file.suffix == ".safetensors":
            with safe_open(file, "numpy"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        raise BadModel(f"--model {folder}: {file.relative_to(folder)} is damaged ({first_line(error)}); copy the model anew") from error


def content_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the pipeline's files, as hex."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted((folder / part).iterdir()):
            if file.suffix in (".json", ".txt", ".safetensors"):
                digest.update(f"{part}/{file.name}\0".encode())
                with file.open("rb") as stream:
                    while block := stream.read(READ_BLOCK):
                        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class FrozenPipeline:
    """The loaded parts on their device; fp32, without gradients, in evaluation mode.

    `unet` is lent to one candidate at a time, whose `Subset.restore` gives it back untouched. The text encoder is not
    among them: `encode_captions` reads it when a cache must be filled.
    """

    folder: Path
    hash: str
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    device: str

    def scheduler(self):
        """The noise schedule that the model was trained with, as a DDPM scheduler for adding noise."""
        from diffusers import DDPMScheduler

        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def latent_scale(self) -> int:
        """Pixels a side of one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def load(folder: Path, device: str = "cpu") -> FrozenPipeline:
    """Read U-Net, VAE and schedule in fp32. Raises BadModel where the folder or a file in it is not usable."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = check_folder(folder)
    scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    if scheduler_config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise BadModel(f"--model {folder}: prediction_type {scheduler_config['prediction_type']!r} is not trained here; use {' or '.join(PREDICTIONS)}")
    unet = read_part(folder, "unet", UNet2DConditionModel, torch_dtype=torch.float32)
    vae = read_part(folder, "vae", AutoencoderKL, torch_dtype=torch.float32)
    check_conditioning(folder, unet.config, vae.config)
    for part in (unet, vae):
        part.to(device).eval().requires_grad_(False)
    return FrozenPipeline(folder, content_hash(folder), unet, vae, scheduler_config, device)


def read_part(folder: Path, part: str, kind: Any, **dtype: Any) -> Any:
    """One part from its safetensors. Raises BadModel, also for tensors that are missing: libraries draw those at random."""
    try:
        model, found = kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True, output_loading_info=True, **dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BadModel(f"--model {folder}: {part}/ cannot be loaded ({first_line(error)}); check the folder with StableDiffusionPipeline") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise BadModel(f"--model {folder}: {part}/ lacks {len(missing)} of its tensors, the first {missing[0]!r}; save the pipeline again")
    return model


def check_conditioning(folder: Path, unet: Any, vae: Any) -> None:
    """Raises BadModel for a U-Net, given by its config, that wants more than noisy latents, a timestep and a caption."""
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise BadModel(f"--model {folder}: its U-Net takes {unet.in_channels} channels, gives {unet.out_channels} and its VAE has {vae.latent_channels}; "
                       "only text-to-image models are trained here, give one whose three numbers agree")
    more = [name for name in MORE_THAN_CAPTIONS if unet.get(name)]
    if more:
        raise BadModel(f"--model {folder}: its U-Net asks for more than a caption ({', '.join(more)}); give a Stable Diffusion 1.x or 2.x model")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def encode_captions(folder: Path, captions: list[str], device: str = "cpu", batch: int = 64):
    """Last hidden states of the frozen text encoder: (n, tokens, width) float32 numpy; captions are cut at its window.

    Raises BadModel where tokenizer or text encoder is not usable.
    """
    import numpy as np
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = check_folder(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"--model {folder}: tokenizer/ cannot be loaded ({first_line(error)}); copy the model anew") from error
    encoder = read_part(folder, "text_encoder", CLIPTextModel, dtype=torch.float32).to(device).eval()
    window = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    states = []
    with torch.inference_mode():
        for start in range(0, len(captions), batch):
            tokens = tokenizer(captions[start : start + batch], padding="max_length", truncation=True,
                               max_length=window, return_tensors="pt").input_ids
            states.append(encoder(tokens.to(device))[0].float().cpu().numpy())
    return np.concatenate(states)


def encode_pictures(vae, pictures, batch: int = 16):
    """The VAE's posterior, scaled, of uint8 pictures (n, H, W): mean and deviation, each (n, 4, H/8, W/8) float32 numpy.

    Encoded in fp32: fp16 VAEs give NaN. Raises BadModel if a latent is not finite.
    """
    import numpy as np
    import torch

    means, deviations = [], []
    device, scale = next(vae.parameters()).device, vae.config.scaling_factor
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(pictures), batch):
            grey = torch.from_numpy(np.array(pictures[start : start + batch])).to(device).float().div_(127.5).sub_(1)
            posterior = vae.encode(grey[:, None].expand(-1, 3, -1, -1).contiguous()).latent_dist
            # The VAE's output is channels-last; a CPU GroupNorm's backward crashes on that (torch 2.13).
            means.append((posterior.mean * scale).contiguous().cpu().numpy())
            deviations.append((posterior.std * scale).contiguous().cpu().numpy())
    mean, deviation = np.concatenate(means), np.concatenate(deviations)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
        raise BadModel("the VAE gives latents that are not finite in fp32: its weights are damaged, take another copy")
    return mean, deviation
