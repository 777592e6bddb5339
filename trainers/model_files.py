"""Where a base model's files are, in whichever way it is given: paths, JSON and the headers of weights. Loads no tensor, and no torch.

A base model is a folder in diffusers' layout, a hub name whose files are in the local Hugging Face cache, or a single
`.safetensors` file in the layout of Stable Diffusion's authors. Nothing here, and nothing that reads what is found here,
asks the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.errors import BadModel

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # a safety checker or a feature extractor beside them is not looked at
WEIGHTED = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # part → its weights' name
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
SCHEDULER = "scheduler_config.json"
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json", f"scheduler/{SCHEDULER}")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_PATTERNS = ('"*/*.json"', '"*/*.txt"', '"*/*.safetensors"')  # what of a repository is needed
LAYOUTS = Path(__file__).parent / "layouts"  # our own configs of Stable Diffusion, for single files, which hold none
SINGLE_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
FIRST_KEYS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"  # (320, width of the captions' states)
FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"  # (320, channels, 3, 3)
LAYOUT_OF_WIDTH = {768: "sd15", 1024: "sd21"}
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Source:
    """A base model's files. given: as the user named it. configs: the folder with `unet/config.json` and the like. tokenizer: a folder;
    scheduler: a file. single: the file with all weights, or None where each part has its own in `configs`. variants: part → "fp16", or
    None for the plain weights.
    """

    given: str
    configs: Path
    tokenizer: Path
    scheduler: Path
    single: Path | None = None
    variants: tuple[tuple[str, str | None], ...] = ()

    def variant(self, part: str) -> str | None:
        return dict(self.variants).get(part)

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration. Raises BadModel where it is no JSON object."""
        return self.read_json(self.scheduler if part == "scheduler" else self.configs / part / "config.json")

    def read_json(self, file: Path) -> dict[str, Any]:
        return read_object(self.given, file, self.configs)

    def weights(self, part: str) -> list[Path]:
        """The files that hold a part's tensors. Raises BadModel where the index of a divided one names a file that is not there."""
        if self.single is not None:
            return [self.single]
        folder, name, variant = self.configs / part, WEIGHTED[part], self.variant(part)
        whole = folder / f"{name}{dotted(variant)}.safetensors"
        found = [whole] if whole.is_file() else []
        index = folder / index_name(name, variant)
        if index.is_file():
            try:
                shards = sorted(set(self.read_json(index)["weight_map"].values()))
            except (KeyError, AttributeError, TypeError) as error:
                raise self.bad(f"{named(index, folder)} is damaged (it has no weight_map); copy the model anew") from error
            for shard in shards:
                if not (folder / shard).is_file():
                    raise self.bad(f"{named(index, folder)} names {shard}, which is not there; copy the model anew")
            found += [folder / shard for shard in shards]
        return found

    @cached_property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """All files that decide what the model computes, each under a name that does not depend on where the model is."""
        found: list[tuple[str, Path]] = []
        for part in PARTS:
            if part == "tokenizer":
                here = texts(self.tokenizer)
            elif part == "scheduler":
                here = texts(self.scheduler.parent)
            else:
                name = WEIGHTED[part]
                indices = {file.name for file in (self.configs / part).glob(f"{name}.safetensors.index*.json")} - {index_name(name, self.variant(part))}
                here = [file for file in texts(self.configs / part) if file.name not in indices]
                here += self.weights(part) if self.single is None else []
            found += [(f"{part}/{file.name}", file) for file in sorted(here)]
        return (*found, *([("single", self.single)] if self.single is not None else []))

    def check(self) -> Source:
        """This source, if every JSON file and every header of weights is whole. Raises BadModel in one line."""
        for _, file in self.files:
            if file.suffix == ".json":
                self.read_json(file)
            elif file.suffix == ".safetensors":
                shapes(self.given, file, self.configs)
        return self

    def bad(self, what: str) -> BadModel:
        return BadModel(f"--model {self.given}: {what}")


def find(given: str | Path | Source, variant: str | None = None) -> Source:
    """The files of a base model. given: a folder, `owner/name` in the local Hugging Face cache, or a `.safetensors` file.

    variant: "fp16" for `diffusion_pytorch_model.fp16.safetensors` and the like; None: the plain weights, or the only variant
    where there are no plain ones, for each part by itself. Raises BadModel in one line where the files do not make a model.
    """
    if isinstance(given, Source):
        return given
    path = Path(given)
    if path.is_file():
        return single_file(path, str(given)).check()
    return pipeline_folder(path if path.is_dir() else cached(str(given)), str(given), variant).check()


def cached(name: str, file: str = "unet/config.json") -> Path:
    """The folder of a hub repository in the local Hugging Face cache that holds `file`. Raises BadModel where it is not there."""
    if not HUB_NAME.fullmatch(name):
        raise BadModel(f"--model {name}: there is no such folder; give a Stable Diffusion folder in diffusers' layout, a .safetensors file "
                       "or a hub name that is in the local Hugging Face cache")
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # a name that no repository can have
        found = None
    if not isinstance(found, str):
        raise BadModel(f"--model {name}: there is no such folder, and no such model in the Hugging Face cache {constants.HF_HUB_CACHE}; where there is "
                       f"a network, get it with: hf download {name} --include {' '.join(HUB_PATTERNS)}")
    return Path(found).parents[len(Path(file).parents) - 1]


def pipeline_folder(path: Path, given: str, variant: str | None) -> Source:
    """A pipeline in diffusers' layout. Raises BadModel for what is missing or only there as a pickle."""
    source = Source(given, path, path / "tokenizer", path / "scheduler" / SCHEDULER)
    for part in PARTS:
        if not (path / part).is_dir():
            raise source.bad(f"it has no {part}/ folder; a diffusers pipeline has {', '.join(PARTS)}")
    chosen = tuple((part, choose_variant(source, part, variant)) for part in WEIGHTED)
    for config in CONFIGS:
        if not (path / config).is_file():
            raise source.bad(f"it has no {config}; copy the model anew")
    return Source(given, path, source.tokenizer, source.scheduler, None, chosen)


def choose_variant(source: Source, part: str, wanted: str | None) -> str | None:
    """The variant of a part's weights that is read. Raises BadModel where it is not there, or where there are several to choose from."""
    home, name = source.configs / part, re.escape(WEIGHTED[part])
    pattern = re.compile(rf"{name}(?:\.(?P<whole>[^.]+))?\.safetensors|{name}\.safetensors\.index(?:\.(?P<divided>[^.]+))?\.json")
    shard = re.compile(r".*-\d+-of-\d+")
    matches = [match for file in sorted(home.iterdir()) if (match := pattern.fullmatch(file.name)) and not shard.fullmatch(file.stem)]
    found = dict.fromkeys(match["whole"] or match["divided"] for match in matches)
    if not found:
        pickled = [file.name for file in sorted(home.iterdir()) if file.suffix in PICKLES]
        why = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else f"no weights ({WEIGHTED[part]}.safetensors)"
        raise source.bad(f"{part}/ has {why}; save the pipeline again with safe_serialization=True")
    if wanted in found:
        return wanted
    if wanted is not None:
        raise source.bad(f"{part}/ has no weights of variant {wanted!r}: take {in_words(found)}")
    if len(found) > 1:
        raise source.bad(f"{part}/ has its weights only as variants: choose {in_words(found)}")
    return next(iter(found))


def in_words(variants: Iterable[str | None]) -> str:
    return " or ".join("the plain ones" if variant is None else repr(variant) for variant in variants)


def single_file(path: Path, given: str) -> Source:
    """All weights in one file of Stable Diffusion 1.x or 2.x. It holds no vocabulary and no configuration: both are looked for in the
    folder of the file's name without its suffix, or else in the file's own; where there are no configs, ours are taken.

    Raises BadModel for another kind of file, and where the vocabulary, or the kind of prediction of a 2.x, is not to be had.
    """
    check_suffix(path, given)
    beside = next((place for place in (path.with_suffix(""), path.parent) if (place / "tokenizer").is_dir()), None)
    if beside is None:
        raise BadModel(f"--model {given}: a single file holds no vocabulary; put the tokenizer/ folder of this model's diffusers version (vocab.json, "
                       f"merges.txt, tokenizer_config.json) into {path.with_suffix('')}{os.sep}")
    own = all((beside / config).is_file() for config in CONFIGS[:3])
    configs = beside if own else LAYOUTS / layout_of(path, given)
    scheduler = next((place for place in (beside / CONFIGS[3], configs / CONFIGS[3]) if place.is_file()), None)
    if scheduler is None:
        raise BadModel(f"--model {given}: a single file of Stable Diffusion 2.x does not say whether it predicts noise or velocity; put the scheduler/ "
                       f"folder of this model's diffusers version ({SCHEDULER}) into {beside}{os.sep}")
    return Source(given, configs, beside / "tokenizer", scheduler, path)


def check_suffix(path: Path, given: str) -> None:
    """Raises BadModel for a file of weights that is not .safetensors."""
    if path.suffix != ".safetensors":
        why = "a pickle, which can run code when loaded: convert it" if path.suffix in PICKLES else "no .safetensors file: convert it, or give a folder"
        raise BadModel(f"--model {given}: it is {why}")


def layout_of(path: Path, given: str) -> str:
    """Which of our layouts a single file has, by its shapes. Raises BadModel for none of them."""
    found = shapes(given, path, path.parent)
    channels, width = (found.get(name, (0, 0))[1] for name in (FIRST_CONVOLUTION, FIRST_KEYS))
    if width not in LAYOUT_OF_WIDTH:
        xl = any(name.startswith("conditioner.") for name in found)
        why = "Stable Diffusion XL, which asks for more than a caption" if xl else f"no Stable Diffusion 1.x or 2.x by its {FIRST_KEYS}"
        raise BadModel(f"--model {given}: it is {why}; give a Stable Diffusion 1.x or 2.x model")
    if channels != LATENT_CHANNELS:
        raise BadModel(f"--model {given}: its U-Net takes {channels} channels; only text-to-image models are trained here, which take {LATENT_CHANNELS}")
    return LAYOUT_OF_WIDTH[width]


def shapes(given: str, file: Path, root: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a file, by its header alone. Raises BadModel where the header is broken or the file's end is missing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise BadModel(f"--model {given}: {named(file, root)} is damaged ({first_line(error)}); copy the model anew") from error


def unet_config(given: str | Path) -> dict[str, Any]:
    """The configuration of a U-Net alone, also of a model that is not trained here and of one without weights.

    given: as `find` takes it, or a U-Net's own folder or `config.json`. Raises BadModel in one line.
    """
    path = Path(given)
    if path.is_file() and path.suffix == ".json":
        file = path
    elif path.is_file():
        check_suffix(path, str(given))
        beside = (place / "unet" / "config.json" for place in (path.with_suffix(""), path.parent))
        file = next((place for place in beside if place.is_file()), None) or LAYOUTS / layout_of(path, str(given)) / "unet" / "config.json"
    else:
        home = path if path.is_dir() else cached(str(given))
        file = next((place for place in (home / "unet" / "config.json", home / "config.json") if place.is_file()), None)
        if file is None:
            raise BadModel(f"--model {given}: it has no unet/config.json and no config.json; give a diffusers folder or a U-Net's config.json")
    return read_object(str(given), file, file.parent)


def read_object(given: str, file: Path, root: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BadModel in one line where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise BadModel(f"--model {given}: {named(file, root)} is damaged ({first_line(error)}); copy the model anew") from error
    return found


def named(file: Path, root: Path) -> Path:
    """A file as it is named in messages: inside the model's folder where it is there."""
    return file.relative_to(root) if file.is_relative_to(root) else file


def texts(home: Path) -> list[Path]:
    return [file for file in home.iterdir() if file.suffix in (".json", ".txt")]


def dotted(variant: str | None) -> str:
    return "" if variant is None else f".{variant}"


def index_name(name: str, variant: str | None) -> str:
    return f"{name}.safetensors.index{dotted(variant)}.json"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
