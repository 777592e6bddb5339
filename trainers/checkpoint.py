"""The tensors of a candidate's subset on disk, as safetensors with the candidate in the header. Never a pickle."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from trainers.candidate import Candidate
from trainers.errors import BadModel
from trainers.methods import BaseCache, Subset, method
from trainers.units import Units

if TYPE_CHECKING:
    import torch

SHORT = 16  # hex digits of a hash in messages
FULL = "fp32"
UNFINISHED = ".unfinished"  # ends the name of a file that is being written


@dataclass(frozen=True)
class Kept:
    """A file's content. base: the base model's content hash; precision: of its frozen weights in training, "fp32", "bf16" or "fp16"."""

    candidate: Candidate
    base: str
    precision: str
    tensors: dict[str, torch.Tensor]


def save(path: Path, subset: Subset, candidate: Candidate, base_hash: str, precision: str = FULL) -> int:
    """Write the subset; the file appears whole or not at all. Gives its size in bytes. Raises OSError if the disk is full."""
    tensors = {name: tensor.contiguous() for name, tensor in subset.tensors().items()}
    write_whole(path, tensors, {"candidate": json.dumps(candidate.to_json()), "base": base_hash, "precision": precision})
    return path.stat().st_size


def write_whole(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> None:
    """Write contiguous tensors as safetensors; the file appears whole or not at all, and is on the disk, whatever becomes of the machine. Raises OSError if the
    disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    make(path.parent)
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}{UNFINISHED}")  # two that write the same, one after a long sleep, must not share a file
    try:
        save_file(tensors, unfinished, metadata=header)
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    except SafetensorError as error:
        raise system_error(error, path) from error
    finally:
        unfinished.unlink(missing_ok=True)


def make(folder: Path) -> None:
    """Make a folder, and those that it is in, so that it is on the disk."""
    new = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in new:
        sync(each.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk: a name that is not is gone after a power cut, though the database knows of the file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():  # a file system that keeps names at once, or on another machine
            raise
    finally:
        os.close(handle)


def system_error(error: Exception, path: Path) -> OSError:
    """The operating system's error that safetensors names only in words, as what it is: callers ask for its errno."""
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code), str(path))


def read(path: Path) -> Kept:
    """Raises BadModel if it is no checkpoint of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            return Kept(Candidate.from_json(json.loads(header["candidate"])), header["base"], header["precision"],
                        {name: file.get_tensor(name) for name in file.keys()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadModel(f"checkpoint {path}: it is not a subset kept by a trial ({type(error).__name__}); give a file from the weights folder") from error


def load(path: Path, unet, units: Units, base_hash: str, cache: BaseCache | None = None) -> Subset:
    """Apply the kept candidate to its base model and set its tensors; the caller must `restore` the subset. The U-Net's frozen weights
    should be in the precision that `read` gives: SV-DIFF's shifts mean the singular vectors of those.

    Raises BadModel where it is no checkpoint of ours, is one of another base model or does not fit its own candidate; BadSelection where
    this U-Net cannot have the candidate. Whatever is raised, the U-Net is untouched.
    """
    kept = read(path)
    if kept.base != base_hash:
        raise BadModel(f"checkpoint {path}: it was trained on base model {kept.base[:SHORT]}, and this one is {base_hash[:SHORT]}: "
                       "give the model that it was trained on")
    subset = method(kept.candidate.method).apply(unet, units, kept.candidate, cache)
    try:
        unknown = sorted(kept.tensors.keys() - subset.parameters.keys())
        if unknown:  # left out, they would be missing from what the model computes
            raise BadModel(f"checkpoint {path}: its tensor {unknown[0]!r} belongs to no parameter of its candidate; copy the file anew")
        subset.load(kept.tensors)
    except BaseException:
        subset.restore()
        raise
    return subset
