"""The size of a study's pictures: as it is given, or the model's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo.identity import resolution_of
from trainers.errors import BadModel


@pytest.mark.parametrize(("given", "height", "width"), [(None, 64, 64), (72, 72, 72), ("48x72", 72, 48), ("8x8", 8, 8), ("200x56", 56, 200)])
def test_any_number_of_latents_is_taken(settings: Callable, given: int | str | None, height: int, width: int) -> None:
    assert resolution_of(settings(resolution=given)) == (height, width)


@pytest.mark.parametrize(("sample_size", "height", "width"), [(12, 96, 96), ([6, 9], 48, 72), ([7, 7], 56, 56)])
def test_the_model_s_own_is_latents_a_side_or_of_height_and_width(settings: Callable, model: Path, tmp_path: Path, sample_size: int | list[int], height: int,
                                                                    width: int) -> None:
    own = shutil.copytree(model / "base", tmp_path / "own")
    config = json.loads((own / "unet" / "config.json").read_text())
    (own / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": sample_size}))
    assert resolution_of(settings(model=str(own))) == (height, width)
    assert resolution_of(settings(model=str(own), resolution=64)) == (64, 64)


@pytest.mark.parametrize("sample_size", [None, "64", [8], [8, 8, 8]])
def test_a_model_that_names_no_size_needs_one(settings: Callable, model: Path, tmp_path: Path, sample_size: object) -> None:
    own = shutil.copytree(model / "base", tmp_path / "own")
    config = json.loads((own / "unet" / "config.json").read_text())
    (own / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": sample_size}))
    with pytest.raises(BadModel, match="--model .*own") as refused:
        resolution_of(settings(model=str(own)))
    assert "\n" not in str(refused.value) and ("give --resolution" in str(refused.value)) == (sample_size is None)
    assert resolution_of(settings(model=str(own), resolution="48x72")) == (72, 48)
