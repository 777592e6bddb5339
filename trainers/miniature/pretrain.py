"""`python -m trainers.miniature.pretrain --out DIR` makes the bundled miniature from a seed: tokenizer, CLIP, VAE, U-Net.

Each stage writes its folder when it is done, and a stage that was made with the same recipe is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.functional import l1_loss, mse_loss

from trainers.miniature import architecture, pictures, vocabulary


@dataclass(frozen=True)
class Recipe:
    """How much of everything. FULL is what is committed, MINUTE what a test runs."""

    pictures: int
    merges: int
    clip_steps: int
    vae_steps: int
    unet_steps: int
    clip_batch: int = 128
    vae_batch: int = 16
    unet_batch: int = 48
    clip_rate: float = 1e-3
    vae_rate: float = 2e-3
    unet_rate: float = 2e-3
    seed: int = 0


FULL = Recipe(pictures=24_000, merges=1_000, clip_steps=800, vae_steps=6_000, unet_steps=7_500)
MINUTE = Recipe(pictures=512, merges=200, clip_steps=20, vae_steps=60, unet_steps=60)
STAGES = ("clip", "vae", "unet")
RECIPE_OF = {"clip": ("pictures", "merges", "clip", "seed"), "vae": ("pictures", "vae", "seed")}  # first words of what a stage depends on
KL_WEIGHT = 1e-6  # Rombach et al. 2022: a slight pull of the latents towards N(0, 1)
EDGE_WEIGHT, SQUARE_WEIGHT = 0.25, 4.0  # of the losses on differences of neighbouring pixels (thin lines) and on squares
CROPPED_SHARE, CROP = 0.7, 40  # the auto-encoder first learns on crops, which cost 40 % of whole pictures
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
TEXT_PREFIX = "text_model."  # of the tensors in a text encoder's file


class Progress:
    """A line on the screen now and then: stage, step, loss, seconds."""

    def __init__(self, stage: str, steps: int):
        self.stage, self.steps, self.start, self.mean = stage, steps, time.monotonic(), None

    def __call__(self, step: int, loss: float) -> None:
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        if step % max(self.steps // 20, 1) == 0 or step == self.steps:
            print(f"{self.stage} {step}/{self.steps} loss {self.mean:.4f} {time.monotonic() - self.start:.0f} s", flush=True)


def optimizer_for(parameters, rate: float, steps: int):
    """AdamW with a short warm-up, then a cosine to zero."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    warmup = max(steps // 50, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))
    return optimizer, schedule


def as_tensor(images) -> torch.Tensor:
    """(n, 64, 64, 3) uint8 → (n, 3, 64, 64) float32 in −1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def train(stage: str, steps: int, count: int, batch: int, parameters, rate: float, loss_of, seed: int, after=lambda: None) -> None:
    """The loop that all stages share: random batches of row numbers, AdamW, gradients clipped at norm 1."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(parameters)
    optimizer, schedule = optimizer_for(parameters, rate, steps)
    progress = Progress(stage, steps)
    for step in range(1, steps + 1):
        loss = loss_of(torch.randint(count, (batch,), generator=generator), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        after()
        progress(step, loss.item())


def tokens_of(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, max_length=vocabulary.CONTEXT, return_tensors="pt").input_ids


def make_clip(recipe: Recipe, out: Path, images, captions: list[str]) -> None:
    from transformers import CLIPImageProcessor, CLIPTokenizer

    folder = out / "base" / "tokenizer"
    texts = [caption for caption in captions[:4_000]] + [" ".join(pictures.words())] * 20
    size = vocabulary.write(folder, texts, recipe.merges)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokens_of(tokenizer, captions)
    torch.manual_seed(recipe.seed)
    model = architecture.clip(size, tokenizer.eos_token_id, tokenizer.bos_token_id).train()

    def loss_of(rows, generator):
        longest = int((tokens[rows] != tokenizer.eos_token_id).sum(1).max()) + 1
        return model(input_ids=tokens[rows, :longest], pixel_values=as_tensor(images[rows.numpy()]), return_loss=True).loss

    train("clip", recipe.clip_steps, len(images), recipe.clip_batch, model.parameters(), recipe.clip_rate, loss_of, recipe.seed + 1)
    model.eval().half().save_pretrained(out / "clip")
    CLIPImageProcessor(size={"shortest_edge": pictures.SIZE}, crop_size=pictures.SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
                       ).save_pretrained(out / "clip")
    save_text_encoder(model, out / "base" / "text_encoder")


def save_text_encoder(model, folder: Path) -> None:
    """The CLIP's text half as a CLIPTextModel, stored in fp16 and said to be fp32, which is how it is to be loaded.

    A plain StableDiffusionPipeline loads the other parts in fp32 and this one as its configuration says: fp16 would not
    fit. The names have the prefix of Stable Diffusion's own files: transformers 5 reads them with and without it and
    would write them without; version 4 would then start from random weights.
    """
    from safetensors.torch import save_file
    from transformers import CLIPTextModel

    CLIPTextModel(model.config.text_config).float().save_pretrained(folder)  # for its configuration
    save_file({f"{TEXT_PREFIX}{name}": tensor.contiguous() for name, tensor in model.half().text_model.state_dict().items()},
              folder / "model.safetensors", metadata={"format": "pt"})


def make_vae(recipe: Recipe, out: Path, images, captions: list[str]) -> None:
    torch.manual_seed(recipe.seed + 10)
    model = architecture.vae().train()

    seen = 0

    def loss_of(rows, generator):
        nonlocal seen
        seen += 1
        picture = as_tensor(images[rows.numpy()])
        if seen <= CROPPED_SHARE * recipe.vae_steps:
            top, left = torch.randint(pictures.SIZE - CROP + 1, (2,), generator=generator).tolist()
            picture = picture[:, :, top : top + CROP, left : left + CROP].contiguous()
        posterior = model.encode(picture).latent_dist
        decoded = model.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)).sample
        edges = sum(l1_loss(decoded.diff(dim=d), picture.diff(dim=d)) for d in (2, 3))
        return l1_loss(decoded, picture) + SQUARE_WEIGHT * mse_loss(decoded, picture) + EDGE_WEIGHT * edges + KL_WEIGHT * posterior.kl().mean()

    train("vae", recipe.vae_steps, len(images), recipe.vae_batch, model.parameters(), recipe.vae_rate, loss_of, recipe.seed + 11)
    model.eval()
    with torch.no_grad():
        latents = torch.cat([model.encode(as_tensor(images[i : i + 64])).latent_dist.mean for i in range(0, min(len(images), 2048), 64)])
    model.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    model.half().save_pretrained(out / "base" / "vae")


@torch.no_grad()
def latents_of(vae, images) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and deviation, scaled: each (n, 4, 8, 8) float32."""
    parts = [vae.encode(as_tensor(images[i : i + 64])).latent_dist for i in range(0, len(images), 64)]
    scale = vae.config.scaling_factor
    return torch.cat([p.mean for p in parts]).contiguous() * scale, torch.cat([p.std for p in parts]).contiguous() * scale


def make_unet(recipe: Recipe, out: Path, images, captions: list[str]) -> None:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    base = out / "base"
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    tokens = tokens_of(CLIPTokenizer.from_pretrained(base / "tokenizer"), [*captions, ""])
    with torch.no_grad():
        text = torch.cat([encoder(tokens[i : i + 256])[0].half() for i in range(0, len(tokens), 256)])
    mean, deviation = latents_of(vae, images)
    scheduler = architecture.scheduler()
    scheduler.save_pretrained(base / "scheduler")
    torch.manual_seed(recipe.seed + 20)
    model = architecture.unet().train()
    average = copy.deepcopy(model).requires_grad_(False)

    def loss_of(rows, generator):
        clean = mean[rows] + deviation[rows] * torch.randn(mean[rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < CAPTION_DROPOUT
        states = text[torch.where(dropped, len(captions), rows)].float()
        predicted = model(scheduler.add_noise(clean, noise, timesteps), timesteps, states).sample
        return mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))

    def follow():
        torch._foreach_lerp_(list(average.parameters()), [parameter.detach() for parameter in model.parameters()], 1 - EMA_DECAY)

    train("unet", recipe.unet_steps, len(images), recipe.unet_batch, model.parameters(), recipe.unet_rate, loss_of, recipe.seed + 21, follow)
    average.eval().half().save_pretrained(base / "unet")
    (base / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}, indent=2))


def recipe_of(stage: str, recipe: Recipe) -> dict[str, float]:
    """What of the recipe decides a stage's weights; the U-Net's depend on all of it."""
    return {name: value for name, value in asdict(recipe).items() if name.startswith(RECIPE_OF.get(stage, ""))}


def is_done(stage: str, recipe: Recipe, out: Path) -> bool:
    file = out / f".{stage}.done"
    return file.exists() and json.loads(file.read_text())["recipe"] == recipe_of(stage, recipe)


def pretrain(recipe: Recipe, out: Path, only: str | None = None) -> None:
    """Make `out/base` (a Stable Diffusion folder) and `out/clip` (its CLIP, for `--encoder`), stage by stage."""
    out.mkdir(parents=True, exist_ok=True)
    waiting = [stage for stage in STAGES if only in (None, stage) and not is_done(stage, recipe, out)]
    if not waiting:
        return
    start = time.monotonic()
    images, captions = pictures.draw(recipe.pictures, recipe.seed)
    print(f"{recipe.pictures} pictures drawn in {time.monotonic() - start:.0f} s", flush=True)
    makers = {"clip": make_clip, "vae": make_vae, "unet": make_unet}
    for stage in waiting:
        start = time.monotonic()
        makers[stage](recipe, out, images, captions)
        done = {"seconds": round(time.monotonic() - start), "threads": torch.get_num_threads(), "recipe": recipe_of(stage, recipe)}
        (out / f".{stage}.done").write_text(json.dumps(done))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that will hold base/ and clip/")
    parser.add_argument("--minute", action="store_true", help="the recipe of a minute, to see that it runs")
    parser.add_argument("--only", choices=STAGES, help="run one stage: clip and vae do not need each other, unet needs both")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pretrain(MINUTE if arguments.minute else FULL, arguments.out, arguments.only)


if __name__ == "__main__":
    main()
