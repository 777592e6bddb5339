"""The tensors of a candidate's subset on disk, as safetensors with the candidate in the header. Never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

from trainers.candidate import Candidate
from trainers.errors import BadModel
from trainers.methods import Subset


def save(path: Path, subset: Subset, candidate: Candidate, base_hash: str) -> int:
    """Write the subset; the file appears whole or not at all. Gives its size in bytes."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    tensors = {name: tensor.contiguous() for name, tensor in subset.tensors().items()}
    save_file(tensors, unfinished, metadata={"candidate": json.dumps(candidate.to_json()), "base": base_hash})
    os.replace(unfinished, path)
    return path.stat().st_size


def read(path: Path) -> tuple[Candidate, str, dict]:
    """The candidate, the base model's hash and the tensors by name. Raises BadModel if it is no checkpoint of ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            return Candidate.from_json(json.loads(header["candidate"])), header["base"], {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadModel(f"checkpoint {path}: it is not a subset kept by a trial ({type(error).__name__}); give a file from the weights folder") from error
