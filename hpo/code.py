"""Which code a study is run with: workers of one study must have the same, or their scores could not be compared."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

from hpo.errors import SearchError

PACKAGES = ("hpo", "trainers", "metrics", "storage")
KINDS = (".py", ".sql")
SHORT = 16  # hex digits


class OtherCode(SearchError):
    """A worker has another version of this program than the launch that the study was last run with."""

    def __init__(self, study: str, stored: str, own: str):
        self.study, self.stored, self.own = study, stored, own
        super().__init__(f"study {study!r} is run with code {stored}, this worker has {own}: install the version of the launch here, "
                         "or launch the study anew with this one")


@cache
def content_hash() -> str:
    """Of all modules and queries of the packages, as hex; asked for once a process."""
    digest, root = sha256(), Path(__file__).parent.parent
    for package in PACKAGES:
        for file in sorted(path for path in (root / package).rglob("*") if path.suffix in KINDS):
            digest.update(f"\0{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:SHORT]


def check(study: str, stored: str | None) -> None:
    """Raises OtherCode. stored: None for a study of before this was noted."""
    if stored is not None and stored != content_hash():
        raise OtherCode(study, stored, content_hash())
