"""Dealing patients to sides: nobody stands on two, all sides are equal, and the test split stays out."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from trainers.data import mimic
from trainers.data.picture import Picture, decode
from trainers.data.resolution import Resolution
from trainers.data.sides import SIDES, Sides, deal, validate_pictures, warning
from trainers.errors import BadData

RESOLUTION = Resolution(32, 32)


def rows(dealt):
    return {side: getattr(dealt.sides, side) for side in SIDES}


def check(dealt, per_side: int) -> None:
    """What must hold of any deal."""
    patients = [{picture.patient for picture in side} for side in rows(dealt).values()]
    assert len(set.union(*patients)) == sum(map(len, patients)), "a patient stands on two sides"
    assert len({len(side) for side in patients}) == 1, "sides differ in patients"
    pixels = [row.tobytes() for side in dealt.pixels.values() for row in side]
    assert len(set(pixels)) == len(pixels) == 3 * per_side, "a picture occurs twice, or sides differ in pictures"
    for side, pictures in rows(dealt).items():
        assert {picture.split for picture in pictures} == {"train"}
        assert len(pictures) == per_side
        np.testing.assert_array_equal(dealt.pixels[side][-1], decode(pictures[-1], RESOLUTION))
    for triple in zip(*(counts(side) for side in rows(dealt).values()), strict=True):
        assert len(set(triple)) == 1, "the patients of a triple differ in pictures"


def counts(side: tuple[Picture, ...]) -> list[int]:
    return list(Counter(picture.patient for picture in side).values())


@pytest.mark.parametrize("per_side", [12, 37])
@pytest.mark.parametrize("seed", range(3))
def test_phantoms(phantoms, per_side, seed):
    check(deal(mimic.read(phantoms), per_side, seed, RESOLUTION), per_side)


@pytest.mark.parametrize("per_side", [48, 260])
def test_real_x_rays(cxr, per_side):
    dealt = deal(mimic.read(cxr), per_side, 0, RESOLUTION)
    check(dealt, per_side)
    if per_side == 260:  # nearly everybody is dealt, the patient with two pixel-identical pictures among them
        assert dealt.duplicates >= 1


def test_same_seed_same_sides_whatever_the_order_on_disk(phantoms):
    pictures = mimic.read(phantoms)
    assert rows(deal(pictures, 20, 5, RESOLUTION)) == rows(deal(pictures[::-1], 20, 5, RESOLUTION))
    assert rows(deal(pictures, 20, 5, RESOLUTION)) != rows(deal(pictures, 20, 6, RESOLUTION))


def test_fewer_pictures_are_the_beginning_of_more(phantoms):
    pictures = mimic.read(phantoms)
    few, many = deal(pictures, 15, 0, RESOLUTION), deal(pictures, 30, 0, RESOLUTION)
    assert all(
        many_row[:15] == few_row for few_row, many_row in zip(rows(few).values(), rows(many).values(), strict=True)
    )


def test_each_side_gets_each_patient_sometimes(phantoms):
    pictures = mimic.read(phantoms)
    patient = deal(pictures, 20, 0, RESOLUTION).sides.train[0].patient
    homes = set()
    for seed in range(40):
        homes |= {
            side for side, row in rows(deal(pictures, 20, seed, Resolution(8, 8))).items() if patient in {p.patient for p in row}
        }
    assert homes == set(SIDES)


def test_test_and_validate_are_not_opened(spoilt):
    pictures = mimic.read(spoilt)
    for picture in pictures:
        if picture.split != "train":
            picture.path.unlink()
    check(deal(pictures, 20, 0, RESOLUTION), 20)


def test_validate_pictures_do_not_need_the_test_split(spoilt):
    pictures = mimic.read(spoilt)
    dealt = deal(pictures, 12, 0, RESOLUTION)
    for picture in pictures:
        if picture.split == "test":
            picture.path.unlink()
    chosen = validate_pictures(pictures, 1000, 0, RESOLUTION, dealt)
    assert {picture.split for picture in chosen.pictures} == {"validate"}
    assert len(chosen.pictures) == len(chosen.pixels) == sum(picture.split == "validate" for picture in pictures)


def test_validate_choice_is_repeatable_and_limited(phantoms):
    pictures = mimic.read(phantoms)
    dealt = deal(pictures, 12, 0, RESOLUTION)
    first, again = (validate_pictures(order, 14, 7, RESOLUTION, dealt) for order in (pictures, pictures[::-1]))
    assert first.pictures == again.pictures and len(first.pictures) == 14
    assert first.pictures != validate_pictures(pictures, 14, 8, RESOLUTION, dealt).pictures


def test_validate_pictures_are_not_those_of_a_side(spoilt):
    pictures = mimic.read(spoilt)
    known = deal(pictures, 12, 0, RESOLUTION).sides.second_twin[3]
    victim = next(picture for picture in pictures if picture.split == "validate")
    shutil.copy(known.path, victim.path)
    chosen = validate_pictures(pictures, 1000, 0, RESOLUTION, deal(pictures, 12, 0, RESOLUTION))
    assert victim not in chosen.pictures
    assert len(chosen.pictures) == sum(picture.split == "validate" for picture in pictures) - 1


def test_who_shares_a_picture_with_a_dealt_patient_is_left_out(spoilt):
    pictures = mimic.read(spoilt)
    before = rows(deal(pictures, 30, 0, RESOLUTION))
    early, late = before["train"][0], before["twin"][25]
    shutil.copy(early.path, late.path)
    dealt = deal(pictures, 30, 0, RESOLUTION)
    check(dealt, 30)
    assert dealt.duplicates == 1
    everyone = {picture.patient for side in rows(dealt).values() for picture in side}
    assert early.patient in everyone and late.patient not in everyone


def test_of_a_patients_identical_pictures_one_is_kept(spoilt):
    pictures = mimic.read(spoilt)
    several = Counter(picture.patient for picture in pictures if picture.split == "train")
    for patient in (name for name, count in several.items() if count == 2):
        one, other = (picture for picture in pictures if picture.patient == patient)
        shutil.copy(one.path, other.path)
    dealt = deal(pictures, 35, 0, RESOLUTION)
    check(dealt, 35)
    assert dealt.duplicates > 0


def test_a_few_corrupt_pictures_are_replaced_and_counted(spoilt):
    pictures = mimic.read(spoilt)
    victim = deal(pictures, 20, 0, RESOLUTION).sides.twin[0]
    victim.path.write_bytes(b"")
    dealt = deal(pictures, 20, 0, RESOLUTION)
    check(dealt, 20)
    assert dealt.corrupt == (victim.path,)


def test_many_corrupt_pictures_are_refused(spoilt):
    pictures = mimic.read(spoilt)
    for picture in [picture for picture in pictures if picture.split == "train"][::20]:
        picture.path.write_bytes(b"")
    with pytest.raises(BadData, match="at most 1% may be"):
        deal(pictures, 30, 0, RESOLUTION)


def test_a_corrupt_picture_of_a_small_split_is_one_of_the_whole_folder(spoilt):
    """The validate split has fewer than a hundred pictures here, of which one is more than 1 %, and the folder has many more."""
    pictures = mimic.read(spoilt)
    dealt = deal(pictures, 20, 0, RESOLUTION)
    searched = [picture for picture in pictures if picture.split in ("train", "validate")]
    validate = [picture for picture in searched if picture.split == "validate"]
    assert len(validate) < 100 < len(searched)
    validate[0].path.write_bytes(b"")
    found = validate_pictures(pictures, 500, 0, RESOLUTION, dealt)
    assert found.corrupt == (validate[0].path,) and validate[0] not in found.pictures
    for picture in searched[::20]:
        picture.path.write_bytes(b"")
    with pytest.raises(BadData, match="at most 1% may be"):
        validate_pictures(pictures, 500, 0, RESOLUTION, dealt)


def test_missing_pictures_are_refused(spoilt):
    pictures = mimic.read(spoilt)
    deal(pictures, 20, 0, RESOLUTION).sides.train[2].path.unlink()
    with pytest.raises(BadData, match="are missing"):
        deal(pictures, 20, 0, RESOLUTION)


def test_too_many_pictures_asked_names_the_largest_number(phantoms):
    pictures = mimic.read(phantoms)
    with pytest.raises(BadData, match="--train-images=5000") as caught:
        deal(pictures, 5000, 0, RESOLUTION)
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    check(deal(pictures, largest, 0, RESOLUTION), largest)
    with pytest.raises(BadData):
        deal(pictures, largest + 1, 0, RESOLUTION)


@pytest.mark.parametrize("per_side", [0, -3])
def test_no_pictures_asked(phantoms, per_side):
    with pytest.raises(BadData, match=f"--train-images={per_side}"):
        deal(mimic.read(phantoms), per_side, 0, RESOLUTION)


def test_ten_patients_a_side_are_needed(phantoms):
    pictures = mimic.read(phantoms)
    with pytest.raises(BadData, match="at least 10"):
        deal(pictures, 9, 0, RESOLUTION)
    few = sorted({picture.patient for picture in pictures if picture.split == "train"})[:29]
    with pytest.raises(BadData, match="29 patients"):
        deal([picture for picture in pictures if picture.patient in few], 9, 0, RESOLUTION)


def synthetic_sides(patients: int) -> Sides:
    def side(letter: int):
        picture = Picture(None, "", "", "", "PA", "train", "x")
        return tuple(replace(picture, patient=f"{letter}{index}") for index in range(patients))

    return Sides(side(1), side(2), side(3))


def test_warning_says_what_intervals_are_worth():
    assert warning(synthetic_sides(50)) is None
    message = warning(synthetic_sides(12))
    assert "12 patients" in message and "2.0 times" in message and "\n" not in message  # sqrt(50 / 12) = 2.04


def test_triples_match_patients_by_number_of_pictures(tmp_path):
    """31 patients with 1 picture and 6 with 4: who has 4 meets in triples with others who have 4."""
    rng = np.random.default_rng(0)
    pictures = []
    for patient in range(37):
        for number in range(4 if patient < 6 else 1):
            path = tmp_path / f"{patient}-{number}.png"
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
            pictures.append(Picture(path, f"p{patient:02}", f"s{number}", path.stem, "PA", "train", "x"))
    dealt = deal(pictures, 2 * 4 + 10, 0, Resolution(8, 8))
    assert [sorted(counts(side)) for side in rows(dealt).values()] == [[1] * 10 + [4] * 2] * 3


def test_pictures_of_any_shape_are_alike_or_not_at_that_shape(tmp_path):
    """Of 60 pictures, 16 wide and 8 high, two patients' differ in the outermost columns alone, which a square crops away."""
    rng = np.random.default_rng(0)
    pictures, middle = [], rng.integers(0, 256, (8, 8), dtype=np.uint8)
    for patient in range(60):
        pixels = rng.integers(0, 256, (8, 16), dtype=np.uint8)
        if patient < 2:
            pixels[:, 4:12] = middle
        path = tmp_path / f"{patient}.png"
        Image.fromarray(pixels).save(path)
        pictures.append(Picture(path, f"p{patient:02}", "s", path.stem, "PA", "train", "x"))
    wide = deal(pictures, 20, 0, Resolution(8, 16))
    assert wide.duplicates == 0 and {pixels.shape for pixels in wide.pixels.values()} == {(20, 8, 16)}
    with pytest.raises(BadData, match="lower it to 19"):  # the triple that lost a patient has no other in its place
        deal(pictures, 20, 0, Resolution(8, 8))
