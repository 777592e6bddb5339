"""`python -m hpo.once --method bias` runs one real trial of one candidate: no study, no database, no search.

With fewer pictures than scores need, it fine-tunes and generates all the same, and reports loss, time and memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hpo.command import Parser, decimal, one_line_errors, whole
from hpo.errors import BadSetting
from hpo.identity import model_folder
from hpo.memory import host_peak
from hpo.settings import LEAST, Settings, flag, from_toml, parser
from hpo.spaces.base import Trained
from trainers import mitigations
from trainers.candidate import Applied, Candidate, Part
from trainers.listing import names

GROUPS = ("model and data", "trial", "training")  # of settings that are flags here
NOT = ("rungs", "evaluated_rungs", "reduction")  # it is evaluated once
ALSO = ("seed", "device", "precision", "protects", "out")
SCORED = ("generated", "train_images")  # what scores need LEAST of
OUT = "out/once"
WEIGHTS, PICTURES, REPORT = "weights.safetensors", "pictures", "trial.json"
GIB = 1 << 30


@dataclass(frozen=True)
class Report:
    """What a single trial came to.

    seconds: of "training", "generating" and the like, and "total" with loading. memory: peak bytes of this process ("host", None where the
    system does not say it) and of the GPU ("device", None on a CPU). scores: name → (value, low, high), or None with the reason in `unscored`. weights, pictures: files.
    """

    candidate: Candidate
    trainable: int
    trainable_share: float
    loss: float
    seconds: dict[str, float]
    memory: dict[str, int | None]
    scores: dict[str, tuple[float, float, float]] | None
    unscored: str | None
    weights: str
    pictures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "candidate": self.candidate.to_json(), "words": self.candidate.words, "hash": self.candidate.hash}

    def lines(self) -> list[str]:
        rows = [("candidate", self.candidate.words), ("trainable", f"{self.trainable:,} parameters, {self.trainable_share:.4%}"), ("loss", f"{self.loss:.4g}"),
                ("seconds", ", ".join(f"{name} {spent:.1f}" for name, spent in self.seconds.items())),
                ("peak memory", ", ".join(f"{where} {size / GIB:.2f} GiB" for where, size in self.memory.items() if size is not None)),
                *((name, f"{value:.4g} [{low:.4g}, {high:.4g}]") for name, (value, low, high) in (self.scores or {}).items()),
                *([("scores", f"none: {self.unscored}")] if self.unscored else []),
                ("weights", self.weights), ("pictures", f"{len(self.pictures)} in {Path(self.pictures[0]).parent}")]
        wide = max(len(name) for name, _ in rows)
        return [f"{name:{wide}}  {value}" for name, value in rows]


def once(settings: Settings, candidate: Candidate, on_stage: Callable[[str], None] = lambda stage: None) -> Report:
    """One trial: prepare, fine-tune, generate, and score where there are enough pictures. Writes tensors and pictures under `settings.out`.

    Raises what a trial of a study would be failed with, and BadSetting, TrainerError and MetricError as `hpo.launch` does.
    """
    from hpo.inner_loop import LOADING, InnerLoop, check_usable, memory_named, pick_device
    from hpo.unscored import Unscored

    started, out, device = time.monotonic(), Path(settings.out), pick_device(settings.device)
    check_usable(device)
    Trained(model_folder(settings)).check(candidate)  # before anything is loaded, which may take minutes
    why = unscored(settings)
    with memory_named(LOADING, settings):
        inner = (Unscored if why else InnerLoop)(settings, device, on_stage)
    loaded = host_peak() or 0
    result = inner.evaluate(candidate, 0, on_stage, out / WEIGHTS)
    pictures = write_pictures(out / PICTURES, result.pictures)
    scores = None if why else {name: (each.value, each.low, each.high) for name, each in result.scores.items()}
    report = Report(candidate, result.trainable, result.trainable_share, result.training_loss, {**result.seconds, "total": time.monotonic() - started},
                    {"host": max(loaded, host_peak() or 0) or None, "device": device_peak(device)}, scores, why, str(out / WEIGHTS), pictures)
    (out / REPORT).write_text(json.dumps(report.to_json(), indent=1))
    return report


def unscored(settings: Settings) -> str | None:
    """Why there are too few pictures for scores, None if there are enough."""
    few = [f"{flag(name)} {getattr(settings, name)} is below {LEAST[name]}" for name in SCORED if getattr(settings, name) < LEAST[name]]
    return " and ".join(few) or None


def write_pictures(folder: Path, pictures) -> tuple[str, ...]:
    """Grey pictures (n, H, W) uint8 as PNG files."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(len(pictures))]
    for file, pixels in zip(files, pictures):
        Image.fromarray(pixels).save(file)
    return tuple(map(str, files))


def device_peak(device: str) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def candidate_of(given: dict[str, Any], settings: Settings) -> Candidate:
    """The candidate that the flags name: what they leave out is as in the method as a baseline. Raises BadSelection and BadSetting."""
    from hpo.spaces.reference import reference_candidate
    from trainers.methods import method
    from trainers.units import check_kinds

    chosen = method(given["method"])
    check_kinds(given["kinds"] or (), chosen.own_kinds)
    usual = reference_candidate(chosen.name, settings.steps, settings.learning_rate_scale)
    (part,) = usual.parts
    if given["rank"] is not None and not chosen.ranks:
        raise BadSetting(f"--rank {given['rank']}: {chosen.title} has no rank, leave it out")
    if given["norm_rate"] is not None and chosen.norm_rates is None:
        raise BadSetting(f"--norm-rate {given['norm_rate']:g}: {chosen.title} has no learning rate of its own for norms, leave it out")
    for name in ("rank", "alpha", "learning_rate", "norm_rate"):
        if given[name] is not None and not given[name] > 0:
            raise BadSetting(f"{flag(name)} {given[name]:g}: it must be above 0, give such a number")
    applied = tuple(map(applied_of, given["mitigations"] or ()))
    rank = part.rank if given["rank"] is None else given["rank"]
    candidate = replace(usual, parts=(Part(given["regions"] or part.regions, given["kinds"] or part.kinds, rank, given["alpha"]),), mitigations=applied,
                   **{name: given[name] for name in ("learning_rate", "norm_rate") if given[name] is not None})
    chosen.check(candidate)
    mitigations.check(applied)
    return candidate


def applied_of(text: str) -> Applied:
    """A mitigation at its published strength, "rwa", or with numbers of one's own, "rwa:words=4:probability=0.2"."""
    name, *numbers = text.split(":")
    strength = {number: choices[0] for number, choices in mitigations.mitigation(name).strengths.items()}
    try:
        return Applied.of(name, **strength | {key.strip(): float(value) for key, value in (number.split("=") for number in numbers)})
    except ValueError as error:
        usual = ":".join([name, *(f"{key}={value:g}" for key, value in strength.items())])
        raise BadSetting(f"--mitigations {text}: write {name}, or its numbers too, as {usual}") from error


CANDIDATE: dict[str, dict[str, Any]] = {  # flags that say what is trained
    "method": {"metavar": "NAME", "help": "method, a name of docs/methods.md"},
    "regions": {"type": names, "metavar": "REGION,…", "help": "where: down, mid, up, resolution/2, up_blocks.1, … (default: all blocks)"},
    "kinds": {"type": names, "metavar": "KIND,…", "help": "of which kinds of layers (default: the method's first choice)"},
    "rank": {"type": whole, "metavar": "N", "help": "rank of an adapter (default: the method's nearest to 16)"},
    "alpha": {"type": decimal, "metavar": "NUMBER", "help": "an adapter's output is scaled by alpha / rank (default: the rank)"},
    "learning_rate": {"type": decimal, "metavar": "NUMBER", "help": "learning rate (default: the method's reference rate times --learning-rate-scale)"},
    "norm_rate": {"type": decimal, "metavar": "NUMBER", "help": "that of norms, where the method has one of its own"},
    "mitigations": {"type": names, "metavar": "NAME,…", "help": "mitigations on top, at their published strengths, or as rwa:words=4 (default: none)"},
}


def command() -> Parser:
    flags = [each.name for each in fields(Settings) if each.metadata["group"] in GROUPS and each.name not in NOT or each.name in ALSO]
    result = parser("python -m hpo.once", __doc__.partition("\n")[0], flags)
    group = result.add_argument_group("candidate")
    for name, how in CANDIDATE.items():
        group.add_argument(flag(name), default=None, **how)
    result.add_argument("--json", action="store_true", default=False, help="print one JSON object instead of a table")
    return result


def checked(settings: Settings) -> Settings:
    """These settings, which may ask for fewer pictures than a study's. Raises BadSetting for any other value that is not allowed."""
    for name in SCORED:
        if getattr(settings, name) < 1:
            raise BadSetting(f"{flag(name)} {getattr(settings, name)}: it must be at least 1, give a larger number")
    replace(settings, rungs=1, **{name: max(getattr(settings, name), LEAST[name]) for name in SCORED}).check()
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(command().parse_args(arguments))
    config, as_json, chosen = given.pop("config", None), given.pop("json"), {name: given.pop(name) for name in CANDIDATE}
    if chosen["method"] is None:
        raise BadSetting("--method: it is needed, give one such as bias")
    told = Settings() if config is None else from_toml(config)
    settings = checked(replace(told, **{"out": OUT if told.out == Settings().out else told.out, **given}))
    report = once(settings, candidate_of(chosen, settings), lambda stage: print(stage, file=sys.stderr, flush=True))
    try:
        print(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()), flush=True)
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
