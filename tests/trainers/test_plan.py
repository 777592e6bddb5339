"""A plan's identity: what decides the weights after k steps."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from training import PLAN

from trainers.fit import Examples
from trainers.plan import Plan

OTHER = {"learning_rate": 2e-3, "batch_size": 4, "seed": 6, "caption_dropout": 0.2, "max_grad_norm": 2.0, "precision": "bf16", "optimizer": "prodigy",
         "schedule": "cosine", "warmup_steps": 3, "accumulate": 2, "min_snr_gamma": 5.0, "noise_offset": 0.1, "ema_decay": 0.9}


@pytest.mark.parametrize("name", OTHER)
def test_what_decides_the_weights_is_part_of_it(name):
    assert replace(PLAN, **{name: OTHER[name]}).identity != PLAN.identity


def test_what_does_not_is_not_and_nothing_is_forgotten():
    assert replace(PLAN, steps=400, gradient_checkpointing=True, schedule_steps=9).identity == PLAN.identity
    assert {each.name for each in fields(Plan)} == {*OTHER, "steps", "gradient_checkpointing", "schedule_steps"}


def test_with_a_decaying_schedule_its_end_is_part_of_it():
    cosine = replace(PLAN, schedule="cosine")
    assert replace(cosine, steps=400).identity != cosine.identity == replace(cosine, schedule_steps=cosine.steps).identity
    assert replace(cosine, steps=400, schedule_steps=9).identity == replace(cosine, schedule_steps=9).identity


def test_json_can_write_it():
    assert json.loads(json.dumps(PLAN.identity)) == PLAN.identity


def test_the_first_examples(examples):
    few = examples.first(3)
    assert isinstance(few, Examples) and len(few) == 3 and len(few.caption) == len(few.deviation) == 3 and few.empty == examples.empty
    assert torch.equal(few.mean, examples.mean[:3]) and len(examples.first(99)) == 10
