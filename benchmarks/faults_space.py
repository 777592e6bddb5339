"""A user's space for `benchmarks.faults`, in which workers hang in native code, as in a driver or on a disk that does not answer: in their turn to propose
and in training.

A worker hangs that finds a file of the name TURN, or TRAINING and its process id, in the folder FAULTS_HANG; it gives it the name HUNG and its process id.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch

from hpo.spaces import named
from hpo.spaces.base import Bounds
from trainers.candidate import Candidate

FOLDER, TURN, TRAINING, HUNG = "FAULTS_HANG", "turn", "training", "hung"
WORKERS = ("worker.py", "default_worker.py")  # what runs in a process of ours, and of Ray's, that trains


def hang(name: str) -> None:
    """Outside Python, which lets other threads run meanwhile: a mutex that is locked twice."""
    try:
        os.rename(Path(os.environ[FOLDER]) / name, Path(os.environ[FOLDER]) / f"{HUNG}-{os.getpid()}")
    except FileNotFoundError:
        return
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def before_forward(module: torch.nn.Module, given: Any) -> None:
    if module.training and torch.is_grad_enabled():
        hang(f"{TRAINING}-{os.getpid()}")


if Path(sys.argv[0]).name in WORKERS:
    torch.nn.modules.module.register_module_forward_pre_hook(before_forward)


def propose(trial: Any, bounds: Bounds) -> Candidate:
    """As the default space does."""
    if Path(sys.argv[0]).name in WORKERS:
        hang(TURN)
    return named("default").propose(trial, bounds)
