"""All settings in one table: each is a flag, a line of TOML, an argument from Python and a column of what was run."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpo.errors import BadSetting
from trainers.errors import nearest

STEP_GRID = 4  # a candidate's steps are a quarter, half, three quarters or all of --steps
PRECISIONS = ("fp32", "bf16", "fp16")
ENGINES = ("local", "ray")
KEEPS = ("front", "all", "none")
SAMPLING_STEPS = (2, 1000)


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
    train_images: int = setting(52, "model and data", "pictures a side: train, twin and second twin have this many each", means=True)

    steps: int = setting(200, "trial", "optimizer steps of the longest candidates", means=True)
    batch_size: int = setting(32, "trial", "pictures a training step", means=True)
    generated: int = setting(104, "trial", "pictures generated a side for the scores", means=True)
    sampling_steps: int = setting(15, "trial", "solver steps of a generated picture", means=True)
    guidance_scale: float = setting(2.0, "trial", "weight of classifier-free guidance", means=True)
    learning_rate_scale: float = setting(1.0, "trial", "factor on each method's range of learning rates (they fit the miniature)", means=True)

    objectives: str = setting("fd,copy_excess", "search", "two or more score names with commas, or joint_reward", means=True)
    reward_weight: float = setting(0.5, "search", "weight of quality in the joint reward, 0..1", means=True)
    space: str = setting("default", "search", "search space", means=True)
    sampler: str = setting("auto", "search", "Optuna sampler: auto, tpe, gp, nsga2 or random")

    engine: str = setting("local", "running", "who places the trials", choices=ENGINES)
    workers: int | None = setting(None, "running", "trials at a time (default: one a GPU, else one a CPU core)")
    gpus_per_trial: float = setting(1.0, "running", "share of a GPU that a trial takes, with --engine ray")
    ray_address: str | None = setting(None, "running", "address of a Ray cluster (default: Ray on this machine)")
    device: str = setting("auto", "running", "cpu, cuda, cuda:0, … or auto")
    precision: str = setting("fp32", "running", "arithmetic of training and sampling", means=True, choices=PRECISIONS)

    keep: str = setting("front", "results", "whose tensors are kept as safetensors", choices=KEEPS)
    out: str = setting("out", "results", "folder for weights, tables and pictures; the study's name is added")

    def check(self) -> Settings:
        """These settings, or BadSetting for the first value that is not allowed."""
        least = {"trials": 1, "train_images": 10, "steps": 1, "batch_size": 1, "generated": 20, "sampling_steps": 2, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BadSetting(f"{flag(name)} {getattr(self, name)}: it must be at least {low}, give a larger number")
        for name in ("workers", "resolution"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadSetting(f"{flag(name)} {getattr(self, name)}: it must be at least 1, or leave the flag out")
        if not 0 <= self.reward_weight <= 1:
            raise BadSetting(f"--reward-weight {self.reward_weight:g}: it is a share, take a number from 0 to 1")
        for name in ("gpus_per_trial", "learning_rate_scale", "guidance_scale"):
            if not getattr(self, name) > 0:
                raise BadSetting(f"{flag(name)} {getattr(self, name):g}: it must be above 0, give a larger number")
        if not self.study.strip() or "\0" in self.study or len(self.study) > 200:
            raise BadSetting(f"--study {self.study[:40]!r}: a name has 1 to 200 characters and not only spaces, give another")
        for each in fields(self):
            choices = each.metadata["choices"]
            if choices and getattr(self, each.name) not in choices:
                raise BadSetting(f"{flag(each.name)} {getattr(self, each.name)!r} is unknown: take {nearest(str(getattr(self, each.name)), choices)}")
        if self.model is not None and self.encoder is None:
            raise BadSetting(f"--model {self.model}: a model of your own needs an --encoder of your own, since the miniature's features "
                             "say nothing about its pictures; give a CLIP folder, or 'pixels'")
        from hpo import objectives, samplers, spaces

        objectives.parse(self.objectives)
        spaces.named(self.space)
        samplers.check(self.sampler)
        return self

    @property
    def step_grid(self) -> tuple[int, ...]:
        """Numbers of steps that a candidate may have, the last of them all."""
        unit = max(self.steps // STEP_GRID, 1)
        return tuple(range(self.steps - unit * (min(STEP_GRID, self.steps) - 1), self.steps + 1, unit))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Settings from a mapping of names to values. Raises BadSetting for unknown names and wrong types."""
        known = {each.name: each for each in fields(cls)}
        hints = get_type_hints(cls)
        for name, value in data.items():
            if name not in known:
                raise BadSetting(f"setting {name!r} is unknown: take {nearest(name, known)}")
            types = get_args(hints[name]) or (hints[name],)
            if isinstance(value, bool) or not isinstance(value, (*types, int) if float in types else types):
                raise BadSetting(f"setting {name} = {value!r}: it must be {' or '.join(getattr(t, '__name__', str(t)) for t in types)}, write it so")
        return cls(**data)

    def meaning(self) -> dict[str, Any]:
        """The settings that decide what a score means, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["means"]}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults are shown where there is one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or "(default" in action.help else super()._get_help_string(action)


def parser(program: str, description: str, names: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Flags for the settings of these names (all, if none are given), in groups."""
    result = argparse.ArgumentParser(prog=program, description=description, formatter_class=Help, allow_abbrev=False)
    result.add_argument("--config", type=Path, default=None, metavar="FILE", help="TOML file with any of these settings; flags win over it")
    groups: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for each in fields(Settings):
        if names and each.name not in names:
            continue
        group = groups.setdefault(each.metadata["group"], None) or result.add_argument_group(each.metadata["group"])
        groups[each.metadata["group"]] = group
        types = [t for t in (get_args(hints[each.name]) or (hints[each.name],)) if t is not type(None)]
        group.add_argument(flag(each.name), type=types[0], default=each.default, metavar=types[0].__name__.upper(),
                           help=each.metadata["help"] + (f": {', '.join(each.metadata['choices'])}" if each.metadata["choices"] else ""))
    return result


def from_command_line(arguments: Sequence[str] | None, program: str, description: str) -> Settings:
    """Settings from the flags, over those of --config, over the defaults, checked."""
    made = parser(program, description)
    given = vars(made.parse_args(arguments))
    config = given.pop("config")
    merged = Settings()
    if config is not None:
        merged = Settings.from_json(read_toml(config))
    spoken = {name: value for name, value in given.items() if value != made.get_default(name) or mentioned(name, arguments)}
    return replace(merged, **spoken).check()


def mentioned(name: str, arguments: Sequence[str] | None) -> bool:
    import sys

    words = sys.argv[1:] if arguments is None else arguments
    return any(word == flag(name) or word.startswith(flag(name) + "=") for word in words)


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
        flat.update(value if isinstance(value, dict) else {key: value})
    return {key.replace("-", "_"): value for key, value in flat.items()}
