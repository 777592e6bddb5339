"""What the dashboard shows of a trial: its note with words, scores and generated pictures. Never a patient's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hpo import home
from hpo.inner_loop import Result
from hpo.study import Asked, Search
from metrics.scores import SCORES

COLUMNS, ROWS = 8, 3  # generated pictures in a note
LEAST_SIDE = 96  # pixels a picture is shown with


def artifact_folder() -> Path:
    """Where the dashboard finds the pictures of notes."""
    return home.data_root() / "artifacts"


def grid(pictures: np.ndarray, columns: int = COLUMNS, rows: int = ROWS) -> Image.Image:
    """The first pictures (n, R, R) uint8 side by side, small ones enlarged."""
    side = pictures.shape[1]
    shown = max(side, LEAST_SIDE)
    sheet = Image.new("L", (columns * shown, rows * shown))
    for place, picture in enumerate(pictures[: columns * rows]):
        tile = Image.fromarray(np.asarray(picture)).resize((shown, shown), Image.Resampling.NEAREST if side < shown else Image.Resampling.LANCZOS)
        sheet.paste(tile, (place % columns * shown, place // columns * shown))
    return sheet


def write(search: Search, asked: Asked, result: Result) -> None:
    """Upload the grid as an Optuna artifact and save the note."""
    from optuna.artifacts import FileSystemArtifactStore, upload_artifact
    from optuna_dashboard import save_note

    folder = artifact_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".{asked.id}.generated.png"
    grid(result.pictures).save(file)
    try:
        artifact = upload_artifact(artifact_store=FileSystemArtifactStore(folder), file_path=str(file), study_or_trial=asked.trial)
    finally:
        file.unlink(missing_ok=True)
    save_note(asked.trial, text(search, asked, result, f"/artifacts/{search.id}/{asked.id}/{artifact}"))


def text(search: Search, asked: Asked, result: Result, picture: str) -> str:
    rows = "\n".join(f"| {name} | {estimate.value:.4g} | {estimate.low:.4g} … {estimate.high:.4g} | {SCORES[name].meaning} |"
                     for name, estimate in result.scores.items())
    return (f"**{asked.candidate.words}**\n\n{result.trainable:,} trainable parameters ({result.trainable_share:.3%} of the U-Net), "
            f"{result.seconds['total']:.0f} s, training loss {result.training_loss:.4f}\n\n"
            f"| score | value | 95 % interval | what it is |\n|---|---|---|---|\n{rows}\n\n"
            f"Generated from captions of patients that were not learned from:\n\n![generated pictures]({picture})\n")
