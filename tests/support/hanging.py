"""A user's space whose function, or whose hook in training, hangs in native code in the first worker that finds a file beside it, once that is there."""

from __future__ import annotations

from pathlib import Path

IN_TURN, IN_TRAINING = "in its turn", "in training"
SPACE = '''
import ctypes, sys
from pathlib import Path
import torch
from trainers.candidate import Candidate

def hang(where):
    try:
        (Path(__file__).parent / where).unlink()
    except FileNotFoundError:
        return
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)  # the second time for ever

def before(module, given):
    if module.training and torch.is_grad_enabled():
        hang("in training")

if Path(sys.argv[0]).name in ("worker.py", "default_worker.py"):  # of hpo and of Ray
    torch.nn.modules.module.register_module_forward_pre_hook(before)

def propose(trial):
    hang("in its turn")
    return Candidate.of("bias", ("up",), ("bias",), trial.suggest_float("rate", 1e-3, 1e-2), 4)
'''


def space(folder: Path) -> str:
    """Written there; as --space takes it."""
    file = folder / "hanging.py"
    file.write_text(SPACE)
    return f"{file}:propose"
