"""All settings in one table: each is a flag, a line of TOML, an argument from Python and a column of what was run."""

from __future__ import annotations

import argparse
import math
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpo import engines
from hpo.command import Parser, decimal, whole
from hpo.errors import BadSetting
from trainers.errors import nearest

STEP_GRID = 4  # a candidate's steps are about a quarter, half, three quarters or all of --steps
PRECISIONS = ("fp32", "bf16", "fp16")
KEEPS = ("front", "all", "none")
DEVICE = r"auto|(?:cpu|cuda|mps|xpu)(?::\d+)?"  # what torch.device takes, and auto
LONGEST_NAME = 200  # characters of a study's name; Optuna's column has 512
LARGEST = 2**31 - 1  # PostgreSQL's integer
LEAST = {"trials": 1, "train_images": 10, "steps": 1, "batch_size": 1, "generated": 20, "sampling_steps": 2, "seed": 0, "workers": 1, "resolution": 1}
TYPE_WORDS = {int: "a whole number", float: "a number", str: "text in quotes", type(None): "left out"}
METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}


def setting(default: Any, group: str, help: str, *, means: bool = False, choices: Sequence[str] = ()) -> Any:
    """A field of Settings. `means`: it decides what a score means, so it must agree when a study is opened again."""
    return field(default=default, metadata={"group": group, "help": help, "means": means, "choices": tuple(choices)})


@dataclass(frozen=True)
class Settings:
    """What a search is run with. Frozen; `check` refuses values that are not allowed.

    The same names are flags (`--train-images`), keys of a TOML file (`train_images` or `train-images`) and arguments.
    """

    trials: int = setting(20, "study", "finished trials that the study ends with")
    study: str = setting("peft-pareto", "study", "name of the study; an existing one is resumed")
    storage: str | None = setting(None, "study", "postgresql:// URL of the study store (default: an embedded server)")
    seed: int = setting(0, "study", "seed of the study: sides, proposals, training and noise", means=True)

    model: str | None = setting(None, "model and data", "diffusers folder of the base model (default: the bundled miniature)")
    encoder: str | None = setting(None, "model and data", "CLIP folder, or 'pixels', whose features score pictures (default: the miniature's)")
    data: str | None = setting(None, "model and data", "MIMIC-CXR-JPG folder (default: generated phantoms)")
    resolution: int | None = setting(None, "model and data", "pixels a side (default: the model's own)", means=True)
    train_images: int = setting(60, "model and data", "pictures a side: train, twin and second twin have this many each", means=True)

    steps: int = setting(200, "trial", "optimizer steps of the longest candidates", means=True)
    batch_size: int = setting(32, "trial", "pictures a training step", means=True)
    generated: int = setting(120, "trial", "pictures generated a side for the scores", means=True)
    sampling_steps: int = setting(15, "trial", "solver steps of a generated picture", means=True)
    guidance_scale: float = setting(1.5, "trial", "weight of classifier-free guidance", means=True)
    learning_rate_scale: float = setting(1.0, "trial", "factor on each method's range of learning rates (they fit the miniature)", means=True)

    objectives: str = setting("fd,copy_excess", "search", "two or more score names with commas, or joint_reward", means=True)
    reward_weight: float = setting(0.5, "search", "weight of quality in the joint reward, 0..1", means=True)
    space: str = setting("default", "search", "search space", means=True)
    sampler: str = setting("auto", "search", "Optuna sampler: auto, tpe, gp, nsga2 or random")

    engine: str = setting("local", "running", "who places the trials", choices=tuple(engines.CLASSES))
    workers: int | None = setting(None, "running", "trials at a time (default: one a GPU, else one a CPU core)")
    gpus_per_trial: float = setting(1.0, "running", "share of a GPU that a trial takes, with --engine ray")
    ray_address: str | None = setting(None, "running", "address of a Ray cluster (default: Ray on this machine)")
    device: str = setting("auto", "running", "cpu, cuda, cuda:0, … or auto")
    precision: str = setting("fp32", "running", "arithmetic of training and sampling", means=True, choices=PRECISIONS)

    keep: str = setting("front", "results", "whose tensors are kept as safetensors", choices=KEEPS)
    out: str = setting("out", "results", "folder for weights, tables and pictures; the study's name is added")

    def check(self) -> Settings:
        """These settings, or BadSetting for the first value that is not allowed."""
        for each in fields(self):
            check_type(each.name, getattr(self, each.name))
        self.check_numbers()
        self.check_words()
        from hpo import objectives, samplers, spaces

        objectives.parse(self.objectives)
        spaces.named(self.space)
        samplers.check(self.sampler)
        return self

    def check_numbers(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= LARGEST:
                rule = f"it must be at least {low}, give a larger number" if value < low else f"it must be at most {LARGEST}, give a smaller number"
                raise BadSetting(f"{flag(name)} {value}: {rule}{'' if name not in ('workers', 'resolution') else ', or leave the flag out'}")
        if not 0 <= self.reward_weight <= 1:
            raise BadSetting(f"--reward-weight {self.reward_weight:g}: it is a share, take a number from 0 to 1")
        for name in ("gpus_per_trial", "learning_rate_scale", "guidance_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadSetting(f"{flag(name)} {getattr(self, name):g}: it must be above 0 and finite, give such a number")
        if self.gpus_per_trial > 1 and self.gpus_per_trial != int(self.gpus_per_trial):
            raise BadSetting(f"--gpus-per-trial {self.gpus_per_trial:g}: it must be a share up to 1 or a whole number of GPUs, take {round(self.gpus_per_trial)}")

    def check_words(self) -> None:
        if not self.study.strip() or len(self.study) > LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in self.study):
            raise BadSetting(f"--study {self.study[:40]!r}: a name has 1 to {LONGEST_NAME} characters, not only spaces and no control characters, "
                             "give another")
        for each in fields(self):
            choices, value = each.metadata["choices"], getattr(self, each.name)
            if choices and value not in choices:
                raise BadSetting(f"{flag(each.name)} {value!r} is unknown: take {nearest(value, choices)}")
        check_device(self.device)
        if self.engine != "ray" and self.ray_address is not None:
            raise BadSetting(f"--ray-address {self.ray_address}: only the Ray engine reads it, add --engine ray or leave it out")
        if self.engine != "ray" and self.gpus_per_trial != 1:
            raise BadSetting(f"--gpus-per-trial {self.gpus_per_trial:g}: only the Ray engine shares GPUs out, add --engine ray or leave it out")
        if self.engine == "ray" and ":" in self.device:
            raise BadSetting(f"--device {self.device}: with --engine ray it is Ray that chooses among the GPUs, take {self.device.partition(':')[0]}")
        if self.model is not None and self.encoder is None:
            raise BadSetting(f"--model {self.model}: a model of your own needs an --encoder of your own, since the miniature's features "
                             "say nothing about its pictures; give a CLIP folder, or 'pixels'")

    @property
    def step_grid(self) -> tuple[int, ...]:
        """Numbers of steps that a candidate may have: --steps and, equally spaced, up to three smaller ones."""
        unit = max(self.steps // STEP_GRID, 1)
        return tuple(range(self.steps - unit * (min(STEP_GRID, self.steps) - 1), self.steps + 1, unit))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Settings from a mapping of names to values. Raises BadSetting for unknown names and wrong types."""
        known = {each.name for each in fields(cls)}
        for name, value in data.items():
            if name not in known:
                raise BadSetting(f"setting {name!r} is unknown: take {nearest(name, known)}")
            check_type(name, value)
        return cls(**data)

    def meaning(self) -> dict[str, Any]:
        """The settings that decide what a score means, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["means"]}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def types_of(name: str) -> tuple[type, ...]:
    hint = get_type_hints(Settings)[name]
    return get_args(hint) or (hint,)


def check_type(name: str, value: Any) -> None:
    """BadSetting where a setting's value is of another type than the field."""
    types = types_of(name)
    if isinstance(value, bool) or not isinstance(value, (*types, int) if float in types else types):
        wanted = " or ".join(TYPE_WORDS[each] for each in types)
        raise BadSetting(f"setting {name} = {value!r}: it must be {wanted}, write it so")


def check_device(device: str) -> None:
    if not re.fullmatch(DEVICE, device):
        raise BadSetting(f"--device {device!r} is unknown: take auto, cpu, cuda or one GPU such as cuda:0")


def parser(program: str, description: str, names: Sequence[str] = ()) -> Parser:
    """Flags for the settings of these names (all, if none are given), in groups. Only flags that were given are in the result."""
    result = Parser(prog=program, description=description, argument_default=argparse.SUPPRESS)
    result.add_argument("--config", type=Path, metavar="FILE", help="TOML file with any of these settings; flags win over it")
    groups: dict[str, Any] = {}
    for each in fields(Settings):
        if names and each.name not in names:
            continue
        group = each.metadata["group"]
        if group not in groups:
            groups[group] = result.add_argument_group(group)
        kind = types_of(each.name)[0]
        groups[group].add_argument(flag(each.name), type={int: whole, float: decimal}.get(kind, str), metavar=METAVARS[kind], help=help_of(each))
    return result


def help_of(each: Field) -> str:
    choices = f": {', '.join(each.metadata['choices'])}" if each.metadata["choices"] else ""
    default = "" if "(default" in each.metadata["help"] else f" (default: {each.default})"
    return (each.metadata["help"] + choices + default).replace("%", "%%")


def from_command_line(arguments: Sequence[str] | None, program: str, description: str) -> Settings:
    """Settings from the flags, over those of --config, over the defaults, checked."""
    given = vars(parser(program, description).parse_args(arguments))
    config = given.pop("config", None)
    merged = Settings() if config is None else from_toml(config)
    return replace(merged, **given).check()


def from_toml(path: Path) -> Settings:
    """Settings of a TOML file, over the defaults. Raises BadSetting naming the file."""
    try:
        return Settings.from_json(read_toml(path))
    except BadSetting as error:
        named = str(error).startswith("--config")
        raise BadSetting(str(error) if named else f"--config {path}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; tables are groups, whose names do not matter."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"--config {path}: it cannot be read ({error.strerror}), give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"--config {path}: it is not TOML ({error}), mend that line") from error
    flat: dict[str, Any] = {}
    for key, value in data.items():
        for name, inner in (value if isinstance(value, dict) else {key: value}).items():
            spelt = name.replace("-", "_")
            if spelt in flat:
                raise BadSetting(f"--config {path}: {name} is there twice, keep one of them")
            flat[spelt] = inner
    return flat
