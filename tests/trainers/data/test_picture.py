"""Decoding pictures of every shape, and what happens to corrupt ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.picture import Picture, decode, decode_all, probe
from trainers.data.resolution import Resolution
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
    decoded = decode(stripes, Resolution(30, 30))
    assert decoded.shape == (30, 30) and decoded.dtype == np.uint8
    assert (decoded == 128).all()


@pytest.mark.parametrize("wanted", [(64, 64), (48, 72), (72, 48), (8, 200)])
@pytest.mark.parametrize("size", [(64, 64), (33, 90), (7, 5), (3056, 2544)])
def test_any_shape_gives_the_size_that_is_asked_for_without_an_edge(tmp_path, size, wanted):
    Image.new("L", size, 77).save(tmp_path / "a.jpg")
    decoded = decode(picture(tmp_path / "a.jpg"), Resolution(*wanted))
    assert decoded.shape == wanted and (decoded == 77).all()


def test_a_size_of_the_picture_s_own_is_the_picture_itself(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(picture(tmp_path / "a.png"), Resolution(24, 40)), pixels)


def test_both_sides_are_covered_and_what_is_too_long_is_cropped_to_the_centre(tmp_path):
    """12 high, 40 wide, in columns of 10: to be 12 wide and 12 high, columns 14 to 25 remain; 20 wide, 10 to 29. To be 12 wide and 24 high all is
    twice as large, so that its 80 columns are cropped to 34 to 45, of the second and third ten as they were."""
    pixels = np.repeat(np.array([10, 20, 30, 40], np.uint8), 10)[None].repeat(12, axis=0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    given = picture(tmp_path / "a.png")
    np.testing.assert_array_equal(decode(given, Resolution(12, 12)), pixels[:, 14:26])
    np.testing.assert_array_equal(decode(given, Resolution(12, 20)), pixels[:, 10:30])
    enlarged = decode(given, Resolution(24, 12))
    assert enlarged.shape == (24, 12) and (enlarged == enlarged[0]).all() and set(enlarged[0, [0, 1, -2, -1]]) == {20, 30}


def test_a_picture_on_its_side_is_decoded_on_its_side(tmp_path):
    pixels = np.random.default_rng(1).integers(100, 156, (90, 61), dtype=np.uint8)  # far from where the filter's overshoot would be clipped
    for name, turned in (("a", pixels), ("b", pixels.T)):
        Image.fromarray(turned).save(tmp_path / f"{name}.png")
    upright, lying = (decode(picture(tmp_path / f"{name}.png"), size).astype(int) for name, size in (("a", Resolution(40, 24)), ("b", Resolution(24, 40))))
    assert np.abs(upright - lying.T).max() <= 1  # PIL rounds between its pass along rows and that along columns


@pytest.mark.parametrize("size", [(200, 200), (333, 190), (70, 101), (1024, 850)])
@pytest.mark.parametrize("side", [64, 96])
def test_squares_are_what_they_always_were(tmp_path, size, side):
    """The steps in PIL's own words: caches and studies of earlier versions go by these pixels."""
    Image.effect_noise(size, 90).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("L", (2 * side, 2 * side))
        grey = image.convert("L")
    scale = side / min(grey.size)
    wide, high = (max(side, round(each * scale)) for each in grey.size)
    left, top = (wide - side) // 2, (high - side) // 2
    expected = grey.resize((wide, high), Image.Resampling.LANCZOS).crop((left, top, left + side, top + side))
    np.testing.assert_array_equal(decode(picture(tmp_path / "a.jpg"), Resolution(side, side)), np.asarray(expected))


def test_small_changes_are_averaged_not_skipped(tmp_path):
    checkers = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    assert np.abs(decode(picture(tmp_path / "a.png"), Resolution(64, 64)).astype(int) - 127).max() <= 2


def test_colour_becomes_grey(tmp_path):
    Image.new("RGB", (40, 40), (200, 200, 200)).save(tmp_path / "a.jpg")
    assert np.abs(decode(picture(tmp_path / "a.jpg"), Resolution(16, 16)).astype(int) - 200).max() <= 1


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_corrupt_names_the_path(tmp_path, content):
    path = tmp_path / "a.jpg"
    Image.effect_noise((200, 200), 60).save(path)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(CorruptPicture) as caught:
        decode(picture(path), Resolution(64, 64))
    assert caught.value.path == path and str(path) in str(caught.value)


def test_missing_is_not_called_corrupt(tmp_path):
    with pytest.raises(BadData, match="cannot be opened") as caught:
        decode(picture(tmp_path / "none.jpg"), Resolution(64, 64))
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
    decoded = decode_all(pictures, Resolution(8, 8))
    assert decoded.pixels.shape == (99, 8, 8)
    assert decoded.pictures == tuple(pictures[1:]) and decoded.corrupt == (pictures[0].path,)
    assert decoded.pixels[5, 0, 0] == 6  # row 5 is picture 6: rows and pictures stay together
    probe(pictures)


def test_more_than_one_per_cent_is_refused(tmp_path):
    pictures = folder_with(tmp_path, good=98, corrupt=2)
    for refuse in (lambda: decode_all(pictures, Resolution(8, 8)), lambda: probe(pictures)):
        with pytest.raises(BadData, match="2 of 100 pictures are corrupt, at most 1%") as caught:
            refuse()
        assert str(pictures[0].path) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_to_decode_is_empty():
    assert decode_all([], Resolution(16, 16)).pixels.shape == (0, 16, 16)


def test_json_round_trip(stripes):
    assert Picture.from_json(stripes.to_json()) == stripes
    assert Picture.from_json(replace(stripes, caption='Größe ___ "x"').to_json()).caption == 'Größe ___ "x"'
