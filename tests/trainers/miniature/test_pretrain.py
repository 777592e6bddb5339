"""The script that makes the miniature, with a recipe of a few steps: what it writes is an ordinary Stable Diffusion folder and an ordinary CLIP."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel

from trainers import base_model, sampling
from trainers.captions import encode_captions
from trainers.miniature.pretrain import MINUTE, STAGES, TEXT_PREFIX, Recipe, is_done, optimizer_for, pretrain
from trainers.units import walk

RECIPE = Recipe(pictures=64, merges=60, clip_steps=2, vae_steps=2, unet_steps=2, clip_batch=8, vae_batch=4, unet_batch=4)
CAPTIONS = ["small bright opacity upper left, black ground", ""]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("miniature")
    pretrain(RECIPE, out)
    return out


def files(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file() and not file.name.startswith(".")}


def test_plain_diffusers_loads_it_and_generates(made):
    pipeline = StableDiffusionPipeline.from_pretrained(made / "base")
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(CAPTIONS[0], num_inference_steps=2, guidance_scale=2.0, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert pictures.shape == (1, 64, 64, 3) and np.isfinite(pictures).all() and pictures.std() > 0


def test_our_own_reader_generates_from_it(made):
    pipeline = base_model.load(made / "base")
    states = torch.from_numpy(encode_captions(made / "base", CAPTIONS))
    noise = sampling.initial_noise(2, (4, 8, 8), seed=0)
    latents = sampling.sample(pipeline.unet, pipeline.scheduler_config, states, torch.tensor([0, 0]), noise, steps=3, guidance_scale=2.0, batch_size=2)
    pictures = sampling.decode(pipeline.vae, latents, 2)
    assert pictures.shape == (2, 64, 64) and pictures.std() > 0
    assert walk(pipeline.unet).total == 803_204


def test_latents_are_scaled_to_unit_spread(made):
    """The VAE's scaling factor is measured, so that noise of deviation 1 fits its latents."""
    from trainers.miniature.pictures import draw

    mean, _ = base_model.encode_pictures(base_model.load(made / "base").vae, draw(64, seed=0)[0].mean(3).astype(np.uint8))
    assert mean.std() == pytest.approx(1, rel=0.2)


def test_weights_are_fp16_safetensors_and_small(made):
    weights = [file for file in made.rglob("*") if file.suffix in (".safetensors", ".bin", ".ckpt", ".pt")]
    assert len(weights) == 4 and all(file.suffix == ".safetensors" for file in weights)
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert sum(file.stat().st_size for file in weights) < 15e6


def test_the_text_encoder_is_the_clip_s_text_half(made):
    clip, info = CLIPModel.from_pretrained(made / "clip", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    from transformers import CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(made / "base" / "tokenizer")(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        own = clip.eval().text_model(tokens).last_hidden_state.numpy()
    np.testing.assert_allclose(encode_captions(made / "base", CAPTIONS), own, atol=1e-5)


def test_the_text_encoder_has_the_names_of_stable_diffusion_s(made):
    """transformers 5 reads tensors with and without the prefix; version 4 takes those without for missing and draws random ones."""
    names = load_file(made / "base" / "text_encoder" / "model.safetensors")
    assert f"{TEXT_PREFIX}embeddings.token_embedding.weight" in names and all(name.startswith(TEXT_PREFIX) for name in names)


def test_the_encoder_folder_says_how_pictures_go_in(made):
    config = json.loads((made / "clip" / "preprocessor_config.json").read_text())
    assert config["image_mean"] == config["image_std"] == [0.5] * 3


def test_what_is_done_is_not_done_again(made):
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*") if file.is_file()}
    pretrain(RECIPE, made)
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*") if file.is_file()} == before


def test_the_same_recipe_gives_the_same_bytes_also_stage_by_stage(made, tmp_path):
    for stage in ("vae", "clip", "unet"):  # the first two do not need each other
        pretrain(RECIPE, tmp_path, only=stage)
        assert (tmp_path / f".{stage}.done").exists()
    assert files(tmp_path) == files(made)


def test_another_recipe_is_another_stage(made):
    longer = replace(RECIPE, unet_steps=3)
    assert is_done("vae", longer, made) and not is_done("unet", longer, made)
    assert not is_done("clip", replace(RECIPE, seed=1), made)


def test_each_stage_says_with_which_recipe_it_was_made(made):
    for stage in STAGES:
        assert json.loads((made / f".{stage}.done").read_text())["recipe"]["pictures"] == RECIPE.pictures


def test_the_rate_warms_up_and_falls_to_zero():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, schedule = optimizer_for([parameter], 0.1, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.05) and max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates[50] == pytest.approx(0.05, rel=0.01) and rates[-1] < 1e-4


@pytest.mark.slow
def test_the_minute_s_version_runs_from_the_command_line(tmp_path):
    subprocess.run([sys.executable, "-m", "trainers.miniature.pretrain", "--minute", "--threads", "1", "--out", str(tmp_path)],
                   cwd=Path(__file__).parents[3], check=True, timeout=600)
    assert json.loads((tmp_path / ".unet.done").read_text())["recipe"]["unet_steps"] == MINUTE.unet_steps
    assert base_model.load(tmp_path / "base").prediction_type == "v_prediction"
