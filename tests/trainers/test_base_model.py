"""The base model's folder: what loads, and the one line that each bad folder gets."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from trainers import model_files
from trainers.base_model import MINIATURE, MINIATURE_ENCODER, check_folder, content_hash, encode_pictures, load
from trainers.captions import encode_captions
from trainers.errors import BadModel

WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}

BUNDLED = (MINIATURE, MINIATURE_ENCODER)
LARGEST_BUNDLE = 15_000_000  # bytes


@pytest.fixture
def folder(random_base, tmp_path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(random_base, tmp_path / "model"))


def refused(call, *words: str) -> str:
    with pytest.raises(BadModel) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said
    return said


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# What loads ----------------------------------------------------------------------------------------------------------


def test_a_folder_loads_frozen_in_fp32(random_base):
    pipeline = load(random_base)
    for part in (pipeline.unet, pipeline.vae):
        assert {p.dtype for p in part.parameters()} == {torch.float32} and not any(p.requires_grad for p in part.parameters())
        assert not any(module.training for module in part.modules())
    assert (pipeline.prediction_type, pipeline.latent_scale) == ("v_prediction", 8)
    assert pipeline.scheduler().alphas_cumprod[-1] == 0  # zero terminal SNR is kept
    stored = load_file(random_base / "unet" / WEIGHTS["unet"])
    own = pipeline.unet.state_dict()
    assert own.keys() == stored.keys() and all(torch.equal(own[name], stored[name].float()) for name in own)


def test_epsilon_is_what_a_schedule_without_a_type_predicts(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps(config))
    pipeline = load(folder)
    assert pipeline.prediction_type == pipeline.scheduler().config.prediction_type == "epsilon"


def test_old_names_of_a_vae_s_attention_load(folder):
    """Stable Diffusion v1.5's own VAE has them."""
    file = folder / "vae" / WEIGHTS["vae"]
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    stored, renamed = load_file(file), {}
    for name, tensor in stored.items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = tensor
    assert renamed.keys() != stored.keys()
    save_file(renamed, file, metadata={"format": "pt"})
    own = load(folder).vae.state_dict()
    assert all(torch.equal(own[name], stored[name].float()) for name in stored)


def test_hash_is_of_names_and_contents_wherever_the_folder_is(folder, random_base):
    before = content_hash(folder)
    assert before == content_hash(random_base) == load(random_base).hash
    for place in (folder, folder / "unet"):
        (place / "README.md").write_text("notes do not count")
    assert content_hash(folder) == before
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    assert content_hash(folder) != before


def test_hash_sees_one_changed_weight(folder):
    before = content_hash(folder)
    file = folder / "unet" / WEIGHTS["unet"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert content_hash(folder) != before


def test_the_bundled_miniature_is_whole():
    pipeline = load(MINIATURE)
    assert sum(p.numel() for p in pipeline.unet.parameters()) == 803_204
    assert pipeline.prediction_type == "v_prediction"
    assert encode_captions(MINIATURE, ["no acute cardiopulmonary process", ""]).shape == (2, 77, 64)
    # Without the prefix transformers 4 would start from random weights.
    assert all(name.startswith("text_model.") for name in load_file(MINIATURE / "text_encoder" / WEIGHTS["text_encoder"]))


def test_plain_diffusers_generates_from_the_bundled_miniature():
    pipeline = StableDiffusionPipeline.from_pretrained(MINIATURE)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline("small nodule in the left lung", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert pictures.shape == (1, 64, 64, 3) and np.isfinite(pictures).all() and pictures.std() > 0


def test_the_bundled_encoder_is_an_ordinary_clip():
    clip, loading = CLIPModel.from_pretrained(MINIATURE_ENCODER, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert clip.config.vision_config.image_size == 64


def test_bundled_weights_are_safetensors_in_half_precision():
    suffixes = {file.suffix for folder in BUNDLED for file in folder.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".txt", ".safetensors"}
    weights = [file for folder in BUNDLED for file in folder.rglob("*.safetensors")]
    assert len(weights) == 4
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file


def test_the_bundle_is_small_enough_for_a_repository():
    assert sum(file.stat().st_size for folder in BUNDLED for file in folder.rglob("*") if file.is_file()) <= LARGEST_BUNDLE


# What is refused -----------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there():
    refused(lambda: load(Path("no/such/folder")), "--model no/such/folder", "no such folder")


@pytest.mark.parametrize("part", model_files.PARTS)
def test_a_part_that_is_missing(folder, part):
    shutil.rmtree(folder / part)
    refused(lambda: load(folder), f"no {part}/", "unet, vae, text_encoder, tokenizer, scheduler")


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("pickled", [True, False])
def test_weights_that_are_pickled_or_not_there(folder, part, pickled, tmp_path):
    (folder / part / WEIGHTS[part]).unlink()
    if pickled:
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "exploded",))

        (folder / part / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(lambda: load(folder), f"{part}/ has", "pickled weights (pytorch_model.bin)" if pickled else "no weights", "safe_serialization=True")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("file", [*model_files.CONFIGS, "tokenizer/vocab.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1]", "\x00\xff", ""])
def test_json_that_is_damaged(folder, file, content):
    (folder / file).write_bytes(content.encode("latin-1"))
    refused(lambda: load(folder), f"{file} is damaged")


@pytest.mark.parametrize("file", model_files.CONFIGS)
def test_a_configuration_that_is_missing(folder, file):
    (folder / file).unlink()
    refused(lambda: load(folder), f"no {file}")


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("content", [lambda whole: whole[:-100], lambda whole: whole[:50], lambda whole: b"x" * 500, lambda whole: b""],
                         ids=["end missing", "header cut", "garbage", "empty"])
def test_weights_that_are_damaged(folder, part, content):
    file = folder / part / WEIGHTS[part]
    file.write_bytes(content(file.read_bytes()))
    refused(lambda: check_folder(folder), f"{part}/{WEIGHTS[part]} is damaged", "copy the model anew")


def read(folder: Path, part: str):
    return encode_captions(folder, [""]) if part == "text_encoder" else load(folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_that_is_missing_is_not_drawn_at_random(folder, part):
    file = folder / part / WEIGHTS[part]
    tensors = load_file(file)
    gone = sorted(tensors)[-1]
    del tensors[gone]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(lambda: read(folder, part), f"{part}/ lacks 1 of its tensors", gone.removeprefix("text_model."))


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_of_another_shape(folder, part):
    file = folder / part / WEIGHTS[part]
    tensors = load_file(file)
    tensors[sorted(tensors)[-1]] = torch.zeros(3)
    save_file(tensors, file, metadata={"format": "pt"})
    refused(lambda: read(folder, part), f"{part}/ cannot be loaded")


@pytest.mark.parametrize("kind", ["sample", "flow_prediction"])
def test_a_prediction_type_that_is_not_trained(folder, kind):
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type=kind)
    refused(lambda: load(folder), f"prediction_type '{kind}'", "epsilon or v_prediction")


@pytest.mark.parametrize("changes, words", [
    ({"in_channels": 9}, ["takes 9 channels, gives 4", "VAE has 4"]),  # in-painting
    ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 112}, ["addition_embed_type"]),  # SDXL
    ({"num_class_embeds": 10}, ["num_class_embeds"]),  # the upscaler
])
def test_a_network_that_wants_more_than_noise_and_a_caption(folder, changes, words):
    config = {key: value for key, value in json.loads((folder / "unet" / "config.json").read_text()).items() if not key.startswith("_")}
    UNet2DConditionModel.from_config({**config, **changes}).half().save_pretrained(folder / "unet")
    refused(lambda: load(folder), *words)


def test_a_tokenizer_without_its_vocabulary(folder):
    (folder / "tokenizer" / "vocab.json").unlink()
    refused(lambda: encode_captions(folder, [""]), "tokenizer/ cannot be loaded")


# Captions ------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_names_no_window_takes_the_encoder_s(folder, random_base):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    np.testing.assert_array_equal(encode_captions(folder, ["left lung"]), encode_captions(random_base, ["left lung"]))


# Pictures ------------------------------------------------------------------------------------------------------------


def test_pictures_give_the_scaled_posterior(random_base):
    pipeline = load(random_base)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    mean, deviation = encode_pictures(pipeline.vae, pictures, batch=2)
    assert mean.shape == deviation.shape == (5, 4, 8, 8) and mean.dtype == deviation.dtype == np.float32
    assert mean.flags.c_contiguous and deviation.flags.c_contiguous and (deviation > 0).all()
    grey = torch.from_numpy(pictures[:1]).float() / 255 * 2 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(grey[:, None].repeat(1, 3, 1, 1)).latent_dist
    np.testing.assert_allclose(mean[:1], posterior.mean * pipeline.vae.config.scaling_factor, atol=1e-4)
    np.testing.assert_allclose(deviation[:1], posterior.std * pipeline.vae.config.scaling_factor, rtol=1e-4)


def test_pictures_need_not_be_square_and_batches_do_not_count(random_base):
    """A multiple of the VAE's 8 pixels a side is all that it asks."""
    pipeline = load(random_base)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 72), dtype=np.uint8)
    mean, deviation = encode_pictures(pipeline.vae, pictures)
    assert mean.shape == deviation.shape == (3, 4, 5, 9)
    np.testing.assert_allclose(encode_pictures(pipeline.vae, pictures, batch=1)[0], mean, atol=1e-5)


def test_latents_are_contiguous_also_from_a_channels_last_vae(random_base):
    """A CPU GroupNorm's backward crashes on a channels-last input that needs no gradient (torch 2.13)."""
    vae = load(random_base).vae.to(memory_format=torch.channels_last)
    for array in encode_pictures(vae, np.zeros((3, 64, 64), np.uint8)):
        assert array.flags.c_contiguous


def test_a_vae_that_gives_nan_is_refused(random_base):
    vae = load(random_base).vae
    with torch.no_grad():
        vae.quant_conv.weight.fill_(float("nan"))
    refused(lambda: encode_pictures(vae, np.zeros((1, 64, 64), np.uint8)), "not finite", "damaged")
