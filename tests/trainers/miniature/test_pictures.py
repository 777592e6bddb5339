"""The pictures that the miniature learns from: the same from a seed anywhere, and captions that say what is drawn."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainers.miniature.pictures import (
    COLOURS,
    CURVES,
    ELLIPSES,
    FIGURE_SHARE,
    FIGURES,
    GREY_SHARE,
    MARKERS,
    PLATES,
    SIZE,
    STRIPES,
    Scene,
    compose,
    draw,
    named_ellipse,
    place,
    prototype,
    render,
    words,
)

NOUNS = {"plate": "plates", "opacity": "ellipses", "lucency": "ellipses", "stripes": "stripes", "line": "curves", "marker": "markers"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [compose(rng, words()) for _ in range(1_000)]


def grey(scene: Scene) -> np.ndarray:
    return render([scene], np.random.default_rng(0))[0, :, :, 0].astype(int)


def test_shapes_and_types():
    pictures, captions = draw(70, seed=1)
    assert pictures.shape == (70, SIZE, SIZE, 3) and pictures.dtype == np.uint8
    assert len(captions) == 70 and all(isinstance(caption, str) and caption for caption in captions)
    assert (pictures.reshape(70, -1).std(1) > 0).all() and len({picture.tobytes() for picture in pictures}) == 70


def digest(seed: int) -> str:
    pictures, captions = draw(80, seed)
    return hashlib.sha256(pictures.tobytes() + "\n".join(captions).encode()).hexdigest()


def test_a_seed_gives_the_same_in_another_process():
    """Words place their ellipses by a hash: Python's own would differ from process to process."""
    code = "import hashlib; from trainers.miniature.pictures import draw; p, c = draw(80, 4); " \
           "print(hashlib.sha256(p.tobytes() + '\\n'.join(c).encode()).hexdigest())"
    other = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONHASHSEED": "7"},
                           capture_output=True, text=True, check=True, timeout=120)
    assert other.stdout.strip() == digest(4) != digest(5)


def test_captions_name_as_many_shapes_as_are_drawn(scenes):
    for scene in scenes:
        named = {kind: 0 for kind in NOUNS.values()}
        for phrase in scene.phrases[1:]:
            found = [kind for noun, kind in NOUNS.items() if re.search(rf"\b{noun}\b", phrase) and " " in phrase]
            if found:
                named[found[0]] += 1
        figures = [phrase for phrase in scene.phrases[1:] if phrase in FIGURES]
        vocabulary_words = [phrase for phrase in scene.phrases[1:] if " " not in phrase and phrase not in COLOURS and phrase not in FIGURES]
        assert named["ellipses"] + len(vocabulary_words) == len(scene.ellipses)
        assert set(vocabulary_words) <= set(words())
        for kind in ("stripes", "curves", "markers"):
            assert named[kind] == len(getattr(scene, kind)), scene.caption
        of_figures = sum(len(prototype(name)[1]) for name in figures)
        assert named["plates"] <= len(scene.plates) - of_figures <= 2 * named["plates"]  # a mirrored pair is one phrase


def test_no_shape_that_a_caption_names_is_left_out(scenes):
    """`render` draws at most so many of a kind; no scene has more."""
    for kind, most in (("plates", PLATES), ("ellipses", ELLIPSES), ("stripes", STRIPES), ("curves", CURVES), ("markers", MARKERS)):
        assert max(len(getattr(scene, kind)) for scene in scenes) <= most


def test_the_first_phrase_is_the_ground_and_colours_are_told(scenes):
    assert {scene.phrases[0].split()[1] for scene in scenes} == {"ground"}
    for scene in scenes[:200]:
        told = [phrase for phrase in scene.phrases if phrase in COLOURS]
        channels = render([scene], np.random.default_rng(0))[0].astype(int)
        coloured = bool(np.ptp(channels, axis=2).max() > 3)
        assert coloured == bool(told), scene.caption
    share = np.mean([not any(phrase in COLOURS for phrase in scene.phrases) for scene in scenes])
    assert share == pytest.approx(GREY_SHARE, abs=0.05)


@pytest.mark.parametrize("x, y, words", [(0.1, 0.1, "upper left"), (0.5, 0.5, "mid middle"), (0.9, 0.9, "lower right"), (0.99, 0.2, "upper right")])
def test_places_by_hand(x, y, words):
    assert place(x, y) == words


@pytest.mark.parametrize("y, x", [(0.2, 0.2), (0.2, 0.8), (0.8, 0.5)])
@pytest.mark.parametrize("delta", [0.4, -0.4])
def test_an_ellipse_is_where_it_is_said_to_be(y, x, delta):
    empty = (0.5, 0.0, 0.0, 0.0)
    change = grey(Scene(empty, ellipses=[(x, y, 0.1, 0.1, 0.0, 0.1, delta)])) - grey(Scene(empty))
    row, column = np.unravel_index(np.abs(change).argmax(), change.shape)
    assert abs(row / SIZE - y) < 0.1 and abs(column / SIZE - x) < 0.1
    assert change[row, column] == pytest.approx(delta * 255, abs=8)
    away = np.hypot(*(np.indices(change.shape) / SIZE - np.array([y, x])[:, None, None])) > 0.2
    assert np.abs(change[away]).max() <= 2


@pytest.mark.parametrize("kind, shape", [
    ("plates", (0.5, 0.5, 0.2, 0.2, 0, 2, 1, 1.0, 0, 0, 0, 0, 0, 0)), ("stripes", (0.5, 0.5, 0.4, 0, 5, 0, 0, 2, 0.2)),
    ("curves", (0.1, 0.1, 0.5, 0.5, 0.9, 0.9, 0.02, 0.5)), ("markers", (0.5, 0.5, 0.05, 0.05, 0.5))])
def test_each_kind_of_shape_changes_the_picture_and_none_does_not(kind, shape):
    empty = (0.4, 0.0, 0.0, 0.0)
    assert np.ptp(grey(Scene(empty))) == 0
    assert np.abs(grey(Scene(empty, **{kind: [shape]})) - grey(Scene(empty))).max() > 20


def test_a_figure_is_symmetric_known_by_its_name_and_never_the_same_twice():
    assert len({prototype(name)[1].tobytes() for name in FIGURES}) == len(FIGURES) == len(set(FIGURES)) and set(FIGURES).isdisjoint(words())
    for name in FIGURES:
        ground, plates = prototype(name)
        picture = grey(Scene((ground, 0.0, 0.0, 0.0), plates=[tuple(plate) for plate in plates]))
        assert np.abs(picture - picture[:, ::-1]).mean() < 6 and np.ptp(picture) > 30, name
        assert len(plates) <= PLATES - 2, "room for a plate and its mirror image"


def test_a_figure_is_nearer_to_its_own_name_s_pictures_than_to_others(scenes):
    """Also under all that lies over it: what a name calls up can be learned."""
    shown = [(name, scene) for scene in scenes for name in scene.phrases if name in FIGURES]
    assert len(shown) / len(scenes) == pytest.approx(FIGURE_SHARE, abs=0.05)
    plain = {name: grey(Scene((prototype(name)[0], 0.0, 0.0, 0.0), plates=[tuple(plate) for plate in prototype(name)[1]])) for name in FIGURES}
    bare = [(name, grey(Scene(scene.ground, plates=scene.plates))) for name, scene in shown[:300]]
    assert len({picture.tobytes() for _, picture in bare}) == len(bare)
    nearest = [min(FIGURES, key=lambda other: np.abs(picture - plain[other]).mean()) for _, picture in bare]
    assert np.mean([found == name for found, (name, _) in zip(nearest, bare)]) > 0.5


def test_each_word_has_one_ellipse_of_its_own():
    assert len(set(words())) == len(words()) > 150
    assert named_ellipse("nodule") == named_ellipse("nodule")
    assert len({named_ellipse(word) for word in words()}) == len(words())
