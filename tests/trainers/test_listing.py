"""`python -m trainers.units`: what it lists, and the one line that each mistake gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sdxl import SDXL

from trainers.base_model import unet_on_meta
from trainers.listing import JSON_KEYS, candidate_of, listing, main
from trainers.methods import METHODS
from trainers.miniature import architecture
from trainers.model_files import LAYOUTS
from trainers.units import REGIONS, walk

# Counts of the papers' methods on Stable Diffusion v1.5, at their first choice of kinds.
SD15_TRAINABLE = {"full": 859_520_964, "attention": 93_536_640, "bias": 343_684, "norm": 200_320, "svdiff": 222_805, "difffit": 581_124}


@pytest.fixture
def said(capsys):
    """Runs the command in this process; gives its status, what it printed, and what it printed as an error."""
    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_json_lists_the_leaf_units(said):
    status, out, _ = said("--json")
    found, units = json.loads(out), walk(architecture.unet())
    assert status == 0 and list(found) == ["total", "trainable", "units"]
    assert all(tuple(leaf) == JSON_KEYS for leaf in found["units"])
    assert [leaf["name"] for leaf in found["units"]] == [unit.name for unit in units.units]
    assert found["total"] == found["trainable"] == 803_204 == sum(leaf["parameters"] for leaf in found["units"])


@pytest.mark.parametrize("method", SD15_TRAINABLE)
def test_the_papers_counts(method):
    assert listing(str(LAYOUTS / "sd15"), method).to_json()["trainable"] == SD15_TRAINABLE[method]


@pytest.fixture(scope="module")
def sd15():
    unet = unet_on_meta(LAYOUTS / "sd15" / "unet" / "config.json")
    return unet, walk(unet)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_counted_without_weights(sd15, method):
    assert 0 < METHODS[method].count(*sd15, candidate_of(method)) < 2 * sd15[1].total


def test_lora_s_count_by_hand():
    """Rank r adds r · (in + out) elements to each matrix: of one block of width 320, seven of (320, 320) and two of (320, 768), less one."""
    found = listing(str(LAYOUTS / "sd15"), "lora", regions=("down_blocks.0.attentions.0",), kinds=("attention",), rank=4)
    assert found.trainable == 4 * (6 * (320 + 320) + 2 * (768 + 320))


def test_the_table_names_units_sets_and_regions(said):
    status, out, _ = said("--method", "bias", "--kinds", "bias,norm", "--regions", "up,resolution/2")
    assert status == 0
    for words in ("conv_in/in-convolution", "cross-attention-q", "resolution/2", "803,204 in 208 tensors", "bias tuning on bias and norm of up and resolution/2"):
        assert words in out
    units = walk(architecture.unet())
    assert f"{units.count(units.select(('up', 'resolution/2'), ('bias', 'norm'))):,}" in out.splitlines()[-1]


def test_what_is_not_said_is_as_in_the_method_as_a_baseline():
    assert candidate_of("lora").parts[0].rank == 16 and candidate_of("lokr").parts[0].rank == 4
    assert candidate_of("full").parts[0].regions == REGIONS and candidate_of("full").parts[0].rank is None


@pytest.mark.parametrize("words, says", [
    (("--model", "no/such/folder"), "there is no such folder"), (("--method", "lra"), "method 'lra' is unknown: take lora"),
    (("--metod", "lora"), "'--metod' is no flag of python -m trainers.units: take --method"), (("--rank", "4"), "add --method"),
    (("--method", "lora", "--rank", "0"), "no rank"), (("--method", "bias", "--rank", "4"), "has no rank"), (("--method",), "expected one argument"),
    (("--method", "bias", "--kinds", "bias,biass"), "kind 'biass' is unknown: take bias"),
    (("--method", "bias", "--regions="), "'' has an empty name"), (("--method", "bias", "--regions", "resolution/16"), "region 'resolution/16' is not in this U-Net")])
def test_a_mistake_is_one_line_and_status_2(said, words, says):
    status, out, err = said(*words)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and says in err, err


@pytest.mark.parametrize("config, says", [
    ('{"_class_name": "FluxTransformer2DModel"}', "of a FluxTransformer2DModel"), ("{}", "it has no block_out_channels or no cross_attention_dim"),
    ("not json", "config.json is damaged"), ("[1]", "no JSON object"), (None, "no unet/config.json"),
    ('{"block_out_channels": [32, 64], "cross_attention_dim": 8, "down_block_types": ["DownBlock2D", "NoBlock"], "norm_num_groups": 8}', "makes no UNet2DConditionModel"),
    ('{"block_out_channels": [32, 64], "cross_attention_dim": 8, "down_block_types": ["DownBlock2D", "KDownBlock2D"], '
     '"up_block_types": ["UpBlock2D", "UpBlock2D"], "norm_num_groups": 8, "mid_block_type": null, "encoder_hid_dim": 5}', "no unit covers")])
def test_a_configuration_that_is_not_understood_says_what_of_it(said, tmp_path: Path, config, says):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    status, _, err = said("--model", str(tmp_path))
    assert status == 2 and err.count("\n") == 1 and says in err, err


def test_the_command_answers_in_seconds_for_the_largest(tmp_path, repository):
    """SDXL's shapes, from its configuration alone. The limit of 10 s is for a quiet core: counted is this process's own time."""
    (tmp_path / "config.json").write_text(json.dumps(SDXL))
    code = ("import resource, sys; from trainers.listing import main; status = main(sys.argv[1:]); "
            "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, "--model", str(tmp_path), "--json"], capture_output=True, text=True, cwd=repository, timeout=600)
    assert json.loads(done.stdout)["total"] == 2_567_463_684 and float(done.stderr.splitlines()[-1]) < 10


def test_the_module_is_the_command(repository):
    done = subprocess.run([sys.executable, "-m", "trainers.units", "--method", "nope"], capture_output=True, text=True, cwd=repository, timeout=600)
    assert done.returncode == 2 and done.stderr.startswith("error: method 'nope'") and done.stderr.count("\n") == 1
