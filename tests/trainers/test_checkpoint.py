"""Kept tensors: a safetensors file that is there whole or not at all, and nothing that is none is read, least of all a pickle."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers import checkpoint
from trainers.candidate import Candidate
from trainers.errors import BadModel, BadSelection
from trainers.methods import METHODS

CANDIDATE = Candidate.of("bias", ("up",), ("bias",), 1e-3, 10)


@pytest.fixture
def subset(unet, units):
    return METHODS["bias"].apply(unet, units, CANDIDATE)


def test_round_trip(subset, tmp_path):
    path = tmp_path / "weights" / "trial.safetensors"
    size = checkpoint.save(path, subset, CANDIDATE, "abc")
    kept = checkpoint.read(path)
    assert (kept.candidate, kept.base, kept.precision, size) == (CANDIDATE, "abc", "fp32", path.stat().st_size)
    own = subset.tensors()
    assert kept.tensors.keys() == own.keys() and all(torch.equal(kept.tensors[name], own[name]) for name in own)
    assert [each.name for each in path.parent.iterdir()] == ["trial.safetensors"]


def test_any_safetensors_reader_can_open_it(subset, tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", subset, CANDIDATE, "abc")
    assert load_file(tmp_path / "a.safetensors").keys() == subset.parameters.keys()


def test_saving_again_replaces(subset, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, subset, CANDIDATE, "first")
    checkpoint.save(path, subset, CANDIDATE, "second")
    assert checkpoint.read(path).base == "second"


@pytest.fixture
def synced(monkeypatch):
    """Each file and folder that is brought to the disk, by inode, and what its folder, or it, holds then."""
    found, fsync = [], os.fsync

    def record(handle: int) -> None:
        fsync(handle)
        about = os.fstat(handle)
        found.append((about.st_ino, sorted(os.listdir(handle)) if stat.S_ISDIR(about.st_mode) else about.st_size))

    monkeypatch.setattr(os, "fsync", record)
    return found


def test_file_and_names_are_on_the_disk_when_it_is_written(subset, tmp_path, synced):
    """Its content before it has its name, its name and those of new folders at last: a power cut must not take what the database knows of."""
    path = tmp_path / "study" / "weights" / "a.safetensors"
    size = checkpoint.save(path, subset, CANDIDATE, "b")
    assert (path.stat().st_ino, size) in synced and synced[-1] == (path.parent.stat().st_ino, ["a.safetensors"])
    assert {(tmp_path.stat().st_ino, ("study",)), (path.parent.parent.stat().st_ino, ("weights",))} <= {(inode, tuple(held)) for inode, held in synced if isinstance(held, list)}


def test_a_full_disk_is_an_oserror_with_its_number_and_leaves_the_former_file(subset, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the same place, with EFBIG for ENOSPC."""
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, subset, CANDIDATE, "former")
    code = """
import resource, sys, torch
from pathlib import Path
from trainers import checkpoint
from trainers.candidate import Candidate
class Large:
    def tensors(self): return {"x": torch.zeros(100_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    checkpoint.save(Path(sys.argv[1]), Large(), Candidate.of("bias", ("up",), ("bias",), 1e-3, 10), "new")
except OSError as error:
    print(error.errno, error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(errno.EFBIG), str(path)], done.stderr
    assert os.listdir(tmp_path) == ["a.safetensors"] and checkpoint.read(path).base == "former"


def test_a_file_that_cannot_be_put_in_its_place_leaves_nothing_beside_it(subset, tmp_path):
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.raises(OSError):
        checkpoint.save(path, subset, CANDIDATE, "b")
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("words, code", [("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC),
                                         ('IoError(Os { code: 28, kind: StorageFull, message: "No space left" })', errno.ENOSPC),
                                         ("something else", errno.EIO)])
def test_the_system_s_error_is_read_from_safetensors_words(words, code):
    assert checkpoint.system_error(RuntimeError(words), Path("x")).errno == code


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def spoil(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("exploded"))))
    elif kind == "torch":
        torch.save({"x": Bomb(path.with_name("exploded"))}, path)
    elif kind == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif kind == "header":
        save_file({"x": torch.zeros(2)}, path, metadata={"candidate": "{}", "base": "b"})
    elif kind == "list":
        save_file({"x": torch.zeros(2)}, path, metadata={"candidate": "[1]", "base": "b"})


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "folder", "pickle", "torch", "foreign", "header", "list", "truncated"])
def test_what_is_no_checkpoint_is_refused_in_one_line_and_never_unpickled(subset, tmp_path, kind):
    path = tmp_path / "a.safetensors"
    spoil(path, kind)
    if kind == "truncated":
        checkpoint.save(path, subset, CANDIDATE, "b")
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadModel) as caught:
        checkpoint.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("method, kinds", [("bias", ("bias",)), ("svdiff", ("cross-attention", "norm")), ("difffit", ("scale", "norm"))])
def test_loaded_onto_its_base_model_it_computes_the_same(unet, units, tmp_path, method, kinds):
    def output() -> torch.Tensor:
        return unet(torch.ones(1, 4, 8, 8), torch.tensor([10]), torch.ones(1, 5, 64)).sample

    candidate = Candidate.of(method, ("up",), kinds, 1e-3, 10)
    subset = METHODS[method].apply(unet, units, candidate)
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(0.1)
        trained = output()
        checkpoint.save(tmp_path / "a.safetensors", subset, candidate, "abc")
        subset.restore()
        base = output()
        again = checkpoint.load(tmp_path / "a.safetensors", unet, units, "abc")
        assert torch.equal(output(), trained) and not torch.equal(base, trained)
        again.restore()
        assert torch.equal(output(), base)


def check_refused(unet, units, path: Path, base: str, error: type[Exception], *words: str) -> None:
    before = dict(unet.named_parameters())
    with pytest.raises(error) as caught:
        checkpoint.load(path, unet, units, base)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)
    assert dict(unet.named_parameters()).keys() == before.keys() and not any(parameter.requires_grad for parameter in unet.parameters())


def test_a_subset_of_another_base_model_is_refused_by_both_hashes(subset, unet, units, tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", subset, CANDIDATE, "1234567890abcdef" + "0" * 48)
    subset.restore()
    check_refused(unet, units, tmp_path / "a.safetensors", "fedcba0987654321" + "0" * 48, BadModel, "a.safetensors", "1234567890abcdef", "fedcba0987654321")


@pytest.mark.parametrize("of, error", [(("bias", "norm"), BadSelection), (("time-embedding",), BadSelection)])
def test_tensors_of_another_candidate_are_refused(subset, unet, units, tmp_path, of, error):
    """Its header says other kinds than its tensors are of: some are missing, or the U-Net cannot have them."""
    checkpoint.save(tmp_path / "a.safetensors", subset, Candidate.of("bias", ("up",), of, 1e-3, 10), "abc")
    subset.restore()
    check_refused(unet, units, tmp_path / "a.safetensors", "abc", error)


def test_tensors_that_would_be_left_out_are_refused(subset, unet, units, tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", subset, Candidate.of("bias", ("up",), ("norm",), 1e-3, 10), "abc")
    subset.restore()
    check_refused(unet, units, tmp_path / "a.safetensors", "abc", BadModel, "belongs to no parameter of its candidate")
