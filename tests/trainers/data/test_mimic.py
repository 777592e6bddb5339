"""The MIMIC-CXR-JPG reader on phantoms, on real X-rays and on spoilt folders."""

from __future__ import annotations

import csv
import gzip
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from trainers.data import mimic
from trainers.errors import BadData

METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-split.csv.gz"


def rewrite(path: Path, change) -> None:
    """Replaces the rows of a csv.gz, header included, by change(rows)."""
    with gzip.open(path, "rt", newline="") as text:
        rows = list(csv.reader(text))
    with gzip.open(path, "wt", newline="") as text:
        csv.writer(text).writerows(change(rows))


def refused(root: Path) -> str:
    with pytest.raises(BadData) as caught:
        mimic.read(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_phantoms_are_read_whole(phantoms):
    scan = mimic.scan(phantoms)
    mimic.check_present(scan.pictures)
    assert len(scan.pictures) == len((phantoms / "IMAGE_FILENAMES").read_text().splitlines())
    assert (scan.without_caption, scan.without_report, scan.other_views) == (0, 0, 0)
    assert {picture.split for picture in scan.pictures} == {"train", "validate", "test"}
    assert list(scan.pictures) == sorted(scan.pictures, key=lambda picture: (picture.patient, picture.study))


def test_real_x_rays_are_read_unchanged(cxr):
    pictures = mimic.read(cxr)
    mimic.check_present(pictures)
    assert Counter(picture.split for picture in pictures) == {"train": 822, "validate": 99, "test": 79}
    assert Counter(picture.view for picture in pictures) == {"AP": 567, "PA": 433}
    of = {picture.study: picture.caption for picture in pictures}
    assert of["58839802"] == "Pneumonia is present."
    assert of["59068642"] == "Findings include linear atelectasis and blunting of the costophrenic angle by effusion."


def test_views_are_chosen(phantoms):
    both, frontal = mimic.scan(phantoms), mimic.scan(phantoms, views=("PA",))
    assert {picture.view for picture in frontal.pictures} == {"PA"}
    assert len(frontal.pictures) + frontal.other_views == len(both.pictures)


def test_order_of_rows_does_not_matter(phantoms, spoilt):
    rewrite(spoilt / METADATA, lambda rows: [rows[0], *reversed(rows[1:])])
    captions = [(picture.picture, picture.caption) for picture in mimic.read(spoilt)]
    assert captions == [(picture.picture, picture.caption) for picture in mimic.read(phantoms)]


def test_unpacked_csv_and_reports_are_read_too(phantoms, spoilt):
    for name in (METADATA, SPLIT):
        (spoilt / name[:-3]).write_bytes(gzip.decompress((spoilt / name).read_bytes()))
        (spoilt / name).unlink()
    with zipfile.ZipFile(spoilt / mimic.REPORTS) as reports:
        reports.extractall(spoilt)
    (spoilt / mimic.REPORTS).unlink()
    assert [picture.caption for picture in mimic.read(spoilt)] == [picture.caption for picture in mimic.read(phantoms)]


def test_reports_without_text_are_left_out_and_counted(phantoms, spoilt):
    first, second, *_ = mimic.read(phantoms)
    with zipfile.ZipFile(phantoms / mimic.REPORTS) as old, zipfile.ZipFile(spoilt / mimic.REPORTS, "w") as new:
        for name in old.namelist():
            if first.study in name:
                new.writestr(name, "FINAL REPORT\n IMPRESSION:\n")
            elif second.study not in name:
                new.writestr(name, old.read(name))
    scan = mimic.scan(spoilt)
    assert (scan.without_caption, scan.without_report) == (1, 1)
    assert {first.study, second.study}.isdisjoint(picture.study for picture in scan.pictures)


def test_no_folder(tmp_path):
    assert f"data folder {tmp_path / 'none'} does not exist" in refused(tmp_path / "none")


@pytest.mark.parametrize("name", [METADATA, SPLIT, mimic.REPORTS])
def test_lacking_file_is_named(spoilt, name):
    (spoilt / name).unlink()
    assert name in refused(spoilt)


def test_lacking_pictures_folder(spoilt):
    shutil.rmtree(spoilt / "files")
    assert "lacks its pictures" in refused(spoilt)


def test_missing_pictures_are_counted_and_the_first_is_named(spoilt):
    pictures = mimic.read(spoilt)
    for picture in pictures[3:6]:
        picture.path.unlink()
    message = refused(spoilt)
    assert f"3 of {len(pictures)} pictures" in message and str(pictures[3].path) in message
    mimic.check_present(pictures[6:])


def test_of_a_huge_folder_only_those_that_are_used_are_looked_for(spoilt, monkeypatch):
    mimic.read(spoilt)[3].path.unlink()
    monkeypatch.setattr(mimic, "LOOKED_FOR", 50)
    pictures = mimic.read(spoilt)
    mimic.check_present(pictures[4:])
    with pytest.raises(BadData, match="1 of 4 pictures"):
        mimic.check_present(pictures[:4])


@pytest.mark.parametrize("name", [METADATA, SPLIT])
@pytest.mark.parametrize(
    "spoil", [lambda old: old[: len(old) // 2], lambda old: b"no gzip", lambda old: old[:400] + b"x" * 40 + old[440:]]
)
def test_corrupt_gz(spoilt, name, spoil):
    (spoilt / name).write_bytes(spoil((spoilt / name).read_bytes()))
    assert f"{name} cannot be read" in refused(spoilt)


def test_corrupt_zip(spoilt):
    (spoilt / mimic.REPORTS).write_bytes(b"no zip")
    assert f"{mimic.REPORTS} cannot be read" in refused(spoilt)


def test_wrong_columns(spoilt):
    rewrite(
        spoilt / METADATA, lambda rows: [["view" if cell == "ViewPosition" else cell for cell in rows[0]], *rows[1:]]
    )
    message = refused(spoilt)
    assert "lacks column ViewPosition" in message and METADATA in message


def test_short_row_names_its_line(spoilt):
    rewrite(spoilt / SPLIT, lambda rows: [*rows[:4], rows[4][:2], *rows[5:]])
    assert "line 5: 2 columns instead of 4" in refused(spoilt)


def test_split_is_spelt_validate(spoilt):
    rewrite(spoilt / SPLIT, lambda rows: [[cell.replace("validate", "val") for cell in row] for row in rows])
    assert "split 'val'" in refused(spoilt)


def test_picture_without_split(spoilt):
    rewrite(spoilt / SPLIT, lambda rows: rows[:-1])
    assert "no row" in refused(spoilt)


def test_patient_in_two_splits(spoilt):
    patient = next(name for name, count in Counter(p.patient for p in mimic.read(spoilt)).items() if count > 1)

    def move_one(rows):
        index = next(i for i, row in enumerate(rows) if row[2] == patient)
        return [*rows[:index], [*rows[index][:3], "test" if rows[index][3] != "test" else "train"], *rows[index + 1 :]]

    rewrite(spoilt / SPLIT, move_one)
    assert f"patient {patient} is in the splits" in refused(spoilt)


def test_ids_that_would_leave_the_folder(spoilt):
    rewrite(spoilt / METADATA, lambda rows: [rows[0], [rows[1][0], "../../etc", *rows[1][2:]], *rows[2:]])
    assert "no MIMIC ids" in refused(spoilt)


def test_no_frontal_view(spoilt):
    rewrite(spoilt / METADATA, lambda rows: [rows[0], *([*row[:4], "LATERAL", *row[5:]] for row in rows[1:])])
    assert "no picture of view AP or PA" in refused(spoilt)
