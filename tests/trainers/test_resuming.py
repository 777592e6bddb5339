"""A training goes on to the bit from what it wrote; what is damaged or another's is refused; nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import PLAN, same, subset_of

from trainers.errors import BadModel
from trainers.fit import Evaluation, fit
from trainers.miniature import architecture
from trainers.mitigations.hooks import Batch, TrainingHooks
from trainers.optimizers import OPTIMIZERS, PACKAGES
from trainers.plan import Plan
from trainers.resuming import Checkpoints, Values, packed, unpacked
from trainers.units import walk

SEVEN = replace(PLAN, steps=7)
RICH = replace(SEVEN, schedule="cosine", schedule_steps=9, warmup_steps=2, accumulate=2, ema_decay=0.8, min_snr_gamma=5.0, noise_offset=0.1)
BELONGS = {"candidate": {"method": "bias", "learning_rate": 1e-3}, "base": "abc"}


class Running(TrainingHooks):
    """Skips what lies over a running mean: its outcome depends on all batches before."""

    def __init__(self):
        self.mean, self.batches, self.sizes = torch.zeros(1), 0, {"norms": [0.0]}

    def weights(self, batch: Batch):
        norms = batch.predicted.square().flatten(1).mean(1)
        self.mean, self.batches = 0.9 * self.mean + 0.1 * norms.mean(), self.batches + 1
        self.sizes["norms"].append(float(norms[0]))
        return (norms <= 1.1 * self.mean / (1 - 0.9**self.batches)).float()

    def state_dict(self):
        return {"mean": self.mean, "batches": self.batches, "sizes": self.sizes}

    def load_state_dict(self, state):
        self.mean, self.batches, self.sizes = state["mean"], state["batches"], state["sizes"]


class Stop(Exception):
    pass


def run(scheduler, examples, plan: Plan, checkpoints: Checkpoints | None = None, stop: int | None = None, method: str = "bias",
        kinds: tuple[str, ...] = ("bias", "norm"), hooks: tuple[type, ...] = (Running,)) -> dict:
    """Train a network of its own, with dropout, until it is done or told to stop. Gives values, loss, kept share, losses seen and hooks."""
    torch.manual_seed(0)
    unet = architecture.unet().eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    subset, made, seen = subset_of(unet, walk(unet), method, kinds), [hook() for hook in hooks], []

    def on_step(step):
        if step == stop:
            raise Stop

    done = None
    try:
        done = fit(unet, scheduler, subset, examples, plan, on_step, hooks=made, checkpoints=checkpoints,
                   evaluations=[Evaluation(lambda step: step == 5, lambda step: seen.append(subset.tensors()))])
    except Stop:
        pass
    return {"values": subset.tensors(), "loss": done and done.loss, "kept": done and done.kept, "seen": seen, "hooks": [hook.state_dict() for hook in made]}


def check_equal(a: dict, b: dict) -> None:
    assert same(a["values"], b["values"]) and (a["loss"], a["kept"]) == (b["loss"], b["kept"])
    assert all(same(first, second) for first, second in zip(a["seen"], b["seen"], strict=True))
    assert a["hooks"] == b["hooks"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_seven_steps_are_three_and_four_to_the_bit(scheduler, examples, tmp_path, optimizer):
    """With EMA, accumulation, cosine, dropout, and a hook that has a state. Attention has tensors large enough for 8-bit moments."""
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer], reason="pip install 'peft-pareto[optimizers]'")
    method, kinds = "attention", ("cross-attention",)
    plan, path = replace(RICH, optimizer=optimizer), tmp_path / "state.safetensors"
    whole = run(scheduler, examples, plan, method=method, kinds=kinds)
    checkpoints = Checkpoints(path, 3, BELONGS)
    assert run(scheduler, examples, plan, checkpoints, stop=3, method=method, kinds=kinds)["loss"] is None
    check_equal(run(scheduler, examples, plan, checkpoints, method=method, kinds=kinds), whole)
    assert os.listdir(tmp_path) == ["state.safetensors"] and 0.2 < whole["kept"] < 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_also_in_each_precision_and_stopped_between_two_writings(scheduler, examples, tmp_path, precision):
    """Stopped at step 5, it goes on from step 4; in fp16 with the scaler's state."""
    plan, checkpoints = replace(SEVEN, precision=precision), Checkpoints(tmp_path / "a" / "state.safetensors", 2, BELONGS)
    whole = run(scheduler, examples, plan, hooks=())
    run(scheduler, examples, plan, checkpoints, stop=5, hooks=())
    check_equal(run(scheduler, examples, plan, checkpoints, hooks=()), whole)


def test_a_longer_training_goes_on_from_the_end_of_a_shorter_one(scheduler, examples, tmp_path):
    checkpoints = Checkpoints(tmp_path / "state.safetensors", 100, BELONGS)
    short = run(scheduler, examples, replace(RICH, steps=3), checkpoints)
    assert same(short["values"], run(scheduler, examples, replace(RICH, steps=3))["values"])
    check_equal(run(scheduler, examples, RICH, checkpoints), run(scheduler, examples, RICH))


def test_what_is_done_is_not_done_again(scheduler, examples, tmp_path):
    checkpoints = Checkpoints(tmp_path / "state.safetensors", 7, BELONGS)
    first = run(scheduler, examples, RICH, checkpoints)
    again = run(scheduler, examples, RICH, checkpoints, stop=7)
    assert again["loss"] == first["loss"] and same(again["values"], first["values"]) and again["seen"] == []


def test_writing_changes_nothing(scheduler, examples, tmp_path):
    check_equal(run(scheduler, examples, RICH, Checkpoints(tmp_path / "state.safetensors", 1, BELONGS)), run(scheduler, examples, RICH))


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The state of a training of one parameter after three steps."""
    path = tmp_path_factory.mktemp("written") / "state.safetensors"
    Checkpoints(path, 3, BELONGS).save(3, SEVEN, {"values": Held(1.0)})
    return path


class Held:
    def __init__(self, value: float):
        self.state = {"value": torch.full((3,), value), "group": {0: (1, 2.5, None, True, "x")}, "list": [float("inf"), 0.1]}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def refusal(path: Path, plan: Plan = SEVEN, **belongs) -> str:
    held = Held(9.0)
    with pytest.raises(BadModel) as refused:
        Checkpoints(path, 3, {**BELONGS, **belongs}).load(plan, {"values": held})
    assert held.state["value"].tolist() == [9.0] * 3, "nothing was set"
    assert "\n" not in str(refused.value) and str(path) in str(refused.value) and "delete it" in str(refused.value)
    return str(refused.value)


def test_what_is_ours_is_read_with_all_its_types(written):
    held = Held(9.0)
    assert Checkpoints(written, 3, BELONGS).load(SEVEN, {"values": held}) == 3
    assert held.state["value"].tolist() == [1.0] * 3 and held.state["group"] == {0: (1, 2.5, None, True, "x")} and held.state["list"] == [float("inf"), 0.1]
    assert Checkpoints(written.with_name("none"), 3, BELONGS).load(SEVEN, {"values": held}) == 0


@pytest.mark.parametrize("given, says", [
    ({"candidate": {"method": "norm", "learning_rate": 1e-3}}, "another candidate (method bias instead of norm)"),
    ({"base": "abd"}, "another base (abc instead of abd)"),
    ({"data": "x"}, "another data (None instead of x)"), ({"plan": replace(SEVEN, seed=6)}, "another plan (seed 5 instead of 6)"),
    ({"plan": replace(SEVEN, ema_decay=0.9)}, "another plan (ema_decay None instead of 0.9)"), ({"plan": replace(SEVEN, steps=2)}, "at step 3, beyond the 2")])
def test_another_s_is_refused_with_what_differs(written, given, says):
    assert says in refusal(written, **given)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def spoil(path: Path, kind: str, written: Path) -> None:
    data = written.read_bytes()
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("exploded"))))
    elif kind == "torch":
        torch.save({"x": Bomb(path.with_name("exploded"))}, path)
    elif kind == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(data[:-5])
    elif kind == "a bit of a tensor":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "a word of the header":
        assert data.count(b'\\"step\\": 3') == 1
        path.write_bytes(data.replace(b'\\"step\\": 3', b'\\"step\\": 4'))


@pytest.mark.parametrize("kind", ["pickle", "torch", "foreign", "folder", "empty", "truncated", "a bit of a tensor", "a word of the header"])
def test_what_is_damaged_is_refused_and_never_unpickled(written, tmp_path, kind):
    path = tmp_path / "state.safetensors"
    spoil(path, kind, written)
    assert "damaged or none of ours" in refusal(path)
    assert not (tmp_path / "exploded").exists()


def test_another_version_is_refused(written, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.resuming.VERSION", 99)
    assert "version is 2, this program reads 99" in refusal(written)


def test_values_of_another_subset_are_refused(unet, units):
    up, down = (Values(subset_of(unet, units, regions=(region,))) for region in ("up", "down"))
    with pytest.raises(BadModel, match="other parameters"):
        down.load_state_dict(up.state_dict())


# The step alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pickle", "torch", "foreign", "folder", "empty", "truncated", "a word of the header"])
def test_the_step_of_what_is_damaged_is_none(written, tmp_path, kind):
    path = tmp_path / "state.safetensors"
    spoil(path, kind, written)
    assert Checkpoints(path, 3, BELONGS).step(SEVEN) is None and path.exists() and not (tmp_path / "exploded").exists()


def test_the_step_is_read_without_the_tensors(written, tmp_path):
    path = tmp_path / "state.safetensors"
    spoil(path, "a bit of a tensor", written)
    assert Checkpoints(path, 3, BELONGS).step(SEVEN) == 3, "it has looked at no tensor"


@pytest.mark.parametrize("plan, belongs, step", [
    (None, {}, 3), (SEVEN, {}, 3), (replace(SEVEN, steps=3), {}, 3), (replace(SEVEN, steps=99), {}, 3), (replace(SEVEN, steps=2), {}, None),
    (replace(SEVEN, seed=6), {}, None), (SEVEN, {"base": "abd"}, None), (None, {"base": "abd"}, None), (None, {"data": "x"}, None)])
def test_the_step_of_another_s_is_none(written, plan, belongs, step):
    assert Checkpoints(written, 3, {**BELONGS, **belongs}).step(plan) == step
    assert Checkpoints(written.with_name("none"), 3, BELONGS).step(plan) is None


def test_the_step_of_another_version_is_none(written, monkeypatch):
    monkeypatch.setattr("trainers.resuming.VERSION", 99)
    assert Checkpoints(written, 3, BELONGS).step() is None


# Copied --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["the same file system", "another"])
def elsewhere(request, tmp_path):
    """A folder that is not there yet."""
    if request.param == "the same file system":
        yield tmp_path / "kept" / "states"
        return
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder) / "states"


def test_a_copy_stays_what_it_was_when_the_training_goes_on(elsewhere, tmp_path):
    state, kept = Checkpoints(tmp_path / "state.safetensors", 1, BELONGS), Checkpoints(elsewhere / "state.safetensors", 1, BELONGS)
    for step in (1, 2):
        state.save(step, SEVEN, {"values": Held(float(step))})
        state.copy(kept.path)
        state.copy(kept.path)  # both are one file now
    state.save(3, SEVEN, {"values": Held(3.0)})
    held = Held(9.0)
    assert kept.load(SEVEN, {"values": held}) == 2 and held.state["value"].tolist() == [2.0] * 3
    state.path.unlink()
    kept.copy(state.path)
    kept.path.unlink()
    assert state.load(SEVEN, {"values": held}) == 2
    assert os.listdir(elsewhere) == [] and sorted(os.listdir(tmp_path))[-1] == "state.safetensors"


def test_without_a_state_nothing_is_copied(elsewhere, tmp_path):
    with pytest.raises(FileNotFoundError):
        Checkpoints(tmp_path / "none", 1, BELONGS).copy(elsewhere / "state.safetensors")
    assert os.listdir(elsewhere) == []


# Written -------------------------------------------------------------------------------------------------------------


def test_any_safetensors_reader_can_open_it_and_the_header_is_json(written):
    from safetensors import safe_open

    assert load_file(written)["values.value"].tolist() == [1.0] * 3
    with safe_open(written, "pt") as file:
        header = json.loads(file.metadata()["training"])
    assert header["step"] == 3 and header["belongs"] == {**BELONGS, "plan": SEVEN.identity}


def test_tensors_that_share_memory_are_written_each(tmp_path):
    held, path = Held(2.0), tmp_path / "state.safetensors"
    held.state["again"] = held.state["value"]
    Checkpoints(path, 1, {}).save(1, SEVEN, {"values": held})
    other = Held(9.0)
    Checkpoints(path, 1, {}).load(SEVEN, {"values": other})
    assert other.state["again"].tolist() == other.state["value"].tolist() == [2.0] * 3


@pytest.mark.parametrize("value", [torch.tensor(3), torch.zeros(0, 4), torch.arange(3, dtype=torch.uint8), torch.ones(2, dtype=torch.bfloat16)])
def test_tensors_of_every_kind_come_back(tmp_path, value):
    held, other = Held(0.0), Held(9.0)
    held.state["value"] = value
    Checkpoints(tmp_path / "state.safetensors", 1, {}).save(1, SEVEN, {"values": held})
    Checkpoints(tmp_path / "state.safetensors", 1, {}).load(SEVEN, {"values": other})
    assert torch.equal(other.state["value"], value) and other.state["value"].dtype == value.dtype and other.state["value"].shape == value.shape


def test_what_is_no_plain_value_is_named():
    with pytest.raises(TypeError, match="hooks.state.0 is a set"):
        packed({"state": [{1, 2}]}, {}, "hooks")
    assert unpacked(packed({"a": []}, {}, "x"), {}) == {"a": []}


def test_a_full_disk_is_an_oserror_with_its_number_and_leaves_the_former_file(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails in the same place, with EFBIG for ENOSPC."""
    code = """
import resource, sys, torch
from pathlib import Path
from trainers.plan import Plan
from trainers.resuming import Checkpoints
class Held:
    def __init__(self, size): self.size = size
    def state_dict(self): return {"x": torch.zeros(self.size)}
checkpoints = Checkpoints(Path(sys.argv[1]), 1, {})
checkpoints.save(1, Plan(9, 1e-3, 1, 0), {"held": Held(1)})
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    checkpoints.save(2, Plan(9, 1e-3, 1, 0), {"held": Held(100_000)})
except OSError as error:
    print(error.errno)
"""
    path = tmp_path / "state.safetensors"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(errno.EFBIG)], done.stderr
    assert os.listdir(tmp_path) == ["state.safetensors"] and load_file(path)["held.x"].shape == (1,)
