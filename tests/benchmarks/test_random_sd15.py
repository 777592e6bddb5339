"""The full architecture with random weights: written, whole, and read as any other model."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainers.base_model import content_hash, unet_elements
from trainers.captions import encode_captions
from trainers.model_files import find


@pytest.fixture(scope="module")
def written(tmp_path_factory, repository) -> tuple:
    """A folder in half precision, and what the command said. 2.1 GB."""
    folder = tmp_path_factory.mktemp("sd15") / "model"
    done = subprocess.run([sys.executable, "-m", "benchmarks.random_sd15", "--out", str(folder), "--half"], cwd=repository, capture_output=True, text=True,
                          timeout=3000)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_it_has_the_published_sizes(written):
    folder, said = written
    assert "unet 859,520,964, vae 83,653,863, text_encoder 123,060,480 parameters, 2.13 GB" in said
    assert unet_elements(folder) == 859_520_964 and find(folder).config("scheduler")["prediction_type"] == "epsilon"
    assert len(content_hash(folder)) == 64


@pytest.mark.slow
def test_its_captions_are_encoded(written):
    states = encode_captions(written[0], ["no acute cardiopulmonary process", ""])
    assert states.shape == (2, 77, 768) and abs(states).max() < 100 and (states[0] != states[1]).any()


def test_a_folder_that_is_there_is_left_alone(tmp_path, repository):
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run([sys.executable, "-m", "benchmarks.random_sd15", "--out", str(tmp_path)], cwd=repository, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and done.stderr.startswith("error: --out") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
