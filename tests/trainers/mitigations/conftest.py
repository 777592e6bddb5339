"""What is learned from, with a real text encoder of random weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainers.captions import CaptionEncoder
from trainers.mitigations.hooks import Batch, Learned

CAPTIONS = ["no acute cardiopulmonary process", "small nodule in the left lung", "left lung", "acute process in the small left lung"]


@pytest.fixture
def encoder(loaded, random_base) -> CaptionEncoder:
    made = CaptionEncoder(random_base)
    made.tokenizer, made.text_encoder = loaded.tokenizer, loaded.text_encoder
    return made


@pytest.fixture
def learned(encoder) -> Learned:
    """Ten pictures with four captions, as `examples`; features of ten that are not alike."""
    return Learned(CAPTIONS, np.arange(10) % 4, encoder.encode, encoder.random_word, lambda: np.eye(10), seed=3)


@pytest.fixture
def learned_x(learned) -> Learned:
    """Whose only random word is x, so that texts can be written down."""
    return replace(learned, random_word=lambda generator: "x")


@pytest.fixture
def batch():
    """A batch by its differences: d → one whose U-Net says d (b, …) more with the caption than without it."""

    def make(differences, alphas_cumprod=1.0, prediction_type="epsilon", step=1, dropped=()) -> Batch:
        differences = torch.as_tensor(differences, dtype=torch.float32)
        differences = differences.view(len(differences), -1, 1, 1)
        plain = torch.full_like(differences, 7.0)
        return Batch(step, torch.zeros_like(plain), torch.zeros(len(plain), dtype=torch.int64), plain + differences, lambda: plain,
                     torch.tensor([alphas_cumprod]), prediction_type, torch.tensor([row in dropped for row in range(len(plain))]))

    return make
