"""All settings in one table: each is a flag, a line of TOML, an argument from Python and a column of what was run."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hpo import engines
from hpo.command import Parser, decimal, toml, whole
from hpo.errors import BadSetting
from hpo.rungs import evaluated, ladder
from trainers import optimizers
from trainers.data.resolution import Resolution
from trainers.errors import BadData, nearest
from trainers.schedules import SCHEDULES, WARMUP_STEPS

PRECISIONS = ("fp32", "bf16", "fp16")
KEEPS = ("front", "all", "none")
PROTECTED = ("weights", "outputs")
# The papers' methods and a few adapters of other kinds, which every version of PEFT has; --methods names others.
DEFAULT_METHODS = ("full", "attention", "norm", "bias", "lora", "svdiff", "difffit", "loha", "lokr", "oft", "ia3")
READY = Path(__file__).parent / "configs"  # settings as files, by name
DEVICE = r"auto|(?:cpu|cuda|mps|xpu)(?::\d+)?"  # what torch.device takes, and auto
LONGEST_NAME = 200  # characters of a study's name; Optuna's column has 512
USUAL_EVALUATED = 2  # rungs of a trial, or one where there is no second
LARGEST = 2**31 - 1  # PostgreSQL's integer, and more than any setting needs: what is computed with them stays finite, in 32 bits too
LEAST_STALLED, MOST_STALLED = 1.0, 1440.0  # minutes without a sign of life
LEAST_SHARE = 1e-4  # of a GPU: Ray counts ten-thousandths
SMALLEST = 1e-9  # of a number that must be above 0: a rate that it is a factor of does not become 0
LONGEST_WHOLE = 63  # bits: longer ones no computation takes
NAMED = ("model", "encoder", "data", "warm_start", "enqueue", "ray_address", "checkpoints", "out")  # see `check_named`
POSITIVE = ("learning_rate_scale", "guidance_scale", "hours", "max_seconds", "max_grad_norm", "min_snr_gamma")
LEAST = {"trials": 1, "train_images": 10, "steps": 1, "batch_size": 1, "generated": 20, "sampling_steps": 2, "seed": 0, "workers": 1,
         "warmup_steps": 0, "accumulate": 1, "held_out_every": 0, "checkpoint_every": 0, "rungs": 1, "evaluated_rungs": 1, "reduction": 2,
         "repeats": 1}
TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes", type(None): "left out"}
METAVARS = {bool: "BOOL", int: "N", float: "NUMBER", str: "TEXT"}
TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


def setting(default: Any, group: str, help: str, *, means: bool = False, choices: Sequence[str] = ()) -> Any:
    """A field of Settings. `means`: it decides what a score means, so it must agree when a study is opened again."""
    return field(default=default, metadata={"group": group, "help": help, "means": means, "choices": tuple(choices)})


@dataclass(frozen=True)
class Settings:
    """What a search is run with. Frozen; `check` refuses values that are not allowed.

    The same names are flags (`--train-images`), keys of a TOML file (`train_images` or `train-images`) and arguments.
    """

    trials: int = setting(20, "study", "finished trials that the study ends with")
    hours: float | None = setting(None, "study", "no trial begins after so many hours (default: no limit)")
    until_stable: bool = setting(False, "study", "end when the front's hypervolume grew by less than 1 % over the last 20 finished trials")
    study: str = setting("peft-pareto", "study", "name of the study; an existing one is resumed")
    storage: str | None = setting(None, "study", "postgresql:// URL of the study store (default: an embedded server)")
    seed: int = setting(0, "study", "seed of the study: sides, proposals, training and noise", means=True)

    model: str | None = setting(None, "model and data", "diffusers folder of the base model (default: the bundled miniature)")
    encoder: str | None = setting(None, "model and data", "CLIP folder, or 'pixels', whose features score pictures (default: the miniature's)")
    data: str | None = setting(None, "model and data", "MIMIC-CXR-JPG folder (default: generated phantoms)")
    resolution: str | int | None = setting(None, "model and data", "pixels a side, or WIDTHxHEIGHT (default: the model's own)", means=True)
    train_images: int = setting(60, "model and data", "pictures a side: train, twin and second twin have this many each", means=True)

    steps: int = setting(200, "trial", "optimizer steps of the longest candidates", means=True)
    rungs: int = setting(3, "trial", "numbers of steps that candidates may have, up to --steps; trials are evaluated at the last of them", means=True)
    evaluated_rungs: int = setting(USUAL_EVALUATED, "trial", "how many of the last rungs a trial is evaluated at; yardstick and baselines are at all")
    reduction: int = setting(3, "trial", "factor from one rung's steps to the next", means=True)
    batch_size: int = setting(32, "trial", "pictures a training step", means=True)
    generated: int = setting(120, "trial", "pictures generated a side for the scores", means=True)
    sampling_steps: int = setting(15, "trial", "solver steps of a generated picture", means=True)
    guidance_scale: float = setting(1.5, "trial", "weight of classifier-free guidance", means=True)
    learning_rate_scale: float = setting(1.0, "trial", "factor on each method's range of learning rates (they fit the miniature)", means=True)

    optimizer: str = setting("adamw", "training", "optimizer; all but adamw need the extra 'optimizers'", means=True, choices=tuple(optimizers.OPTIMIZERS))
    schedule: str = setting("constant", "training", "curve of the learning rate after the warm-up, down to 0 at --steps", means=True, choices=tuple(SCHEDULES))
    warmup_steps: int = setting(WARMUP_STEPS, "training", "steps in which the learning rate rises from 0", means=True)
    max_grad_norm: float = setting(1.0, "training", "norm that gradients are clipped to", means=True)
    caption_dropout: float = setting(0.1, "training", "share of captions that are left out, for guidance", means=True)
    min_snr_gamma: float | None = setting(None, "training", "γ of min-SNR loss weights, 5 in its paper (default: no weights)", means=True)
    noise_offset: float = setting(0.0, "training", "noise that is common to a whole channel, 0.05 to 0.1 where it is used", means=True)
    ema_decay: float | None = setting(None, "training", "decay of an average of the trained values, which then is what is scored (default: none)", means=True)
    accumulate: int = setting(1, "training", "parts that a batch is split into, one after the other, for less memory")
    gradient_checkpointing: bool = setting(False, "training", "compute activations twice rather than keep them, for less memory")
    held_out_every: int = setting(50, "training", "steps from one point of the curve of the loss on train and twin to the next; 0 for none")
    checkpoint_every: int = setting(0, "training", "steps from one writing of a trial's state, from which it is resumed, to the next; 0 for none")

    objectives: str = setting("fd,copy_excess", "search", "two or more score names with commas, or joint_reward", means=True)
    reward_weight: float = setting(0.5, "search", "weight of quality in the joint reward, 0..1", means=True)
    warm_start: str | None = setting(None, "search", "study of the same store whose results the sampler sees, and whose front is run first")
    enqueue: str | None = setting(None, "search", "file of candidates to run first: JSON, one object a line")
    space: str = setting("default", "search", "search space: a name, SPACE.toml, or a function as FILE.py:function")
    methods: str = setting(",".join(DEFAULT_METHODS), "search", "methods that the spaces default and reference offer, with commas", means=True)
    protects: str = setting("weights", "search", "what mitigations must protect: weights offers those at training time, outputs those at generation too",
                            means=True, choices=PROTECTED)
    baselines: bool = setting(True, "search", "run the papers' methods as published first")
    sampler: str = setting("auto", "search", "Optuna sampler: auto, tpe, gp, nsga2 or random")
    pruner: str = setting("moasha", "search", "what stops trials at rungs: two-objective asynchronous successive halving, or nothing", choices=("moasha", "none"))
    stop_confidence: float = setting(0.7, "search", "share of bootstrap replicates in which a trial must not be among the best of its rung to be stopped")
    repeats: int = setting(1, "search", "runs, with seeds of their own, of each candidate that reaches the front", means=True)
    max_trainable: str | None = setting(None, "constraints", "most trainable parameters, 500000 or 1% of the U-Net", means=True)
    max_memory: str | None = setting(None, "constraints", "most memory at a trial's peak, such as 24GiB, of the GPU, or of the process on a CPU", means=True)
    max_seconds: float | None = setting(None, "constraints", "most seconds that a trial may take to a rung", means=True)
    require: str | None = setting(None, "constraints", "bounds on scores with commas, such as copy_rate_high<=0.05", means=True)

    engine: str = setting("local", "running", "who places the trials", choices=tuple(engines.CLASSES))
    workers: int | None = setting(None, "running", "trials at a time (default: one a GPU, else one a CPU core)")
    gpus_per_trial: float = setting(1.0, "running", "share of a GPU that a trial takes, with --engine ray")
    ray_address: str | None = setting(None, "running", "address of a Ray cluster (default: Ray on this machine)")
    device: str = setting("auto", "running", "cpu, cuda, cuda:0, … or auto")
    stalled_after: float = setting(30.0, "running", "minutes without a sign of life after which a worker loses its trial and ends")
    precision: str = setting("fp32", "running", "arithmetic of training and sampling", means=True, choices=PRECISIONS)

    keep: str = setting("front", "results", "whose tensors and last training states are kept as safetensors", choices=KEEPS)
    checkpoints: str | None = setting(None, "results", "folder of trials' states, which all machines see (default: under --out)")
    out: str = setting("out", "results", "folder for weights, tables and pictures; the study's name is added")

    def __post_init__(self) -> None:
        if isinstance(self.resolution, str):  # "512x512" is the same study as 512; what is no size is left for `check`
            with suppress(BadData):
                object.__setattr__(self, "resolution", Resolution.read(self.resolution).written)

    def check(self) -> Settings:
        """These settings, or BadSetting for the first value that is not allowed."""
        for each in fields(self):
            check_type(each.name, getattr(self, each.name))
        self.check_numbers()
        self.check_words()
        self.check_training()
        from hpo import constraints, objectives, samplers, spaces

        ladder(self.steps, self.rungs, self.reduction)
        if self.evaluated_rungs > max(self.rungs, USUAL_EVALUATED):
            raise BadSetting(f"--evaluated-rungs {self.evaluated_rungs}: there are {self.rungs} rungs, take at most as many, or give --rungs {self.evaluated_rungs}")
        constraints.parse(self)
        objectives.parse(self.objectives)
        spaces.check(self.space, self.methods, usual=",".join(DEFAULT_METHODS))
        samplers.check(self.sampler)
        return self

    def check_numbers(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= LARGEST:
                rule = f"it must be at least {low}, give a larger number" if value < low else f"it must be at most {LARGEST}, give a smaller number"
                raise BadSetting(f"{flag(name)} {value}: {rule}{', or leave the flag out' if name == 'workers' else ''}")
        if self.resolution is not None:
            Resolution.read(self.resolution)
        if not LEAST_STALLED <= self.stalled_after <= MOST_STALLED:
            raise BadSetting(f"--stalled-after {self.stalled_after:g}: one step on a slow machine takes a minute, and nobody waits for days; take a number of "
                             f"minutes from {LEAST_STALLED:g} to {MOST_STALLED:g}")
        if not 0 <= self.reward_weight <= 1:
            raise BadSetting(f"--reward-weight {self.reward_weight:g}: it is a share, take a number from 0 to 1")
        if not 0 <= self.stop_confidence < 1:
            raise BadSetting(f"--stop-confidence {self.stop_confidence:g}: it is a share that can be exceeded, take a number from 0 to below 1, such as 0.9")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not SMALLEST <= value <= LARGEST:
                raise BadSetting(f"{flag(name)} {value:g}: it must be above 0, from {SMALLEST:g} to {LARGEST}, give such a number")
        if not LEAST_SHARE <= self.gpus_per_trial <= LARGEST:
            raise BadSetting(f"--gpus-per-trial {self.gpus_per_trial:g}: it must be a share from {LEAST_SHARE:g} to 1 or a whole number of GPUs, give such a number")
        if self.gpus_per_trial > 1 and self.gpus_per_trial != int(self.gpus_per_trial):
            raise BadSetting(f"--gpus-per-trial {self.gpus_per_trial:g}: it must be a share up to 1 or a whole number of GPUs, take {round(self.gpus_per_trial)}")

    def check_training(self) -> None:
        optimizers.check(self.optimizer)
        if not 0 <= self.caption_dropout <= 1:
            raise BadSetting(f"--caption-dropout {self.caption_dropout:g}: it is a share, take a number from 0 to 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise BadSetting(f"--ema-decay {self.ema_decay:g}: it must be between 0 and 1, take one like 0.99 or leave the flag out")
        if not 0 <= self.noise_offset <= LARGEST:
            raise BadSetting(f"--noise-offset {self.noise_offset:g}: it must be at least 0 and at most {LARGEST}, give such a number")
        if self.accumulate > self.batch_size:
            raise BadSetting(f"--accumulate {self.accumulate}: a batch of {self.batch_size} has no so many parts, take at most {self.batch_size}")

    def check_words(self) -> None:
        if not self.study.strip() or len(self.study) > LONGEST_NAME or any(unicodedata.category(c) in ("Cc", "Cs") for c in self.study):
            raise BadSetting(f"--study {self.study[:40]!r}: a name has 1 to {LONGEST_NAME} characters, not only spaces and no control characters, "
                             "give another")
        for each in fields(self):
            choices, value = each.metadata["choices"], getattr(self, each.name)
            if each.name in NAMED:
                check_named(each.name, value)
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
    def ladder(self) -> tuple[int, ...]:
        """The study's rungs: numbers of steps that a candidate may have, and at which it may be evaluated on the way."""
        return ladder(self.steps, self.rungs, self.reduction)

    def rungs_of(self, steps: int, baseline: bool = False) -> tuple[int, ...]:
        """Where a trial of so many steps is evaluated. Yardstick and baselines at every rung: others are compared with them at equal quality,
        wherever that is reached."""
        return evaluated(self.ladder, self.rungs if baseline else self.evaluated_rungs, steps)

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
    if not (bool in types if isinstance(value, bool) else isinstance(value, (*types, int) if float in types else types)):
        wanted = " or ".join(TYPE_WORDS[each] for each in types)
        raise BadSetting(f"setting {name} = {value!r}: it must be {wanted}, write it so")
    if isinstance(value, int) and value.bit_length() > LONGEST_WHOLE:
        raise BadSetting(f"setting {name}: it is a number of {value.bit_length()} bits, give a smaller one")


def check_device(device: str) -> None:
    if not re.fullmatch(DEVICE, device):
        raise BadSetting(f"--device {device!r} is unknown: take auto, cpu, cuda or one GPU such as cuda:0")


def check_named(name: str, value: str | None) -> None:
    """Refuses an empty path, such as a script gives with an empty variable: it would be the folder that one is in."""
    if value == "":
        raise BadSetting(f"{flag(name)} '': it is empty, name something or leave the flag out")


def parser(program: str, description: str, names: Sequence[str] = ()) -> Parser:
    """Flags for the settings of these names (all, if none are given), in groups. Only flags that were given are in the result."""
    result = Parser(prog=program, description=description, argument_default=argparse.SUPPRESS)
    result.add_argument("--config", type=Path, metavar="FILE", help="TOML file with any of these settings, or a ready one by "
                        f"its name ({', '.join(sorted(file.stem for file in READY.glob('*.toml')))}); flags win over it")
    groups: dict[str, Any] = {}
    for each in fields(Settings):
        if names and each.name not in names:
            continue
        group = each.metadata["group"]
        if group not in groups:
            groups[group] = result.add_argument_group(group)
        kind = types_of(each.name)[0]
        more = {"nargs": "?", "const": True} if kind is bool else {}
        groups[group].add_argument(flag(each.name), type={bool: truth, int: whole, float: decimal}.get(kind, str), metavar=METAVARS[kind], help=help_of(each),
                                   **more)
        if kind is bool:
            groups[group].add_argument(flag(f"no_{each.name}"), dest=each.name, action="store_false", help=f"the same as {flag(each.name)} false")
    return result


def truth(text: str) -> bool:
    """A flag's yes or no."""
    if text.lower() not in TRUTHS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false, write one of them")
    return TRUTHS[text.lower()]


def help_of(each: Field) -> str:
    choices = f": {', '.join(each.metadata['choices'])}" if each.metadata["choices"] else ""
    default = "" if "(default" in each.metadata["help"] else f" (default: {each.default})"
    return (each.metadata["help"] + choices + default).replace("%", "%%")


def from_command_line(arguments: Sequence[str] | None, program: str, description: str, also: Mapping[str, str] | None = None) -> Settings:
    """Settings from the flags, over those of --config, over the defaults, checked. also: flags that the caller has read already, with their help."""
    reader = parser(program, description)
    for name, words in (also or {}).items():
        reader.add_argument(name, action="store_true", dest=argparse.SUPPRESS, help=words)
    given = vars(reader.parse_args(arguments))
    config = given.pop("config", None)
    merged = Settings() if config is None else from_toml(config)
    settings = replace(merged, **given).check()
    if config is not None and settings.model is None and ready(config) != config:
        raise BadSetting(f"--config {config}: it is for a model of yours, give --model DIR")
    return settings


def from_toml(path: Path) -> Settings:
    """Settings of a TOML file, or of a ready one by its name, over the defaults. Raises BadSetting naming the file."""
    try:
        return Settings.from_json(read_toml(ready(path)))
    except BadSetting as error:
        named = str(error).startswith("--config")
        raise BadSetting(str(error) if named else f"--config {path}: {error}") from error


def ready(path: Path) -> Path:
    """The file itself, or for a bare name that is no file the ready file of that name. Raises BadSetting for an unknown name."""
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    known = {file.stem: file for file in sorted(READY.glob("*.toml"))}
    if path.name not in known:
        raise BadSetting(f"--config {path}: there is no such file, and no such ready one: take {nearest(path.name, known)}, or give a TOML file")
    return known[path.name]


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; tables are groups, whose names do not matter."""
    flat: dict[str, Any] = {}
    for key, value in toml("--config", path).items():
        for name, inner in (value if isinstance(value, dict) else {key: value}).items():
            spelt = name.replace("-", "_")
            if spelt in flat:
                raise BadSetting(f"--config {path}: {name} is there twice, keep one of them")
            flat[spelt] = inner
    return flat
