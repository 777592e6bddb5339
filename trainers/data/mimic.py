"""Reads a folder in MIMIC-CXR-JPG's layout (release 2.x, whose files are named 2.0.0) as pictures with captions.
Decodes no picture."""

from __future__ import annotations

import csv
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.data import reports
from trainers.data.picture import Picture
from trainers.errors import BadData

PREFIX = "mimic-cxr-2.0.0-"
REPORTS = "mimic-cxr-reports.zip"
FRONTAL = ("AP", "PA")
SPLITS = ("train", "validate", "test")
LOOKED_FOR = (
    20_000  # pictures; the real set has 240,000 frontal ones, often on a network disk: a look at each takes minutes
)
# What ids may look like. They become paths, so nothing else is let through.
_NUMBER, _DICOM = re.compile(r"\d{4,12}"), re.compile(r"[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*")


@dataclass(frozen=True)
class Scan:
    """The pictures of a folder that can be used, in order of patient, study and picture, and what was left out."""

    pictures: tuple[Picture, ...]
    without_caption: int  # pictures whose report has neither impression nor findings
    without_report: int  # pictures of studies that have no report
    other_views: int  # pictures of views that were not asked for


def read(root: Path, views: Sequence[str] = FRONTAL) -> tuple[Picture, ...]:
    """The pictures of a MIMIC-CXR-JPG folder that can be used; see `scan`, which also tells what was left out."""
    return scan(root, views).pictures


def scan(root: Path, views: Sequence[str] = FRONTAL) -> Scan:
    """Reads metadata, split and reports of the folder, and looks whether the pictures are there if they are at most
    LOOKED_FOR. Of a larger folder, call `check_present` with those that are going to be used.

    The caption is the report's impression, else its findings; a picture without one is left out and counted. BadData,
    naming the file and the way out, if the folder is not there, lacks metadata, split, reports or pictures, or if one
    of the tables is corrupt or has other columns.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadData(f"data folder {root} does not exist: give a folder in MIMIC-CXR-JPG's layout")
    split_of = dict(_rows(_table(root, "split"), ("dicom_id", "split")))
    if not (root / "files").is_dir():
        raise BadData(f"data folder {root} lacks its pictures (files/pXX/pXXXXXXXX/...): copy the JPG files too")
    found, other_views = {}, 0
    metadata = _table(root, "metadata")
    for dicom, patient, study, view in _rows(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        if view not in views:
            other_views += 1
            continue
        if not (_NUMBER.fullmatch(patient) and _NUMBER.fullmatch(study) and _DICOM.fullmatch(dicom)):
            raise BadData(
                f"{metadata}: '{dicom}', '{patient}', '{study}' are no MIMIC ids (dicom, subject, study): "
                "copy the csv anew"
            )
        found[dicom] = (patient, study, view, _split(root, split_of, dicom))
    if not found:
        raise BadData(f"{metadata} names no picture of view {' or '.join(views)}: give a folder with frontal pictures")
    _refuse_patients_in_two_splits(root, found.values())
    scan = _with_captions(root, found, other_views)
    if len(scan.pictures) <= LOOKED_FOR:
        check_present(scan.pictures)
    return scan


def report_files(root: Path, pictures: Iterable[Picture]) -> list[Path]:
    """The text files that these pictures' captions were read from; none where the reports are in a zip, which is not opened.

    BadData where there are no reports at all.
    """
    if _are_zipped(root):
        return []
    home = _unpacked_home(root)
    return [home / f"{_study_path(picture.patient, picture.study)}.txt" for picture in pictures]


def _study_path(patient: str, study: str) -> str:
    """Where a study is under the folder of the pictures, and with .txt under that of the reports."""
    return f"files/p{patient[:2]}/p{patient}/s{study}"


def _with_captions(root: Path, found: dict[str, tuple[str, str, str, str]], other_views: int) -> Scan:
    pictures, without_caption, without_report = [], 0, 0
    captions: dict[str, str | None] = {}
    with _open_reports(root) as texts:
        for dicom, (patient, study, view, split) in sorted(
            found.items(), key=lambda item: (item[1][0], item[1][1], item[0])
        ):
            folder = _study_path(patient, study)
            if study not in captions:
                text = texts.read(folder + ".txt")
                captions[study] = None if text is None else reports.caption(text)
            caption = captions[study]
            if caption:
                pictures.append(Picture(root / folder / f"{dicom}.jpg", patient, study, dicom, view, split, caption))
            elif caption is None:
                without_report += 1
            else:
                without_caption += 1
    if without_report == len(found):
        raise BadData(
            f"data folder {root}: not one of {len(captions)} studies has a report in {REPORTS} or files/: "
            "copy MIMIC-CXR's reports"
        )
    if not pictures:
        raise BadData(
            f"data folder {root}: not one of {len(captions)} reports has an impression or findings: "
            "copy the reports anew"
        )
    return Scan(tuple(pictures), without_caption, without_report, other_views)


def check_present(pictures: Sequence[Picture]) -> None:
    """BadData if files of these pictures are missing, saying how many and the first. One look on disk a picture."""
    missing = [picture.path for picture in pictures if not picture.path.is_file()]
    if missing:
        raise BadData(
            f"{len(missing)} of {len(pictures)} pictures that {PREFIX}metadata.csv.gz names are missing "
            f"(the first: {missing[0]}): "
            "complete the download"
        )


def _table(root: Path, name: str) -> Path:
    """The csv's path; people unpack them, so both are taken."""
    for suffix in (".csv.gz", ".csv"):
        if (path := root / f"{PREFIX}{name}{suffix}").is_file():
            return path
    raise BadData(f"data folder {root} lacks {PREFIX}{name}.csv.gz: give a folder in MIMIC-CXR-JPG's layout")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named columns of a csv, row by row, without holding the file."""
    try:
        with (
            gzip.open(path, "rt", newline="")
            if path.suffix == ".gz"
            else open(path, newline="", encoding="utf-8") as text
        ):
            table = csv.reader(text)
            header = next(table, [])
            if lacking := [name for name in columns if name not in header]:
                raise BadData(
                    f"{path} lacks column {', '.join(lacking)}, it has {', '.join(header) or 'none'}: copy the csv anew"
                )
            places = [header.index(name) for name in columns]
            for row in table:
                if len(row) != len(header):
                    raise BadData(
                        f"{path}, line {table.line_num}: {len(row)} columns instead of {len(header)}: copy the csv anew"
                    )
                yield tuple(row[place] for place in places)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{path} cannot be read ({error}): copy the csv anew") from error


def _split(root: Path, split_of: dict[str, str], dicom: str) -> str:
    split = split_of.get(dicom)
    if split not in SPLITS:
        value = "no row" if split is None else f"split '{split}'"
        raise BadData(
            f"data folder {root}: {PREFIX}split.csv.gz has {value} for picture {dicom}, "
            f"it must be {', '.join(SPLITS)}: copy it anew"
        )
    return split


def _refuse_patients_in_two_splits(root: Path, found: Iterable[tuple[str, str, str, str]]) -> None:
    home: dict[str, str] = {}
    for patient, _, _, split in found:
        if home.setdefault(patient, split) != split:
            raise BadData(
                f"data folder {root}: patient {patient} is in the splits {home[patient]} and {split}, "
                "one is allowed: split by patient"
            )


class _ZippedReports:
    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise BadData(f"{path} cannot be read ({error}): copy it anew") from error
        self._path, self._names = path, frozenset(self._zip.namelist())

    def read(self, name: str) -> str | None:
        if name not in self._names:
            return None
        try:
            return self._zip.read(name).decode("utf-8", errors="replace")
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise BadData(f"{self._path} cannot be read at {name} ({error}): copy it anew") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()


class _UnpackedReports:
    def __init__(self, root: Path):
        self._root = root

    def read(self, name: str) -> str | None:
        try:
            return (self._root / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadData(f"report {self._root / name} cannot be read ({error.strerror}): copy it anew") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def _are_zipped(root: Path) -> bool:
    return (root / REPORTS).is_file()


def _open_reports(root: Path) -> _ZippedReports | _UnpackedReports:
    """The zip if there is one, else the tree of text files that it unpacks to."""
    return _ZippedReports(root / REPORTS) if _are_zipped(root) else _UnpackedReports(_unpacked_home(root))


def _unpacked_home(root: Path) -> Path:
    """The folder that the reports were unpacked to: the data folder itself, one in it, or one beside it."""
    for home in (root, root / "mimic-cxr-reports", root.parent / "mimic-cxr-reports"):
        if next(home.glob("files/p*/p*/s*.txt"), None):
            return home
    raise BadData(
        f"data folder {root} lacks the reports ({REPORTS}, or files/pXX/pXXXXXXXX/sXXXXXXXX.txt): "
        "copy them there from MIMIC-CXR"
    )
