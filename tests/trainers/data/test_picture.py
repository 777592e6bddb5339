"""Decoding pictures of every shape, and what happens to corrupt ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.picture import Picture, decode, decode_all, probe
from trainers.errors import BadData, CorruptPicture


def picture(path: Path) -> Picture:
    return Picture(path, "10000001", "50000001", path.stem, "PA", "train", "Normal chest radiograph.")


@pytest.fixture
def stripes(tmp_path):
    """100 x 60 pixels: black left, white right, between them grey; a square at its centre is all grey."""
    pixels = np.full((60, 100), 128, np.uint8)
    pixels[:, :14], pixels[:, 86:] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "stripes.png")
    return picture(tmp_path / "stripes.png")


def test_centre_is_kept_and_edges_are_cropped(stripes):
    decoded = decode(stripes, 30)
    assert decoded.shape == (30, 30) and decoded.dtype == np.uint8
    assert (decoded == 128).all()


@pytest.mark.parametrize("size", [(64, 64), (33, 90), (7, 5), (3056, 2544)])
def test_any_shape_gives_a_square(tmp_path, size):
    Image.new("L", size, 77).save(tmp_path / "a.jpg")
    assert decode(picture(tmp_path / "a.jpg"), 64).shape == (64, 64)


def test_small_changes_are_averaged_not_skipped(tmp_path):
    checkers = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    assert np.abs(decode(picture(tmp_path / "a.png"), 64).astype(int) - 127).max() <= 2


def test_colour_becomes_grey(tmp_path):
    Image.new("RGB", (40, 40), (200, 200, 200)).save(tmp_path / "a.jpg")
    assert np.abs(decode(picture(tmp_path / "a.jpg"), 16).astype(int) - 200).max() <= 1


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_corrupt_names_the_path(tmp_path, content):
    path = tmp_path / "a.jpg"
    Image.effect_noise((200, 200), 60).save(path)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(CorruptPicture) as caught:
        decode(picture(path), 64)
    assert caught.value.path == path and str(path) in str(caught.value)


def test_missing_is_not_called_corrupt(tmp_path):
    with pytest.raises(BadData, match="cannot be opened") as caught:
        decode(picture(tmp_path / "none.jpg"), 64)
    assert not isinstance(caught.value, CorruptPicture)


def folder_with(tmp_path, good: int, corrupt: int) -> list[Picture]:
    pictures = []
    for index in range(good + corrupt):
        path = tmp_path / f"{index}.png"
        if index < corrupt:
            path.write_bytes(b"broken")
        else:
            Image.new("L", (8, 8), index % 256).save(path)
        pictures.append(picture(path))
    return pictures


def test_one_per_cent_is_skipped_and_named(tmp_path):
    pictures = folder_with(tmp_path, good=99, corrupt=1)
    decoded = decode_all(pictures, 8)
    assert decoded.pixels.shape == (99, 8, 8)
    assert decoded.pictures == tuple(pictures[1:]) and decoded.corrupt == (pictures[0].path,)
    assert decoded.pixels[5, 0, 0] == 6  # row 5 is picture 6: rows and pictures stay together
    probe(pictures)


def test_more_than_one_per_cent_is_refused(tmp_path):
    pictures = folder_with(tmp_path, good=98, corrupt=2)
    for refuse in (lambda: decode_all(pictures, 8), lambda: probe(pictures)):
        with pytest.raises(BadData, match="2 of 100 pictures are corrupt, at most 1%") as caught:
            refuse()
        assert str(pictures[0].path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_decode_is_empty():
    assert decode_all([], 16).pixels.shape == (0, 16, 16)


def test_json_round_trip(stripes):
    assert Picture.from_json(stripes.to_json()) == stripes
    assert Picture.from_json(replace(stripes, caption='Größe ___ "x"').to_json()).caption == 'Größe ___ "x"'
