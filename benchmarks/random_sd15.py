"""`python -m benchmarks.random_sd15 --out DIR` writes Stable Diffusion v1.5's architecture with random weights, in diffusers' layout.

For what depends on its shapes and not on what it has learned: whether a command runs, how long, and within which memory.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainers.miniature import vocabulary
from trainers.miniature.pretrain import TEXT_PREFIX
from trainers.model_files import LAYOUTS, SCHEDULER, WEIGHTED

LAYOUT = LAYOUTS / "sd15"
WORDS = ("no acute cardiopulmonary process", "small nodule in the left lung", "pleural effusion and cardiomegaly", "the heart is normal in size")
MERGES = 200
ONE_FILE = "100GB"  # of a part's weights: they are not divided
SHOWN = 1e9  # bytes in the unit of what is said


def unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(LAYOUT / "unet"))


def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(AutoencoderKL.load_config(LAYOUT / "vae"))


def text_encoder():
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_pretrained(LAYOUT / "text_encoder"))


MAKERS: dict[str, Callable[[], torch.nn.Module]] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def write(folder: Path, half: bool = False, seed: int = 0) -> dict[str, int]:
    """Write the pipeline, a part at a time; gives the parameters of each part. half: fp16 weights. Raises OSError."""
    counts = {}
    for number, (part, make) in enumerate(MAKERS.items()):
        torch.manual_seed(seed + number)
        model = make().eval().requires_grad_(False)  # the libraries' own initial weights, whose outputs are finite, also in fp16
        counts[part] = sum(parameter.numel() for parameter in model.parameters())
        if half:
            torch.nn.Module.half(model)
        model.save_pretrained(folder / part, max_shard_size=ONE_FILE)
        if part == "text_encoder":  # transformers 5 leaves out the prefix that Stable Diffusion's own files have, and 4 needs it
            save_file({f"{TEXT_PREFIX}{name.removeprefix(TEXT_PREFIX)}": tensor for name, tensor in model.state_dict().items()},
                      folder / part / f"{WEIGHTED[part]}.safetensors", metadata={"format": "pt"})
        del model
        gc.collect()
    vocabulary.write(folder / "tokenizer", list(WORDS), MERGES)
    (folder / "scheduler").mkdir(exist_ok=True)
    shutil.copy(LAYOUT / "scheduler" / SCHEDULER, folder / "scheduler" / SCHEDULER)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that is made; 4.3 GB, or half of that with --half")
    parser.add_argument("--half", action="store_true", help="fp16 weights")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        print(f"error: --out {given.out}: it is there already, give a new folder", file=sys.stderr)
        return 2
    counts = write(given.out, given.half, given.seed)
    size = sum(file.stat().st_size for part in WEIGHTED for file in (given.out / part).glob("*.safetensors"))
    print(f"{given.out}: {', '.join(f'{part} {count:,}' for part, count in counts.items())} parameters, {size / SHOWN:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
