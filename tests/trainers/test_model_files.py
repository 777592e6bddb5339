"""The ways in which a base model is given: folders with variants and divided files, the hub's cache, and single files."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import ldm_layout
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from trainers.base_model import MINIATURE, check_folder, content_hash, load, unet_elements
from trainers.captions import encode_captions
from trainers.errors import BadModel
from trainers.model_files import LAYOUTS, WEIGHTED, find, unet_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(random_base, tmp_path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(random_base, tmp_path / "model"))


@pytest.fixture
def no_network(monkeypatch):
    """Whoever asks for an address is an error, also where the hub's own switch is on."""
    def refuse(*asked, **more):
        raise AssertionError(f"the network was asked for {asked}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def refused(call, *words: str) -> None:
    with pytest.raises(BadModel) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


def weights(folder: Path, part: str, variant: str = "") -> Path:
    return folder / part / f"{WEIGHTED[part]}{variant}.safetensors"


def same(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def header_only(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A whole safetensors file of zeros that takes no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return file


# Variants and divided files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", WEIGHTED)
def test_a_variant_is_read_where_it_is_the_only_one(folder, random_base, part):
    weights(folder, part).rename(weights(folder, part, ".fp16"))
    assert find(folder).variant(part) == "fp16"
    if part == "text_encoder":
        assert (encode_captions(folder, ["left lung"]) == encode_captions(random_base, ["left lung"])).all()
    else:
        assert same(getattr(load(folder), part), getattr(load(random_base), part))


def test_of_two_the_plain_weights_are_read_unless_the_variant_is_asked_for(folder):
    other = {name: tensor + 1 for name, tensor in load_file(weights(folder, "unet")).items()}
    for part in WEIGHTED:
        shutil.copy(weights(folder, part), weights(folder, part, ".fp16"))
    save_file(other, weights(folder, "unet", ".fp16"), metadata={"format": "pt"})
    plain, variant = load(folder), load(folder, variant="fp16")
    assert torch.equal(variant.unet.conv_in.weight, (plain.unet.conv_in.weight.half() + 1).float())
    assert plain.hash != variant.hash == content_hash(folder, variant="fp16")
    weights(folder, "unet", ".fp16").write_bytes(b"not read")
    assert content_hash(folder) == plain.hash and unet_elements(folder) == 803_204


def test_a_variant_that_is_not_there_and_two_without_a_plain_one_are_refused(folder):
    refused(lambda: load(folder, variant="fp61"), "unet/ has no weights of variant 'fp61'", "the plain ones")
    shutil.copy(weights(folder, "vae"), weights(folder, "vae", ".bf16"))
    weights(folder, "vae").rename(weights(folder, "vae", ".fp16"))
    refused(lambda: load(folder), "vae/ has its weights only as variants", "'bf16' or 'fp16'")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files(folder, random_base, variant):
    model = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float16)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float16)
    for part in ("unet", "text_encoder"):
        weights(folder, part).unlink()
    model.save_pretrained(folder / "unet", max_shard_size="1MB", variant=variant)
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="100KB", variant=variant)
    assert len(find(folder).weights("unet")) > 1 and len(find(folder).weights("text_encoder")) > 1
    pipeline = load(folder)
    assert same(pipeline.unet, load(random_base).unet) and unet_elements(folder) == 803_204
    assert (encode_captions(folder, ["left lung"]) == encode_captions(random_base, ["left lung"])).all()
    before, last = content_hash(folder), find(folder).weights("unet")[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert content_hash(folder) != before == pipeline.hash
    last.unlink()
    refused(lambda: load(folder), f"names {last.name}, which is not there")


def test_an_index_that_names_nothing(folder):
    weights(folder, "unet").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"metadata": {}}')
    refused(lambda: load(folder), "index.json is damaged", "weight_map")


def test_the_frozen_network_is_in_half_precision_where_that_is_asked_for_and_the_vae_is_not(random_base):
    pipeline = load(random_base, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float32}
    assert pipeline.hash == load(random_base).hash


def test_what_is_trained_is_not_written_into_the_files(folder):
    """Weights of a float32 file are mapped, not copied."""
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(folder / part, torch_dtype=torch.float32).save_pretrained(folder / part)
    single = ldm_layout.write(folder, folder.with_suffix(".safetensors"))
    for given in (folder, single):
        pipeline = load(given)
        with torch.no_grad():
            for parameter in pipeline.unet.parameters():
                parameter.add_(1)
        assert content_hash(given) == pipeline.hash


def test_optional_parts_and_notes_are_not_looked_at(folder, random_base):
    for part in ("safety_checker", "feature_extractor"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("not json")
    assert load(folder).hash == content_hash(random_base)


# The hub's cache -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(random_base, tmp_path, monkeypatch) -> Path:
    """A cache with `clinic/base` in it, as huggingface_hub lays it out: links from a snapshot to blobs."""
    home = tmp_path / "hub" / "models--clinic--base"
    snapshot = home / "snapshots" / COMMIT
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "blobs").mkdir()
    for number, file in enumerate(file for file in sorted(random_base.rglob("*")) if file.is_file()):
        link = snapshot / file.relative_to(random_base)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shutil.copy(file, home / "blobs" / f"{number:064d}"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("given", ["clinic/base", Path("clinic/base")])
def test_a_hub_name_is_read_from_the_cache(hub, random_base, given):
    pipeline = load(given)
    assert pipeline.hash == content_hash(random_base) and check_folder(given) == hub
    assert encode_captions(pipeline.source, [""]).shape == (1, 77, 64)


@pytest.mark.usefixtures("no_network", "hub")
@pytest.mark.parametrize("given, words", [
    ("clinic/other", ["no such folder", "Hugging Face cache", "hf download clinic/other"]), ("clinic/base..x", ["hf download"]),
    ("base", ["no such folder", "hub name"]), ("a/b/c", ["no such folder"])])
def test_a_name_that_is_in_no_cache(given, words):
    refused(lambda: load(given), f"--model {given}", *words)


def test_a_folder_of_that_name_wins(hub, random_base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(random_base, tmp_path / "clinic" / "base")
    (tmp_path / "clinic" / "base" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    assert load("clinic/base").prediction_type == "epsilon"


# Single files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def single(random_base, tmp_path) -> Path:
    """A file with its configs and vocabulary in a folder of its name."""
    shutil.copytree(random_base, tmp_path / "single", ignore=shutil.ignore_patterns("*.safetensors"))
    return ldm_layout.write(random_base, tmp_path / "single.safetensors")


@pytest.mark.usefixtures("no_network")
def test_a_single_file_is_the_same_model(single, random_base):
    pipeline, folder = load(single), load(random_base)
    assert same(pipeline.unet, folder.unet) and same(pipeline.vae, folder.vae) and not pipeline.unet.training
    assert pipeline.scheduler_config == folder.scheduler_config and unet_elements(single) == 803_204
    assert (encode_captions(pipeline.source, ["left lung"]) == encode_captions(random_base, ["left lung"])).all()
    assert {parameter.dtype for parameter in load(single, dtype=torch.bfloat16).unet.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("no_network")
def test_the_text_encoder_of_a_2_x_file(single, random_base):
    ldm_layout.write(random_base, single, open_clip=True)
    assert abs(encode_captions(single, ["left lung"]) - encode_captions(random_base, ["left lung"])).max() < 1e-5


def test_a_single_file_s_hash_is_of_the_file_and_what_is_read_beside_it(single):
    before = content_hash(single)
    for change in (single, single.with_suffix("") / "tokenizer" / "merges.txt", single.with_suffix("") / "scheduler" / "scheduler_config.json"):
        content = change.read_bytes()
        change.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if change == single else content + b"\n")
        assert content_hash(single) != before
        change.write_bytes(content)
    assert content_hash(single) == before


@pytest.mark.parametrize("start", ["model.diffusion_model.output_blocks.0", "first_stage_model.decoder.conv_in", "cond_stage_model.transformer.text_model.final"])
def test_a_tensor_that_a_single_file_lacks_is_not_drawn_at_random(single, start):
    tensors = {name: tensor for name, tensor in load_file(single).items() if not name.startswith(start)}
    save_file(tensors, single)
    refused(lambda: encode_captions(single, [""]) if "cond" in start else load(single), "lacks ", "of its tensors")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_single_file_without_a_part(single, prefix):
    save_file({name: tensor for name, tensor in load_file(single).items() if not name.startswith(prefix)}, single)
    refused(lambda: encode_captions(single, [""]) if "cond" in prefix else load(single), "cannot be loaded")


SD15_SHAPES = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
               "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768)}
SD21_SHAPES = {**SD15_SHAPES, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)}


def test_without_configs_beside_it_a_single_file_s_shapes_decide(random_base, tmp_path):
    shutil.copytree(random_base / "tokenizer", tmp_path / "tokenizer")
    first, second = header_only(tmp_path / "v1.safetensors", SD15_SHAPES), header_only(tmp_path / "v2.safetensors", SD21_SHAPES)
    assert find(first).configs == LAYOUTS / "sd15" and find(first).config("scheduler")["prediction_type"] == "epsilon"
    refused(lambda: find(second), "noise or velocity", "scheduler/")
    (tmp_path / "v2").mkdir()
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(random_base / part, tmp_path / "v2" / part)
    assert find(second).configs == LAYOUTS / "sd21" and find(second).config("scheduler")["prediction_type"] == "v_prediction"
    assert unet_config(second)["cross_attention_dim"] == 1024


@pytest.mark.parametrize("name, shapes, words", [
    ("x.safetensors", {}, ["no Stable Diffusion 1.x or 2.x"]),
    ("x.safetensors", {"conditioner.embedders.0.x": (1,)}, ["Stable Diffusion XL"]),
    ("x.safetensors", {**SD15_SHAPES, "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, ["takes 9 channels"]),
    ("x.ckpt", SD15_SHAPES, ["a pickle, which can run code"]), ("x.gguf", SD15_SHAPES, ["no .safetensors file"])])
def test_another_kind_of_file_is_refused(random_base, tmp_path, name, shapes, words):
    shutil.copytree(random_base / "tokenizer", tmp_path / "tokenizer")
    refused(lambda: load(header_only(tmp_path / name, shapes)), name, *words)


def test_a_single_file_without_a_vocabulary_says_what_to_put_where(tmp_path):
    refused(lambda: load(header_only(tmp_path / "v1.safetensors", SD15_SHAPES)), "no vocabulary", f"into {tmp_path / 'v1'}/")


def test_a_single_file_that_is_damaged(random_base, tmp_path):
    shutil.copytree(random_base / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "v1.safetensors").write_bytes(b"x" * 100)
    refused(lambda: load(tmp_path / "v1.safetensors"), "v1.safetensors is damaged")


# Configurations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout, counts", [("sd15", (859_520_964, 83_653_863, 123_060_480)), ("sd21", (865_910_724, 83_653_863, 340_387_840))])
def test_our_layouts_have_the_published_sizes(layout, counts):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(LAYOUTS / layout / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(LAYOUTS / layout / "vae"))
        encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(LAYOUTS / layout / "text_encoder"))
    assert tuple(sum(p.numel() for p in part.parameters()) for part in (unet, vae, encoder)) == counts


def test_a_network_s_configuration_alone(folder, hub):
    config = json.loads((folder / "unet" / "config.json").read_text())
    for part in WEIGHTED:
        weights(folder, part).unlink()
    for given in (folder, folder / "unet", folder / "unet" / "config.json", "clinic/base", str(folder)):
        assert unet_config(given) == config
    assert unet_config(MINIATURE)["block_out_channels"] == [32, 64]


@pytest.mark.parametrize("content, words", [("{", "damaged"), ("[]", "no JSON object"), (None, "no unet/config.json")])
def test_a_configuration_that_is_none(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    refused(lambda: unet_config(tmp_path), words)
