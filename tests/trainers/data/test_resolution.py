"""How a size is written and read."""

from __future__ import annotations

import pytest

from trainers.data.resolution import Resolution
from trainers.errors import BadData


@pytest.mark.parametrize("written, height, width", [(512, 512, 512), ("512", 512, 512), ("512x512", 512, 512), ("448x512", 512, 448), ("512x448", 448, 512),
                                                    ("064x0072", 72, 64), (1, 1, 1), ("1x65500", 65500, 1)])
def test_width_is_written_first_and_height_is_first_in_arrays(written, height, width):
    size = Resolution.read(written)
    assert size == (height, width) and (size.height, size.width) == (height, width)


@pytest.mark.parametrize("written", [512, "512", "512x512", "0512x512"])
def test_a_square_has_one_spelling_a_number(written):
    again = Resolution.read(written).written
    assert again == 512 and isinstance(again, int)


@pytest.mark.parametrize("written", ["448x512", "512x448", "8x16"])
def test_what_is_not_square_reads_and_writes_as_text(written):
    assert Resolution.read(written).written == written


@pytest.mark.parametrize("written", ["500x", "x500", "0x64", "64x0", "00", "x", "", "64x64x64", "-64", "-64x64", "64x-64", -64, 0, "64 x 64", "64X64", "64×64", "6.4",
                                     "64,64", "٦٤", "sixty", "64\n", 65501, "8x99999", "9" * 5000])
def test_what_is_no_size_is_one_line_with_value_rule_and_way_out(written):
    with pytest.raises(BadData) as refused:
        Resolution.read(written)
    said = str(refused.value)
    assert f"--resolution {written}: it must be pixels a side, as 512, or WIDTHxHEIGHT, as 448x512, each at least 1" in said and "leave the flag out" in said
