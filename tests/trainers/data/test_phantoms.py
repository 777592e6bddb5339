"""Phantoms as a MIMIC-CXR-JPG folder: its form, its safety, and whether patients can be told apart in it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trainers.data import mimic
from trainers.data import phantoms as generator
from trainers.data.picture import decode_all
from trainers.data.resolution import Resolution
from trainers.errors import BadData

REPOSITORY = Path(__file__).resolve().parents[3]


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt", newline="") as text:
        return list(csv.DictReader(text))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ensure_elsewhere(folder: Path) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from trainers.data import phantoms; "
        "phantoms.ensure(Path(sys.argv[1]), 60, 0, 64)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=REPOSITORY, stderr=subprocess.PIPE)


def test_equal_arguments_give_equal_bytes(tmp_path):
    one, other = generator.write(tmp_path / "a", 12, 1, 64), generator.write(tmp_path / "b", 12, 1, 64)
    assert contents(one) == contents(other)
    assert contents(generator.write(tmp_path / "c", 12, 2, 64)).keys() != contents(one).keys()


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = (contents(generator.write(tmp_path / str(count), count, 1, 64)) for count in (5, 9))
    pictures = {name: digest for name, digest in few.items() if name.endswith(".jpg")}
    assert pictures.items() <= many.items()


def test_the_defaults_are_600_patients_or_more_with_60_to_validate():
    assert generator.PATIENTS >= 600
    split = Counter(generator.SPLIT_OF_25[index % 25] for index in range(generator.PATIENTS))
    assert split["validate"] >= 60 and split["train"] > 0.8 * generator.PATIENTS and split["test"] >= 30


def test_tables_have_the_columns_of_the_real_set(phantoms, cxr):
    for name in ("metadata", "split", "chexpert", "negbio"):
        assert table(phantoms, name)[0].keys() == table(cxr, name)[0].keys()


def test_tables_agree_with_the_files(phantoms):
    metadata, listed = table(phantoms, "metadata"), (phantoms / "IMAGE_FILENAMES").read_text().splitlines()
    assert [row["dicom_id"] for row in metadata] == [Path(name).stem for name in listed]
    assert all((phantoms / name).is_file() for name in listed)
    assert len({row["dicom_id"] for row in metadata}) == len({row["study_id"] for row in metadata}) == len(metadata)
    assert len({row["subject_id"] for row in metadata}) == 150
    assert all(row["subject_id"][0] == "1" and len(row["subject_id"]) == 8 for row in metadata)


def test_study_time_went_through_a_float_as_the_real_one_did(phantoms):
    times = [row["StudyTime"] for row in table(phantoms, "metadata")]
    assert not any(time[0] == "0" and time[1] != "." for time in times)
    assert any(len(time.split(".")[0]) < 6 for time in times)


def test_labels(phantoms):
    labels, studies = table(phantoms, "chexpert"), table(phantoms, "metadata")
    assert {value for row in labels for value in list(row.values())[2:]} == {"", "1.0", "0.0", "-1.0"}
    assert 0.25 < np.mean([row["No Finding"] == "1.0" for row in labels]) < 0.5
    assert 1 <= len(studies) - len(labels) <= 2  # studies without labels, as in the real set
    diseases = [name for name in labels[0] if name not in ("subject_id", "study_id", "No Finding", "Support Devices")]
    assert not any(row["No Finding"] and row[name] == "1.0" for row in labels for name in diseases)
    assert all(any(row[name] == "1.0" for row in labels) for name in diseases)


def test_several_studies_and_one_short_impression_shared_by_many(phantoms):
    pictures = mimic.read(phantoms)
    studies = Counter(Counter(picture.patient for picture in pictures).values())
    assert set(studies) == {1, 2, 3} and 0.04 < (studies[2] + studies[3]) / 150 < 0.2
    captions = Counter(picture.caption for picture in pictures)
    assert captions["No acute cardiopulmonary process."] > 0.1 * len(pictures)
    assert len(captions) > 0.4 * len(pictures)


def test_two_studies_of_a_patient_look_alike(phantoms):
    pictures = mimic.read(phantoms)
    pixels = decode_all(pictures, Resolution(64, 64)).pixels.reshape(len(pictures), -1).astype(np.float32)
    distance = ((pixels[:, None] - pixels[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    patients = np.array([picture.patient for picture in pictures])
    again = [index for index in range(len(patients)) if (patients == patients[index]).sum() > 1]
    hits = np.mean(patients[distance[again].argmin(1)] == patients[again])
    assert len(again) > 30 and hits > 0.75  # by chance it would be 1 %


def test_nothing_is_left_beside_the_folder(tmp_path):
    generator.ensure(tmp_path / "a", 3, 0, 64)
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.lock"}


def test_two_processes_at_once_end_up_with_one_whole_folder(tmp_path):
    workers = [ensure_elsewhere(tmp_path / "a") for _ in range(2)]
    assert [worker.communicate()[1] for worker in workers] == [b"", b""]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert contents(tmp_path / "a") == contents(generator.write(tmp_path / "b", 60, 0, 64))


def test_a_killed_writer_leaves_nothing_half(tmp_path):
    worker = ensure_elsewhere(tmp_path / "a")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".a.writing-*")):
        assert time.monotonic() < deadline and worker.poll() is None
        time.sleep(0.002)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert not (tmp_path / "a").exists()
    leftover = next(tmp_path.glob(".a.writing-*"))
    os.utime(leftover, (0, 0))
    assert generator.is_complete(generator.ensure(tmp_path / "a", 3, 0, 64), 3, 0, 64)
    assert not leftover.exists()


def test_phantoms_of_another_version_are_replaced(tmp_path, monkeypatch):
    generator.ensure(tmp_path / "a", 3, 0, 64)
    mark = tmp_path / "a" / "mark"
    mark.touch()
    generator.ensure(tmp_path / "a", 3, 0, 64)
    assert mark.exists()
    monkeypatch.setattr(generator, "VERSION", generator.VERSION + 1)
    assert not generator.is_complete(tmp_path / "a", 3, 0, 64)
    generator.ensure(tmp_path / "a", 3, 0, 64)
    assert generator.is_complete(tmp_path / "a", 3, 0, 64) and not mark.exists()


def test_another_folder_is_never_touched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    for make in (generator.write, generator.ensure):
        with pytest.raises(BadData, match="exists already"):
            make(tmp_path / "a", 3, 0, 64)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "mine"


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for make in (generator.write, generator.ensure):
        with pytest.raises(BadData, match="cannot be written"):
            make(tmp_path / "file" / "a", 3, 0, 64)
