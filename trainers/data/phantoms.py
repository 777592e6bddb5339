"""Writes made-up chest radiographs as a MIMIC-CXR-JPG folder, which the MIMIC reader then reads like the real one.
What they show comes from `anatomy` and `findings`, what their reports say from `wording`."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.data import wording
from trainers.data.anatomy import Anatomy, Chest, Pose
from trainers.data.findings import CHEXPERT, NORMAL_SHARE, Finding, deform, draw, sample_acute, sample_chronic
from trainers.errors import BadData
from trainers.locks import locked

VERSION = 2  # raised whenever the generator writes other bytes
VERSION_FILE = "PHANTOMS.json"
PREFIX = "mimic-cxr-2.0.0-"
PATIENTS = 800
RESOLUTION = 128  # pixels; twice the miniature's 64, so that resizing averages the edges
JPEG_QUALITY = 95
SPLIT_OF_25 = ("train",) * 21 + ("validate",) * 3 + ("test",)
UNLABELLED = (7, 404)  # these patients' first studies have no labels, as a few of the real set's
ZIP_TIME = (2100, 1, 1, 0, 0, 0)  # a fixed date, so that equal folders are equal bytes

METADATA_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
LEFTOVER_SECONDS = 3_600
# Streams of random numbers; they come before the index since numpy takes [seed, 5] and [seed, 5, 0] for one seed.
PATIENT, STUDY, PLACES, WORDS = 1, 2, 3, 4
PROCEDURE = {"AP": "CHEST (PORTABLE AP)", "PA": "CHEST (PA AND LAT)"}
POSITION = {"AP": "antero-posterior", "PA": "postero-anterior"}
PRIME = 9_999_991  # the largest below 10 million: multiplying by anything modulo it gives distinct ids


@dataclass(frozen=True)
class Study:
    """One study of one phantom patient, ready to be written."""

    patient: str
    study: str
    dicom: str
    split: str
    view: str
    date: str
    time: str
    findings: tuple[Finding, ...]
    labelled: bool
    report: str
    pixels: np.ndarray  # (resolution, resolution) uint8

    @property
    def folder(self) -> str:
        return f"files/p{self.patient[:2]}/p{self.patient}"

    @property
    def jpeg(self) -> str:
        return f"{self.folder}/s{self.study}/{self.dicom}.jpg"


def _identifier(leading: int, number: int, seed: int) -> str:
    return str(leading * 10_000_000 + (number * 6_700_417 + seed * 7_919 + 1_234_567) % PRIME)


def patient_studies(index: int, seed: int, resolution: int) -> Iterator[Study]:
    """The studies of one patient. They depend on (seed, index) alone, not on how many patients there are."""
    patient = np.random.default_rng([seed, PATIENT, index])
    anatomy, healthy = Anatomy.sample(patient), patient.random() < NORMAL_SHARE
    chronic = () if healthy else sample_chronic(patient)
    visits = patient.random()
    count = 1 + (visits < 0.1) + (visits < 0.02)
    first_year = 2110 + int(patient.random() * 80)
    person = "woman" if patient.random() < 0.5 else "man"
    for number in range(count):
        study = np.random.default_rng([seed, STUDY, index, number])
        acute = () if healthy else sample_acute(study, at_least=0 if chronic else 1)
        findings = chronic + acute
        view = "AP" if study.random() < (0.7 if acute else 0.4) else "PA"
        day = f"{1 + int(study.random() * 12):02d}{1 + int(study.random() * 28):02d}"
        clock = f"{int(study.random() * 24):02d}{int(study.random() * 60):02d}{int(study.random() * 60):02d}"
        dicom = study.integers(0, 2**32, 5, dtype=np.uint64)
        # Words have a generator of their own: other templates do not change the pictures.
        report = wording.report(findings, PROCEDURE[view], person, np.random.default_rng([seed, WORDS, index, number]))
        chest = Chest(deform(anatomy, findings), Pose.sample(study), resolution)
        # The generator of places starts anew for each study: what lasts stays where it was.
        draw(chest, findings, np.random.default_rng([seed, PLACES, index]), study)
        yield Study(
            patient=_identifier(1, index, seed),
            study=_identifier(5, index * 4 + number, seed),
            dicom="-".join(f"{int(part):08x}" for part in dicom),
            split=SPLIT_OF_25[index % len(SPLIT_OF_25)],
            view=view,
            date=f"{first_year + number}{day}",
            # MIMIC's StudyTime went through a float: 08:05:09.250 is 80509.25
            time=f"{float(clock) + round(study.random(), 3):.3f}",
            findings=findings,
            labelled=not (index in UNLABELLED and number == 0),
            report=report,
            pixels=chest.film(study),
        )


def _labels(study: Study) -> list[str]:
    values = dict.fromkeys(CHEXPERT, "")
    for finding in study.findings:
        values[finding.label] = "1.0" if finding.sure or values[finding.label] == "1.0" else "-1.0"
        if finding.kind == "Pneumonia":
            values["Lung Opacity"] = values["Lung Opacity"] or "1.0"
    if not any(finding.label != "Support Devices" for finding in study.findings):
        values["No Finding"] = "1.0"
    for name in ("Pleural Effusion", "Pneumothorax"):
        if not values[name] and "no pleural effusion or pneumothorax" in study.report.lower().replace("\n", ""):
            values[name] = "0.0"
    return [study.patient, study.study, *values.values()]


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    # No file name and no time in the gzip header: equal rows are equal bytes.
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, newline="") as text,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def _write_tables(folder: Path, studies: list[Study]) -> None:
    metadata, split = [], []
    for study in studies:
        rows, columns = study.pixels.shape
        metadata.append(
            [study.dicom, study.patient, study.study, PROCEDURE[study.view], study.view, rows, columns, study.date,
             study.time, PROCEDURE[study.view], POSITION[study.view], "Erect" if study.view == "PA" else ""]
        )  # fmt: skip
        split.append([study.dicom, study.study, study.patient, study.split])
    labels = [_labels(study) for study in studies if study.labelled]
    _write_csv(folder / f"{PREFIX}metadata.csv.gz", METADATA_COLUMNS, metadata)
    _write_csv(folder / f"{PREFIX}split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), split)
    for labeller in ("chexpert", "negbio"):
        _write_csv(folder / f"{PREFIX}{labeller}.csv.gz", ("subject_id", "study_id", *CHEXPERT), labels)
    (folder / "IMAGE_FILENAMES").write_text("".join(f"{study.jpeg}\n" for study in studies))
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as reports:
        for study in studies:
            reports.writestr(
                zipfile.ZipInfo(f"{study.folder}/s{study.study}.txt", ZIP_TIME), study.report, zipfile.ZIP_DEFLATED
            )


def _wanted(patients: int, seed: int, resolution: int) -> dict[str, int]:
    return {"version": VERSION, "patients": patients, "seed": seed, "resolution": resolution}


def is_complete(folder: Path, patients: int = PATIENTS, seed: int = 0, resolution: int = RESOLUTION) -> bool:
    """Whether the folder holds these phantoms, as this version of the generator writes them."""
    try:
        return json.loads((Path(folder) / VERSION_FILE).read_text()) == _wanted(patients, seed, resolution)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def write(folder: Path, patients: int = PATIENTS, seed: int = 0, resolution: int = RESOLUTION) -> Path:
    """Writes phantoms into `folder`, which must not exist yet, and returns it.

    All is written into a sibling folder which is then renamed: `folder` exists only when it is whole. The bytes
    depend on the arguments alone (and on the versions of numpy and Pillow). BadData if the folder is there and not
    empty, or if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadData(f"phantoms folder {folder} exists already: give another name or delete it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(folder), dir=folder.parent))
        try:
            _write_all(scratch, patients, seed, resolution)
            os.chmod(scratch, 0o755)  # mkdtemp's own mode would keep other users of a shared folder out
            os.rename(scratch, folder)  # fails if another process put something there meanwhile
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise BadData(
            f"phantoms folder {folder} cannot be written ({error.strerror}): "
            "give a folder you may write to, with 50 MB to spare"
        ) from error
    return folder


def _scratch_prefix(folder: Path) -> str:
    return f".{folder.name}.writing-"


def _write_all(scratch: Path, patients: int, seed: int, resolution: int) -> None:
    studies = sorted(
        (study for index in range(patients) for study in patient_studies(index, seed, resolution)),
        key=lambda study: (study.patient, study.study),
    )
    for study in studies:
        path = scratch / study.jpeg
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(study.pixels).save(path, "JPEG", quality=JPEG_QUALITY)
    _write_tables(scratch, studies)
    (scratch / VERSION_FILE).write_text(json.dumps(_wanted(patients, seed, resolution)) + "\n")


def ensure(folder: Path, patients: int = PATIENTS, seed: int = 0, resolution: int = RESOLUTION) -> Path:
    """The folder with these phantoms, written first if need be. Of several processes that ask at once, one writes.

    Phantoms that another version or other arguments wrote are replaced; any other folder is refused (BadData).
    """
    folder = Path(folder)
    if is_complete(folder, patients, seed, resolution):
        return folder
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder.parent / f".{folder.name}.lock", f"the phantoms in {folder}"))
        except OSError as error:
            raise BadData(f"phantoms folder {folder} cannot be written ({error.strerror}): give a folder you may write to") from error
        if is_complete(folder, patients, seed, resolution):  # another process wrote it while we waited
            return folder
        _delete_leftovers(folder)
        if (folder / VERSION_FILE).is_file():
            # Moved aside rather than deleted in place: nobody finds half a folder under the name.
            aside = Path(tempfile.mkdtemp(prefix=_scratch_prefix(folder), dir=folder.parent))
            os.rename(folder, aside / "old")
            shutil.rmtree(aside, ignore_errors=True)
        return write(folder, patients, seed, resolution)


def _delete_leftovers(folder: Path) -> None:
    """What a killed process left behind. The lock is held, so none of `ensure`'s is still being written; the hour is
    for a `write` that was called without it."""
    for leftover in folder.parent.glob(_scratch_prefix(folder) + "*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
