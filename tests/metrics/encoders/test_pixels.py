"""The encoder without weights."""

import numpy as np
import pytest

from metrics.encoders import load
from metrics.errors import BadArray


def test_each_small_pixel_is_the_mean_of_its_area():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    by_hand = pictures.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)).reshape(3, -1) / 255
    encoder = load("pixels")
    assert encoder.encode(pictures) == pytest.approx(by_hand, abs=1e-6)
    assert encoder.encode(pictures).shape == (3, encoder.dimension) and encoder.encode(pictures).dtype == np.float32


def test_a_picture_that_is_not_square_is_seen_as_a_whole():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8)
    by_hand = pictures.reshape(3, 32, 2, 32, 3).mean(axis=(2, 4)).reshape(3, -1) / 255
    assert load("pixels").encode(pictures) == pytest.approx(by_hand, abs=1e-6)


def test_grey_in_colours_is_grey_and_other_sizes_are_taken():
    grey = np.random.default_rng(0).integers(0, 256, (2, 50, 70), dtype=np.uint8)
    encoder = load("pixels")
    assert encoder.encode(np.repeat(grey[..., None], 3, axis=3)) == pytest.approx(encoder.encode(grey), abs=1e-6)


def test_more_pictures_than_a_batch_keep_their_order():
    pictures = np.repeat(np.arange(300, dtype=np.uint16)[:, None, None] % 256, 32, axis=1).repeat(32, axis=2)
    features = load("pixels").encode(pictures.astype(np.uint8))
    assert features[:, 0] * 255 == pytest.approx(np.arange(300) % 256, abs=1e-4)


@pytest.mark.parametrize("shape, kind", [((2, 8, 8), np.float32), ((8, 8), np.uint8), ((2, 8, 8, 4), np.uint8)])
def test_what_is_no_picture_is_refused(shape, kind):
    with pytest.raises(BadArray, match="needs uint8"):
        load("pixels").encode(np.zeros(shape, dtype=kind))
