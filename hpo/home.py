"""Where things of a search lie: under the user's data folder, or under --out."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from storage.embedded import HOME_VARIABLE, data_root


def phantoms_folder() -> Path:
    return data_root() / "phantoms"


def cache_folder() -> Path:
    return data_root() / "cache"


def study_folder(out: str | Path, study: str) -> Path:
    """The study's folder under --out. Names may have any character; two different names never share a folder."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", study).strip("._")
    plain = safe == study
    return Path(out) / (safe if plain else f"{safe or 'study'}-{sha256(study.encode()).hexdigest()[:8]}")


def logs_folder(out: str | Path, study: str) -> Path:
    """Where the study's workers log."""
    return study_folder(out, study) / "logs"


__all__ = ["HOME_VARIABLE", "cache_folder", "data_root", "logs_folder", "phantoms_folder", "study_folder"]
