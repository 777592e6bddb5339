"""Deals patients of the train split to train, twin and second twin, and chooses the validate pictures that quality is
measured against. What is learned from a side is up to others; the test split is not looked at."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainers.data.mimic import check_present
from trainers.data.picture import Decoded, Picture, decode, probe
from trainers.data.resolution import Resolution
from trainers.errors import BadData, CorruptPicture

SIDES = ("train", "twin", "second_twin")
FEWEST_PATIENTS = 10  # a side; below, an interval by patients says nothing
ENOUGH_PATIENTS = 50  # a side; below, the user is warned
VALIDATE_LIMIT = 1_000


@dataclass(frozen=True)
class Sides:
    """Three equally many pictures of three disjoint sets of equally many patients.

    Row k of one side and row k of another belong to patients of one triple, who have equally many pictures here.
    """

    train: tuple[Picture, ...]
    twin: tuple[Picture, ...]
    second_twin: tuple[Picture, ...]

    @property
    def patients(self) -> int:
        """How many patients each side has."""
        return len({picture.patient for picture in self.train})

    def to_json(self) -> dict[str, list[dict[str, str]]]:
        return {side: [picture.to_json() for picture in getattr(self, side)] for side in SIDES}


@dataclass(frozen=True)
class Dealt:
    """The sides, their pixels ((n, H, W) uint8 a side, by the side's name), and what was left out."""

    sides: Sides
    pixels: dict[str, np.ndarray]
    corrupt: tuple[Path, ...]
    duplicates: int  # pictures that were pixel-identical to one that was kept
    digests: frozenset[bytes] = field(repr=False)  # of every kept picture's pixels


def deal(pictures: Sequence[Picture], per_side: int, seed: int, resolution: Resolution) -> Dealt:
    """Deals `per_side` pictures to each side. Depends on the set of pictures and the arguments, on no order on disk.

    Patients are sorted by their number of pictures (ties by the seed) and cut into triples; each triple is dealt in
    random order, and random triples are taken until the sides are full. Of each triple every side takes as many
    pictures as its poorest patient has, so the sides are equal at every step; the last triple may be cut shorter.

    No picture occurs twice at this resolution, on one side or on two: of a patient's identical pictures the first is
    kept, and a patient who shares a picture with one already dealt is left out wholly, since the two ids are probably
    one person. A triple that lost a patient is left out too, and the next takes its place. Only pictures of triples
    that are taken are decoded. A smaller `per_side` gives the beginning of what a larger one gives.

    BadData if per_side is below 1 or more than there is, if a side gets fewer than FEWEST_PATIENTS patients, if files
    are missing, or if too many are corrupt (see `picture.probe`).
    """
    if per_side < 1:
        raise BadData(f"--train-images={per_side}: a side needs at least 1 picture: raise it")
    of_patient = _by_patient(pictures)
    if len(of_patient) < 3 * FEWEST_PATIENTS:
        raise BadData(
            f"{len(of_patient)} patients with usable pictures in the train split, {3 * FEWEST_PATIENTS} are needed "
            f"({FEWEST_PATIENTS} for each of three sides): give a larger data folder"
        )
    triples = _triples(of_patient, np.random.default_rng(seed))
    most = sum(min(len(of_patient[patient]) for patient in triple) for triple in triples)
    if most < per_side:
        _refuse_size(per_side, most)
    dealing = _Dealing(resolution)
    for triple in triples:
        if dealing.filled == per_side:
            break
        dealing.take([of_patient[patient] for patient in triple], per_side - dealing.filled)
    if dealing.corrupt:
        probe(_searched(pictures))
    if dealing.filled < per_side:
        _refuse_size(per_side, dealing.filled)
    dealt = dealing.result()
    if dealt.sides.patients < FEWEST_PATIENTS:
        raise BadData(
            f"--train-images={per_side} gives {dealt.sides.patients} patients a side, at least {FEWEST_PATIENTS} "
            "are needed: raise it, or give a data folder with more patients"
        )
    return dealt


def warning(sides: Sides) -> str | None:
    """What the intervals will be worth if the sides have fewer than ENOUGH_PATIENTS patients each, in one line."""
    if sides.patients >= ENOUGH_PATIENTS:
        return None
    wider = (ENOUGH_PATIENTS / sides.patients) ** 0.5  # a standard error by patients goes with 1 / sqrt(patients)
    return (
        f"only {sides.patients} patients a side: intervals come from patients and will be "
        f"about {wider:.1f} times as wide as with {ENOUGH_PATIENTS}, so weak memorization "
        "will not be told from none; raise --train-images"
    )


def validate_pictures(pictures: Sequence[Picture], limit: int, seed: int, resolution: Resolution, dealt: Dealt) -> Decoded:
    """At most `limit` pictures of the validate split, in an order that the seed decides, no two alike at this
    resolution and none like a picture of a side.

    BadData if they are of fewer than FEWEST_PATIENTS patients, if files are missing, or if too many are corrupt.
    """
    candidates = sorted((picture for picture in pictures if picture.split == "validate"), key=_key)
    order = np.random.default_rng(seed).permutation(len(candidates))
    kept, pixels, corrupt, seen = [], [], [], set(dealt.digests)
    for index in order:
        if len(kept) == limit:
            break
        picture = candidates[index]
        check_present([picture])
        try:
            decoded = decode(picture, resolution)
        except CorruptPicture as error:
            corrupt.append(error.path)
            continue
        digest = _digest(decoded)
        if digest not in seen:
            seen.add(digest)
            kept.append(picture)
            pixels.append(decoded)
    if corrupt:
        probe(_searched(pictures))
    patients = len({picture.patient for picture in kept})
    if patients < FEWEST_PATIENTS:
        raise BadData(
            f"{patients} patients with usable pictures in the validate split, at least {FEWEST_PATIENTS} are "
            "needed to measure quality against: give a larger data folder"
        )
    return Decoded(tuple(kept), np.stack(pixels), tuple(corrupt))


class _Dealing:
    """The sides while they are filled, triple by triple."""

    def __init__(self, resolution: Resolution):
        self.resolution = resolution
        self.rows: list[list[tuple[Picture, np.ndarray, bytes]]] = [[], [], []]
        self.corrupt: list[Path] = []
        self.duplicates = 0
        self.seen: set[bytes] = set()

    @property
    def filled(self) -> int:
        return len(self.rows[0])

    def take(self, triple: list[list[Picture]], room: int) -> None:
        check_present([picture for patient in triple for picture in patient])
        usable, seen = [], set(self.seen)
        for patient in triple:
            rows = self._distinct(patient)
            if any(digest in seen for _, _, digest in rows):
                self.duplicates += sum(digest in seen for _, _, digest in rows)
                return
            seen.update(digest for _, _, digest in rows)
            usable.append(rows)
        size = min(room, *(len(rows) for rows in usable))
        for side, rows in zip(self.rows, usable):
            side.extend(rows[:size])
            # Also of those that were cut off: they are pictures of patients who are on this side.
            self.seen.update(digest for _, _, digest in rows if size)

    def _distinct(self, patient: list[Picture]) -> list[tuple[Picture, np.ndarray, bytes]]:
        rows = {}
        for picture in patient:
            try:
                pixels = decode(picture, self.resolution)
            except CorruptPicture as error:
                self.corrupt.append(error.path)
                continue
            digest = _digest(pixels)
            self.duplicates += digest in rows
            rows.setdefault(digest, (picture, pixels, digest))
        return list(rows.values())

    def result(self) -> Dealt:
        sides = Sides(*(tuple(picture for picture, _, _ in rows) for rows in self.rows))
        pixels = {name: np.stack([row[1] for row in rows]) for name, rows in zip(SIDES, self.rows)}
        return Dealt(sides, pixels, tuple(self.corrupt), self.duplicates, frozenset(self.seen))


def _key(picture: Picture) -> tuple[str, str, str]:
    return picture.patient, picture.study, picture.picture


def _searched(pictures: Sequence[Picture]) -> list[Picture]:
    """All of the folder's that a search may read: whether too many are corrupt is a question of the folder, not of a split."""
    return sorted((picture for picture in pictures if picture.split in ("train", "validate")), key=_key)


def _by_patient(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    of_patient = defaultdict(list)
    for picture in sorted(pictures, key=_key):
        if picture.split == "train":
            of_patient[picture.patient].append(picture)
    return dict(of_patient)


def _triples(of_patient: dict[str, list[Picture]], rng: np.random.Generator) -> list[list[str]]:
    """Patients by threes of nearly equally many pictures, each three and the triples in random order."""
    patients = sorted(of_patient)
    patients = [patients[index] for index in rng.permutation(len(patients))]
    patients.sort(key=lambda patient: -len(of_patient[patient]))  # stable: ties stay in random order
    triples = [patients[start : start + 3] for start in range(0, len(patients) - 2, 3)]
    triples = [[triple[index] for index in rng.permutation(3)] for triple in triples]
    return [triples[index] for index in rng.permutation(len(triples))]


def _refuse_size(per_side: int, most: int) -> None:
    raise BadData(
        f"--train-images={per_side}: this data folder has at most {most} pictures for each of three sides: "
        f"lower it to {most}"
    )


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(pixels.tobytes()).digest()
