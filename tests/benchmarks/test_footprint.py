"""Counting bytes without bytes: by hand on a layer or two, and on Stable Diffusion v1.5 against its published size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.footprint import AsOnCuda, Live, decoding, footprints, generating, shapes_only
from hpo.spaces.reference import reference_candidate

ELEMENTS, BIASES = 859_520_964, 343_684
HALF, FULL = 2, 4  # bytes


def test_what_is_alive_is_counted_once_and_no_longer_than_it_lives():
    with shapes_only(), Live() as live:
        first = torch.empty(1000)
        view = first.view(10, 100)[2:]
        assert (live.now, live.most) == (4000, 4000)
        second = first + 1
        assert live.now == 8000
        del first, second
        assert (live.now, live.most) == (4000, 8000)  # the view holds the first one's memory
        del view
        assert live.now == 0


def test_a_layer_keeps_its_input_only_where_its_weight_is_trained():
    """A matrix of 8 × 8 on 100 rows: the input is 3,200 bytes, so is the output, which nothing keeps but the loss."""
    def kept(trained: bool) -> int:
        with shapes_only(), Live() as live:
            weight, bias = torch.nn.Parameter(torch.empty(8, 8), requires_grad=trained), torch.nn.Parameter(torch.empty(8))
            before = live.now
            output = torch.nn.functional.linear(torch.empty(100, 8), weight, bias)
            assert output.shape == (100, 8)
            return live.now - before

    assert (kept(False), kept(True)) == (3200, 6400)


def test_norms_are_in_full_precision_as_on_cuda():
    with shapes_only(), AsOnCuda():
        weight = torch.empty(8, dtype=torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = torch.nn.functional.layer_norm(torch.empty(2, 8, dtype=torch.bfloat16), (8,), weight, weight)
        outside = torch.nn.functional.layer_norm(torch.empty(2, 8, dtype=torch.bfloat16), (8,), weight, weight)
    assert (inside.dtype, outside.dtype) == (torch.float32, torch.bfloat16)


def test_a_scale_that_is_read_as_a_number():
    with shapes_only(), Live():
        assert torch.empty(()).item() == 1.0


@pytest.mark.slow
def test_of_biases_the_base_counts_and_of_full_fine_tuning_what_is_trained():
    size = (256, 1)
    bias, full = (footprints(reference_candidate(method, 1), [size], "bf16")[size] for method in ("bias", "full"))
    assert bias.trainable == BIASES and full.trainable == ELEMENTS
    assert bias.resident == pytest.approx(HALF * ELEMENTS + FULL * BIASES, rel=2e-3)
    assert full.resident == pytest.approx((HALF + FULL) * ELEMENTS, rel=1e-3)  # the base's values are kept beside the trained ones
    assert bias.state == pytest.approx(3 * FULL * BIASES, rel=0.1) and full.state == pytest.approx(3 * FULL * ELEMENTS, rel=1e-3)
    assert bias.peak < full.peak and bias.resident + bias.state + bias.activations <= bias.peak


@pytest.mark.slow
def test_activations_go_with_pictures_and_pixels():
    found = footprints(reference_candidate("norm", 1), [(256, 1), (256, 4), (512, 1)], "fp32")
    small, four, large = (each.activations for each in found.values())
    assert four == pytest.approx(4 * small, rel=0.02) and large == pytest.approx(4 * small, rel=0.05)
    assert len({each.resident for each in found.values()}) == 1


@pytest.mark.slow
def test_pictures_are_decoded_at_full_size():
    """The last layers of the VAE hold several tensors of 128 or 256 channels at the size of the picture, in fp32."""
    assert 2 * 256 * 256**2 * FULL < decoding(256, 1) < 5 * 256 * 256**2 * FULL
    assert decoding(256, 2) == pytest.approx(2 * decoding(256, 1), rel=0.01)
    assert generating(256, 1, "bf16") < decoding(256, 1)
