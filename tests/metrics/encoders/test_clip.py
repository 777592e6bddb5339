"""CLIP folders, against transformers' own preprocessing and forward pass, on a tiny CLIP made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from metrics.encoders import load
from metrics.errors import BadArray, BadEncoder

SETTINGS = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.25, 0.3],
    "do_convert_rgb": True,
}


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of 12 dimensions with random weights, on disk."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**small, "vocab_size": 50, "max_position_embeddings": 8},
            vision_config={**small, "image_size": 32, "patch_size": 8},
            projection_dim=12,
        )
    )
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture
def own_folder(tiny_clip, tmp_path):
    return shutil.copytree(tiny_clip, tmp_path / "encoder")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 57, 57, 3), dtype=np.uint8)


def with_settings(folder, **settings):
    (folder / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    return load(folder)


def by_transformers(folder, pictures):
    processing = pytest.importorskip(
        "transformers.models.clip.image_processing_pil_clip",
        reason="this transformers has no CLIP preprocessing that runs without torchvision to compare with",
    )
    processor = processing.CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        embeds = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=pixels)
    embeds = getattr(embeds, "pooler_output", embeds).numpy()
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True) * np.sqrt(embeds.shape[1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": 48, "crop_size": 32},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"size": {"shortest_edge": 25}},
        {"resample": 2, "do_normalize": False},
    ],
    ids=["as is", "numbers", "square", "padded", "bilinear"],
)
def test_features_are_those_of_transformers(settings, own_folder, pictures):
    encoder = with_settings(own_folder, **settings)
    assert encoder.encode(pictures) == pytest.approx(by_transformers(own_folder, pictures), abs=1e-4)


@pytest.mark.parametrize("shape", [(40, 57), (57, 40), (9, 90), (32, 33)])
def test_a_picture_that_is_not_square_is_squeezed_as_transformers_does_it_where_it_is_told_to(shape, own_folder):
    pictures = np.random.default_rng(2).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    features = load(own_folder).encode(pictures)
    with_settings(own_folder, size={"height": 32, "width": 32})
    assert features == pytest.approx(by_transformers(own_folder, pictures), abs=1e-4)


@pytest.mark.parametrize("shape", [(48, 72), (72, 48)])
def test_all_of_a_picture_is_seen_to_its_corners(shape, tiny_clip):
    picture = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    cornered = np.stack([picture] * 4)
    for changed, (row, column) in zip(cornered, ((0, 0), (0, -8), (-8, 0), (-8, -8))):
        changed[row : row + 8 or None, column : column + 8 or None] //= 2
    encoder = load(tiny_clip)
    assert (np.abs(encoder.encode(cornered) - encoder.encode(picture[None])).max(1) > 1e-3).all()


def test_features_have_a_root_mean_square_of_one_and_keep_their_order(tiny_clip):
    pictures = np.random.default_rng(1).integers(0, 256, (70, 32, 32), dtype=np.uint8)
    encoder = load(tiny_clip)
    features = encoder.encode(pictures)
    assert features.shape == (70, encoder.dimension) == (70, 12) and features.dtype == np.float32
    assert np.mean(features**2, axis=1) == pytest.approx(np.ones(70), abs=1e-5)
    assert features[[65]] == pytest.approx(encoder.encode(pictures[[65]]), abs=1e-4)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_grey_is_repeated_to_three_channels(tiny_clip, pictures):
    encoder = load(tiny_clip)
    grey = pictures[..., 0]
    assert encoder.encode(grey) == pytest.approx(encoder.encode(np.repeat(grey[..., None], 3, axis=3)), abs=1e-5)


def test_the_picture_half_alone_gives_the_same_features(tiny_clip, tmp_path, pictures):
    whole = CLIPModel.from_pretrained(tiny_clip)
    half = CLIPVisionModelWithProjection(whole.config.vision_config.__class__(
        **{**whole.config.vision_config.to_dict(), "projection_dim": 12}
    ))  # fmt: skip
    half.load_state_dict({name: weight for name, weight in whole.state_dict().items() if name in half.state_dict()})
    half.save_pretrained(tmp_path)
    shutil.copy(tiny_clip / "preprocessor_config.json", tmp_path)
    assert load(tmp_path).encode(pictures) == pytest.approx(load(tiny_clip).encode(pictures), abs=1e-5)


def test_the_content_hash_follows_weights_and_preprocessing(tiny_clip, own_folder):
    first = load(tiny_clip).content_hash
    assert load(own_folder).content_hash == first
    assert with_settings(own_folder, resample=2).content_hash != first
    model = CLIPModel.from_pretrained(tiny_clip)
    model.visual_projection.weight.data[0, 0] += 1
    shutil.copy(tiny_clip / "preprocessor_config.json", own_folder)
    model.save_pretrained(own_folder)
    assert load(own_folder).content_hash != first


def refused(folder, message):
    with pytest.raises(BadEncoder, match=message) as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_refused(name, own_folder):
    (own_folder / name).unlink()
    refused(own_folder, f"has no {name}")


def test_pickled_weights_are_refused(own_folder):
    state = CLIPModel.from_pretrained(own_folder).state_dict()
    torch.save(state, own_folder / "pytorch_model.bin")
    (own_folder / "model.safetensors").unlink()
    refused(own_folder, "pickled weights")


def test_weights_that_do_not_fit_are_refused(own_folder):
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused(own_folder, "model_type 'bert'")
    config["vision_config"]["num_hidden_layers"] = 3
    (own_folder / "config.json").write_text(json.dumps(config))
    refused(own_folder, "lacks 16 weights of CLIPModel")
    config["vision_config"].update(num_hidden_layers=2, hidden_size=32)
    (own_folder / "config.json").write_text(json.dumps(config))
    refused(own_folder, "cannot be loaded|lacks")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_broken_file_is_refused(name, own_folder):
    (own_folder / name).write_bytes(b"{ broken")
    refused(own_folder, "encoder")


def test_odd_preprocessing_is_refused(own_folder):
    (own_folder / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, "size": {"longest_edge": 32}}))
    refused(own_folder, "is not CLIP preprocessing")


def test_an_unknown_encoder_is_refused_with_the_way_out(tmp_path):
    refused("pixel", "encoder 'pixel' is neither 'pixels' nor a folder")
    refused(tmp_path / "nowhere", "nowhere")


def test_what_is_no_picture_is_refused(tiny_clip):
    with pytest.raises(BadArray, match="needs uint8"):
        load(tiny_clip).encode(np.zeros((2, 32, 32)))
