"""The base model: Stable Diffusion from safetensors, frozen, with its content hash. Where its files are is `model_files`' business."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import single_file
from trainers.errors import BadModel
from trainers.model_files import SINGLE_PREFIXES, Source, find, first_line, shapes, unet_config

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

UNET = "UNet2DConditionModel"
PREDICTIONS = ("epsilon", "v_prediction")
MORE_THAN_CAPTIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")  # in a U-Net's config
READ_BLOCK = 1 << 20  # bytes
PIXELS_AT_ONCE = 16 * 256 * 256  # that the VAE encodes, for about 3 GB
MINIATURE = Path(__file__).parent / "miniature" / "base"
MINIATURE_ENCODER = Path(__file__).parent / "miniature" / "clip"


def check_folder(model: str | Path) -> Path:
    """The folder with the model's configs (`unet/config.json`, …), if its files are whole. Raises BadModel in one line.

    model: as `find` takes it. Reads the JSON files and the headers of the weights, no tensor.
    """
    return find(model).configs


def content_hash(model: str | Path | Source, variant: str | None = None) -> str:
    """SHA-256 over the names and contents of the files that the model is read from, as hex."""
    digest = hashlib.sha256()
    for name, file in find(model, variant).files:
        digest.update(f"{name}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(READ_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def unet_elements(model: str | Path | Source, variant: str | None = None) -> int:
    """Elements of the U-Net, by the headers of its weights alone."""
    source = find(model, variant)
    prefix = SINGLE_PREFIXES["unet"] if source.single is not None else ""
    return sum(prod(shape) for file in source.weights("unet") for name, shape in shapes(source.given, file, source.configs).items()
               if name.startswith(prefix))


@dataclass(frozen=True)
class FrozenPipeline:
    """The loaded parts on their device, without gradients, in evaluation mode; fp32 but for the U-Net, which may be in half precision.

    `unet` is lent to one candidate at a time, whose `Subset.restore` gives it back untouched. The text encoder is not
    among them: `captions.CaptionEncoder` reads it when a cache must be filled.
    """

    source: Source
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


def load(model: str | Path | Source, device: str = "cpu", dtype: torch.dtype | None = None, variant: str | None = None) -> FrozenPipeline:
    """Read U-Net, VAE and schedule. Raises BadModel where the model or a file of it is not usable.

    model, variant: as `find` takes them. dtype: of the U-Net's frozen weights, float32 if None; the VAE is always float32, since
    in float16 it gives NaN.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = find(model, variant)
    scheduler_config = source.config("scheduler")
    if scheduler_config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise source.bad(f"prediction_type {scheduler_config['prediction_type']!r} is not trained here; use {' or '.join(PREDICTIONS)}")
    unet = read_part(source, "unet", UNet2DConditionModel, torch_dtype=dtype or torch.float32)
    vae = read_part(source, "vae", AutoencoderKL, torch_dtype=torch.float32)
    check_conditioning(source, unet.config, vae.config)
    for part in (unet, vae):
        part.to(device).eval().requires_grad_(False)
    return FrozenPipeline(source, content_hash(source), unet, vae, scheduler_config, device)


def unet_on_meta(model: str | Path) -> UNet2DConditionModel:
    """A U-Net that takes no memory, from its configuration alone. model: as `unet_config` takes it.

    Raises BadModel where it is not Stable Diffusion's kind of U-Net.
    """
    config = unet_config(model)
    kind, essential = config.get("_class_name", UNET), ("block_out_channels", "cross_attention_dim")
    if kind != UNET or not all(name in config for name in essential):
        what = f"of a {kind}" if kind != UNET else f"of no U-Net (it has no {' or no '.join(name for name in essential if name not in config)})"
        raise BadModel(f"--model {model}: its configuration is {what}; only Stable Diffusion's {UNET} is understood")
    import torch
    from diffusers import UNet2DConditionModel

    try:
        with torch.device("meta"):
            return UNet2DConditionModel.from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise BadModel(f"--model {model}: its configuration makes no {UNET} ({first_line(error)}); copy the model anew") from error


def read_part(source: Source, part: str, kind: Any, **dtype: Any) -> Any:
    """One part from its safetensors. Raises BadModel, also for tensors that are missing: libraries draw those at random."""
    try:
        if source.single is not None:
            model, missing = single_file.read(source, part, kind, *dtype.values())
        else:
            model, found = kind.from_pretrained(source.configs / part, use_safetensors=True, local_files_only=True, output_loading_info=True,
                                                variant=source.variant(part), **dtype)
            missing = found["missing_keys"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, *single_file.errors()) as error:
        raise source.bad(f"{part}/ cannot be loaded ({first_line(error)}); check the model with StableDiffusionPipeline") from error
    if missing:
        raise source.bad(f"{part}/ lacks {len(missing)} of its tensors, the first {min(missing)!r}; save the pipeline again")
    return model


def check_conditioning(source: Source, unet: Any, vae: Any) -> None:
    """Raises BadModel for a U-Net, given by its config, that wants more than noisy latents, a timestep and a caption."""
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise source.bad(f"its U-Net takes {unet.in_channels} channels, gives {unet.out_channels} and its VAE has {vae.latent_channels}; "
                         "only text-to-image models are trained here, give one whose three numbers agree")
    more = [name for name in MORE_THAN_CAPTIONS if unet.get(name)]
    if more:
        raise source.bad(f"its U-Net asks for more than a caption ({', '.join(more)}); give a Stable Diffusion 1.x or 2.x model")


def encode_pictures(vae, pictures, batch: int | None = None):
    """The VAE's posterior, scaled, of uint8 pictures (n, H, W): mean and deviation, each (n, 4, H/8, W/8) float32 numpy.

    batch: pictures at a time; None: as many as have PIXELS_AT_ONCE, since memory goes with pixels. Encoded in fp32: fp16 VAEs give NaN.
    Raises BadModel if a latent is not finite.
    """
    import numpy as np
    import torch

    batch = batch or max(PIXELS_AT_ONCE // prod(pictures.shape[1:]), 1)
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
