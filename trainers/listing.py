"""`python -m trainers.units --model DIR` lists the units of a U-Net, and with `--method` how much of them a method trains.

Nothing is downloaded and no weights are read: the U-Net is built from its configuration, without memory for its tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.base_model import MINIATURE, unet_on_meta
from trainers.candidate import Candidate
from trainers.errors import BadSelection, TrainerError, nearest
from trainers.units import KINDS, REGIONS, SETS, Units, check_kinds, walk

USAGE = 2  # exit status, as hpo's commands have it
REFERENCE_RANK = 16  # of a method that has ranks, or its nearest one, where none is given
JSON_KEYS = ("name", "site", "kind", "parameters")


@dataclass(frozen=True)
class Listing:
    """trainable: elements that the method trains, or all, as full fine-tuning does, where none is asked for. words: what is counted."""

    units: Units
    trainable: int
    words: str

    def to_json(self) -> dict[str, Any]:
        leaves = [{key: getattr(unit, key) for key in JSON_KEYS} for unit in self.units.units]
        return {"total": self.units.total, "trainable": self.trainable, "units": leaves}

    def lines(self) -> Iterator[str]:
        """The leaf units, then the named sets of kinds and the regions, which overlap."""
        units = self.units
        wide = max(len(unit.name) for unit in units.units)
        yield from (f"{unit.name:{wide}} {unit.parameters:>15,}" for unit in units.units)
        for title, counts in (("kinds", {kind: count(units, REGIONS, kind) for kind in (*KINDS, *SETS)}),
                              ("regions", {region: count(units, (region,), "everything") for region in units.regions})):
            yield f"\n{title} (they may overlap)"
            yield from (f"{name:{wide}} {size:>15,}" for name, size in counts.items() if size)
        yield f"\n{'total':{wide}} {units.total:>15,} in {len(units.sizes)} tensors, {len(units.units)} units"
        yield f"{'trainable':{wide}} {self.trainable:>15,} ({self.trainable / units.total:.4%}) {self.words}"


def count(units: Units, regions: Sequence[str], kind: str) -> int:
    """Elements of a kind; 0 where this U-Net has none."""
    return sum(units.sizes[tensor] for tensor in units.tensors(regions, (kind,)))


def candidate_of(name: str, regions: Sequence[str] = (), kinds: Sequence[str] = (), rank: int | None = None) -> Candidate:
    """A candidate of a method, for counting. What is not given: all blocks, its first choice of kinds, its rank nearest to REFERENCE_RANK.

    Raises BadSelection for an unknown method or kind, and for a rank that the method does not have.
    """
    from trainers.methods import method

    chosen = method(name)
    if rank is not None and not chosen.ranks:
        raise BadSelection(f"--rank {rank}: {chosen.title} has no rank, leave it out")
    check_kinds(kinds, chosen.own_kinds)
    usual = min(chosen.ranks, key=lambda each: abs(each - REFERENCE_RANK), default=None)
    return Candidate.of(name, tuple(regions) or REGIONS, tuple(kinds) or chosen.kinds[0], chosen.reference_rate, 1, rank or usual)


def listing(model: str, method: str | None = None, **chosen: Any) -> Listing:
    """The units of a model, and what a method trains of them. chosen: as `candidate_of` takes it. Raises TrainerError in one line."""
    candidate = None if method is None else candidate_of(method, **chosen)
    unet = unet_on_meta(model)
    units = walk(unet)
    if candidate is None:
        return Listing(units, units.total, "by full fine-tuning")
    from trainers.methods import METHODS

    return Listing(units, METHODS[method].count(unet, units, candidate), f"by {candidate.words.partition(', lr ')[0]}")


class Parser(argparse.ArgumentParser):
    """A mistake is one line instead of the usage."""

    def error(self, message: str):
        raise BadSelection(f"{message.removeprefix('argument ')}: see {self.prog} --help")


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, none of them empty."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name, name one or leave it out")
    return found


def rank_of(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rank, give a whole number from 1")
    return int(text)


def parser() -> Parser:
    result = Parser(prog="python -m trainers.units", description=__doc__.partition("\n")[0], allow_abbrev=False)
    result.add_argument("--model", default=str(MINIATURE), metavar="MODEL", help="diffusers folder, hub name in the local cache, .safetensors file, or a "
                        "U-Net's config.json (default: the bundled miniature)")
    result.add_argument("--method", metavar="NAME", help="count what this method trains, at its default kinds of all blocks")
    result.add_argument("--kinds", type=names, default=(), metavar="KIND,…", help="with --method: other kinds")
    result.add_argument("--regions", type=names, default=(), metavar="REGION,…", help="with --method: other regions, such as up, resolution/2 or up_blocks.1")
    result.add_argument("--rank", type=rank_of, metavar="N", help=f"with --method: rank, where it has one (default: the one nearest to {REFERENCE_RANK})")
    result.add_argument("--json", action="store_true", help="one JSON object: total, trainable (without --method: all) and the leaf units")
    return result


def run(arguments: Sequence[str] | None) -> None:
    given, unknown = parser().parse_known_args(arguments)
    if unknown:
        flags = [flag for action in parser()._actions for flag in action.option_strings if flag.startswith("--")]
        raise BadSelection(f"{unknown[0]!r} is no flag of {parser().prog}: take {nearest(unknown[0], flags)}")
    chosen = {"kinds": given.kinds, "regions": given.regions, "rank": given.rank}
    if given.method is None and any(chosen.values()):
        raise BadSelection(f"--{next(name for name, value in chosen.items() if value)}: it says what a method trains, add --method")
    found = listing(given.model, given.method, **chosen)
    try:
        print(json.dumps(found.to_json(), indent=1) if given.json else "\n".join(found.lines()), flush=True)
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(arguments)
    except TrainerError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    return 0
