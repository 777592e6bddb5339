"""A training's state on disk, from which it goes on as if it had never stopped. One safetensors file with JSON in its header; never a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch

from trainers.checkpoint import UNFINISHED, make, sync, write_whole
from trainers.errors import BadModel
from trainers.methods import Subset
from trainers.plan import Plan

log = logging.getLogger(__name__)

VERSION = 2  # of the layout of the file


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Values:
    """The subset's values."""

    def __init__(self, subset: Subset):
        self.parameters = subset.parameters

    def state_dict(self) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises BadModel, before anything is set, for values of other parameters."""
        if {name: value.shape for name, value in state.items()} != {name: parameter.shape for name, parameter in self.parameters.items()}:
            raise BadModel("training state: it is that of other parameters; delete it, or take the candidate that it was made with")
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


def forked(device: torch.device):
    """What is drawn inside from torch's own generators leaves no trace after it."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


class RandomStates:
    """Torch's own generators, the CPU's and the GPU's, which dropout layers draw from, as one training has them: from its seed on, whatever is
    drawn elsewhere while it pauses."""

    def __init__(self, device: torch.device, seed: int):
        self.device = device
        with forked(device):
            torch.manual_seed(seed)
            self.held: dict[str, Any] | None = self.current()  # None inside `used`, where torch's generators have them

    @contextmanager
    def used(self) -> Iterator[None]:
        """Torch's generators are the training's inside, and as they were after it."""
        with forked(self.device):
            torch.set_rng_state(self.held["cpu"])
            if self.held["cuda"] is not None:
                torch.cuda.set_rng_state(self.held["cuda"], self.device)
            self.held = None
            try:
                yield
            finally:
                self.held = self.current()

    def current(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None}

    def state_dict(self) -> dict[str, Any]:
        return self.held or self.current()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Outside `used` only."""
        on_gpu = self.device.type == "cuda"
        self.held = {"cpu": state["cpu"], "cuda": (state["cuda"] if state["cuda"] is not None else self.held["cuda"]) if on_gpu else None}


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its state, and how often.

    every: steps from one writing to the next; the last step is written too. 0: only where `Training.save` asks for it. belongs: whatever
    beside the plan decides the weights, by name, such as {"candidate": …, "base": …, "data": …}, in values that JSON can write. A candidate's
    number of steps does not belong there: a longer training goes on from a shorter one. anew: a state that cannot be gone on from is
    deleted, with a warning, and the training begins anew, where it would raise BadModel.
    """

    path: Path
    every: int
    belongs: Mapping[str, Any]
    anew: bool = False

    def due(self, step: int, steps: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or step == steps)

    def save(self, step: int, plan: Plan, parts: Mapping[str, Stateful]) -> None:
        """Write the state of all parts; the file appears whole or not at all. Raises OSError if the disk is full."""
        tensors: dict[str, torch.Tensor] = {}
        state = {name: packed(part.state_dict(), tensors, name) for name, part in parts.items()}
        write(self.path, {"version": VERSION, "belongs": {**self.belongs, "plan": plan.identity}, "step": step, "state": state}, tensors)

    def load(self, plan: Plan, parts: Mapping[str, Stateful]) -> int:
        """Set all parts to the state that was kept and give its step; 0, and nothing is set, if there is no file. Raises BadModel,
        before anything is set, if the file is damaged or belongs to another candidate, plan or base."""
        if not self.path.exists():
            return 0
        try:
            found, tensors = read(self.path)
            self.check(found, plan)
            self.check_parts(found, parts)
        except BadModel as error:
            if not self.anew:
                raise
            log.warning("%s: the training begins anew", str(error).partition("; delete it")[0])
            self.path.unlink()
            return 0
        for name, part in parts.items():
            part.load_state_dict(unpacked(found["state"][name], tensors))
        return found["step"]

    def step(self, plan: Plan | None = None) -> int | None:
        """The step of the state that is kept, from the file's header alone, in milliseconds however large it is; None where there is no file, it is
        damaged, or it belongs to another training. plan: whose training goes on; None for any plan that `belongs` fits.
        Damage to the bytes of a tensor is not seen here: `load` sees it."""
        try:
            found = read_header(self.path)
            self.check(found, plan)
        except BadModel:
            return None
        return found["step"]

    def copy(self, path: Path) -> None:
        """Give the state that is kept a second file, to be kept or to be gone on from by another training; it appears whole or not at all, in the
        place of what was there. On one file system it costs neither time nor space: a state's file is only ever replaced,
        never written into, so that the two may share their bytes. Raises OSError: FileNotFoundError if no state is kept, or if the disk is full."""
        make(path.parent)
        unfinished = path.with_name(f"{path.name}.{uuid4().hex}{UNFINISHED}")
        try:
            try:
                os.link(self.path, unfinished)
            except FileNotFoundError:
                raise
            except OSError:  # another file system, or one without links
                shutil.copyfile(self.path, unfinished)
                sync(unfinished)
            os.replace(unfinished, path)
            sync(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)  # also where both were one file already: replacing does nothing then

    def check(self, found: dict[str, Any], plan: Plan | None) -> None:
        """Raises BadModel for the state of another training, or one beyond this plan."""
        wanted = json.loads(json.dumps({**self.belongs, "plan": found["belongs"]["plan"] if plan is None else plan.identity}))
        for name in {**wanted, **found["belongs"]}:
            if difference := differing(found["belongs"].get(name), wanted.get(name)):
                raise BadModel(f"training state {self.path}: it belongs to another {name} ({difference}); delete it, or take the {name} that it was made with")
        if plan is not None and found["step"] > plan.steps:
            raise BadModel(f"training state {self.path}: it is at step {found['step']}, beyond the {plan.steps} that are wanted; delete it")

    def check_parts(self, found: dict[str, Any], parts: Mapping[str, Stateful]) -> None:
        if found["state"].keys() != parts.keys():
            other = min(found["state"].keys() ^ parts.keys())
            raise BadModel(f"training state {self.path}: it and this training differ in {other!r}; delete it, or train as it was made")


def differing(found: Any, wanted: Any) -> str:
    """The first difference in words: "seed 5 instead of 6"; empty if there is none."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {**wanted, **found}:
            if found.get(name) != wanted.get(name):
                return f"{name} {found.get(name)} instead of {wanted.get(name)}"
        return ""
    return "" if found == wanted else f"{found} instead of {wanted}"


def packed(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """The value as JSON can write it, with its tensors put aside under their paths. Raises TypeError, with the path, for what is neither a
    number, text, None, list, tuple, dict nor tensor."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, packed(inner, tensors, f"{name}.{key}")] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [packed(inner, tensors, f"{name}.{place}") for place, inner in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: a training's state has numbers, text, lists, dicts and tensors only")


def unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What was packed."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: unpacked(each, tensors) for key, each in inner}
    return {"list": list, "tuple": tuple}[kind](unpacked(each, tensors) for each in inner)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, as hex, over every tensor's name, type, shape and bytes. It costs a twentieth of what writing them does (1.7 s for 3.2 GB whose
    writing takes 28 to 40 s on a cloud machine's disk), so that a faster, weaker sum such as CRC-32 (0.5 s) would gain nothing that is noticed."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(path: Path, found: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """The header's JSON has the tensors' checksum in it and one of its own beside it, so that it can be trusted without reading the tensors."""
    own: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        copied = tensor.cpu().contiguous()
        own[name] = copied.clone() if copied.data_ptr() in memory else copied  # safetensors refuses tensors that share memory
        memory.add(own[name].data_ptr())
    text = json.dumps({**found, "tensors": checksum(own)})
    write_whole(path, own, {"training": text, "sha256": sha256(text)})


def read_header(path: Path) -> dict[str, Any]:
    """What was written but the tensors. Raises BadModel, also for another version of the layout."""
    with opened(path) as file:
        return header_of(path, file)


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What was written. Raises BadModel, also for another version of the layout."""
    with opened(path) as file:
        found, tensors = header_of(path, file), {name: file.get_tensor(name) for name in file.keys()}
        if checksum(tensors) != found["tensors"]:
            raise ValueError("its checksum does not fit")
        return found, tensors


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file; whatever shows inside that it is not as it was written is raised as BadModel."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except BadModel:
        raise
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadModel(f"training state {path}: it is damaged or none of ours ({type(error).__name__}: {str(error).splitlines()[0]}); delete it, "
                       "and the trial begins anew") from error


def header_of(path: Path, file: Any) -> dict[str, Any]:
    header = file.metadata() or {}
    found = json.loads(header["training"])
    if found["version"] != VERSION:
        raise BadModel(f"training state {path}: its version is {found['version']}, this program reads {VERSION}; delete it")
    if sha256(header["training"]) != header["sha256"]:
        raise ValueError("its header's checksum does not fit")
    return found
