"""An exported U-Net is one that plain diffusers loads and that computes the same; mistakes are one line and exit status 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainers import base_model, checkpoint
from trainers.candidate import Candidate
from trainers.errors import TrainerError
from trainers.export import export, main
from trainers.methods import METHODS
from trainers.units import walk

CANDIDATES = {"bias": ("bias",), "svdiff": ("everything",), "difffit": ("scale", "bias", "norm")}


def output(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return unet(torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 900]), torch.randn(2, 5, 64, generator=generator)).sample


@pytest.fixture(scope="module")
def pipeline(random_base):
    return base_model.load(random_base)


@pytest.fixture(params=CANDIDATES)
def trained(request, pipeline):
    """A subset with values as if it had been trained, its candidate, and what its network computes."""
    candidate = Candidate.of(request.param, ("down", "mid", "up"), CANDIDATES[request.param], 1e-3, 10)
    subset = METHODS[request.param].apply(pipeline.unet, walk(pipeline.unet), candidate)
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    yield subset, candidate, output(pipeline.unet)
    subset.restore()


def check_exported(folder: Path, base: torch.Tensor, expected: torch.Tensor) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    torch.testing.assert_close(output(unet), expected, rtol=1e-5, atol=1e-5)
    assert (base - expected).abs().max() > 1e-2, "nothing was trained, so nothing is proved"


def test_diffusers_loads_it_and_computes_the_same(trained, random_base, tmp_path):
    subset, _, expected = trained
    changed = export(tmp_path / "new" / "unet", subset, random_base)
    assert changed == len(subset.merged())
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["unet"]
    assert sorted(each.suffix for each in (tmp_path / "new" / "unet").iterdir()) == [".json", ".safetensors"]
    check_exported(tmp_path / "new" / "unet", output(base_model.load(random_base).unet), expected)


def test_the_command_exports_a_kept_trial(trained, pipeline, random_base, tmp_path, capsys):
    subset, candidate, expected = trained
    checkpoint.save(tmp_path / "kept.safetensors", subset, candidate, pipeline.hash)
    given = [str(tmp_path / "kept.safetensors"), "--model", str(random_base), "--out", str(tmp_path / "unet"), "--cache", str(tmp_path / "cache")]
    assert main(given) == 0
    assert candidate.words in capsys.readouterr().out
    assert (tmp_path / "cache").is_dir() == (candidate.method == "svdiff")
    check_exported(tmp_path / "unet", output(base_model.load(random_base).unet), expected)


def test_a_subset_trained_on_rounded_weights_is_merged_into_those(random_base, tmp_path):
    """SV-DIFF's shifts mean the singular vectors that they were trained with."""
    candidate = Candidate.of("svdiff", ("up",), ("cross-attention",), 1e-3, 10)
    pipeline = base_model.load(random_base, dtype=torch.bfloat16)
    subset = METHODS["svdiff"].apply(pipeline.unet, walk(pipeline.unet), candidate)
    with torch.no_grad():
        for parameter in subset.parameters.values():
            parameter.add_(0.1)
    checkpoint.save(tmp_path / "kept.safetensors", subset, candidate, pipeline.hash, "bf16")
    assert main([str(tmp_path / "kept.safetensors"), "--model", str(random_base), "--out", str(tmp_path / "unet")]) == 0
    exported = dict(UNet2DConditionModel.from_pretrained(tmp_path / "unet", local_files_only=True).named_parameters())
    assert all(torch.equal(exported[name], tensor) for name, tensor in subset.merged().items())


def test_a_folder_that_is_not_empty_is_left_alone(trained, random_base, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(TrainerError, match="it is there already"):
        export(tmp_path, trained[0], random_base)
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("spoil, words", [
    (lambda given: given.pop(0), ["CHECKPOINT"]),
    (lambda given: given.append("--preset"), ["--preset"]),
    (lambda given: given.__setitem__(0, "missing.safetensors"), ["missing.safetensors", "weights folder"]),
    (lambda given: given.__setitem__(2, "no_model"), ["--model no_model"]),
    (lambda given: given.__setitem__(4, __file__), ["--out", "there already"]),
    (lambda given: None, ["base model another", "this one is"]),
])
def test_a_mistake_is_one_line_and_status_2(unet, units, random_base, tmp_path, capsys, spoil, words):
    candidate = Candidate.of("norm", ("mid",), ("norm",), 1e-3, 10)
    checkpoint.save(tmp_path / "kept.safetensors", METHODS["norm"].apply(unet, units, candidate), candidate, "another")
    given = [str(tmp_path / "kept.safetensors"), "--model", str(random_base), "--out", str(tmp_path / "unet")]
    spoil(given)
    assert main(given) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and all(word in said.err for word in words), said.err
    assert said.out == "" and not (tmp_path / "unet").exists()


def test_it_is_a_command():
    done = subprocess.run([sys.executable, "-m", "trainers.export", "--model"], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--model" in done.stderr
