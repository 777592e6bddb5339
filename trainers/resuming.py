"""A training's state on disk, from which it goes on as if it had never stopped. One safetensors file with JSON in its header; never a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from trainers.checkpoint import write_whole
from trainers.errors import BadModel
from trainers.methods import Subset
from trainers.plan import Plan

log = logging.getLogger(__name__)

VERSION = 1  # of the layout of the file


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


class RandomStates:
    """Torch's own generators, the CPU's and the GPU's, which dropout layers draw from."""

    def __init__(self, device: torch.device):
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its state, and how often.

    every: steps from one writing to the next; the last step is written too. belongs: whatever beside the plan decides the weights, by
    name, such as {"candidate": …, "base": …, "data": …}, in values that JSON can write. A candidate's number of steps does not belong there:
    a longer training goes on from a shorter one. anew: a state that cannot be gone on from is deleted, with a warning, and the training
    begins anew, where it would raise BadModel.
    """

    path: Path
    every: int
    belongs: Mapping[str, Any]
    anew: bool = False

    def due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def save(self, step: int, plan: Plan, parts: Mapping[str, Stateful]) -> None:
        """Write the state of all parts; the file appears whole or not at all. Raises OSError if the disk is full."""
        tensors: dict[str, torch.Tensor] = {}
        state = {name: packed(part.state_dict(), tensors, name) for name, part in parts.items()}
        write(self.path, json.dumps({"version": VERSION, "belongs": {**self.belongs, "plan": plan.identity}, "step": step, "state": state}), tensors)

    def load(self, plan: Plan, parts: Mapping[str, Stateful]) -> int:
        """Set all parts to the state that was kept and give its step; 0, and nothing is set, if there is no file. Raises BadModel,
        before anything is set, if the file is damaged or belongs to another candidate, plan or base."""
        if not self.path.exists():
            return 0
        try:
            found, tensors = read(self.path)
            self.check(found, plan, parts)
        except BadModel as error:
            if not self.anew:
                raise
            log.warning("%s: the training begins anew", str(error).partition("; delete it")[0])
            self.path.unlink()
            return 0
        for name, part in parts.items():
            part.load_state_dict(unpacked(found["state"][name], tensors))
        return found["step"]

    def check(self, found: dict[str, Any], plan: Plan, parts: Mapping[str, Stateful]) -> None:
        if found.get("version") != VERSION:
            raise BadModel(f"training state {self.path}: its version is {found.get('version')}, this program reads {VERSION}; delete it")
        wanted = json.loads(json.dumps({**self.belongs, "plan": plan.identity}))
        for name in {**wanted, **found["belongs"]}:
            if difference := differing(found["belongs"].get(name), wanted.get(name)):
                raise BadModel(f"training state {self.path}: it belongs to another {name} ({difference}); delete it, or take the {name} that it was made with")
        if found["step"] > plan.steps:
            raise BadModel(f"training state {self.path}: it is at step {found['step']}, beyond the {plan.steps} that are wanted; delete it")
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


def checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, as hex, over the text and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(path: Path, text: str, tensors: Mapping[str, torch.Tensor]) -> None:
    own: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        copied = tensor.cpu().contiguous()
        own[name] = copied.clone() if copied.data_ptr() in memory else copied  # safetensors refuses tensors that share memory
        memory.add(own[name].data_ptr())
    write_whole(path, own, {"training": text, "sha256": checksum(text, own)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            text, tensors = header["training"], {name: file.get_tensor(name) for name in file.keys()}
        if checksum(text, tensors) != header["sha256"]:
            raise ValueError("its checksum does not fit")
        return json.loads(text), tensors
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadModel(f"training state {path}: it is damaged or none of ours ({type(error).__name__}: {str(error).splitlines()[0]}); delete it, "
                       "and the trial begins anew") from error
