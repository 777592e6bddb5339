"""A network between worker and database that can be made bad: a TCP port in front of the server's Unix socket, in threads of this process."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter

CHUNK = 1 << 16
DELAY_SECONDS = 0.3  # of each piece in each direction, while it delays
#: What a client says whose answer comes after a commit: each of the store's functions is a transaction of its own, and Optuna ends its own with COMMIT.
COMMITS = {"start": b"FROM peft_pareto.start(", "take": b"FROM peft_pareto.take(", "record_rung": b"SELECT peft_pareto.record_rung(",
           "tell": b"SELECT peft_pareto.tell(", "COMMIT": b"COMMIT\0"}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: closing sends RST


class Proxy:
    """Forwards bytes between clients of `port` on loopback and the Unix socket `server`; a context manager.

    mode: "pass"; "delay", each piece comes DELAY_SECONDS later; "refuse", nobody listens; "silence", connections stay open and nothing comes
    through them any more, also after the mode has changed: then they are reset.
    to_cut: so many of the next statements are cut in the middle; to_lose: by the names of COMMITS, so many come to the server whole, and the connection is cut
    in place of passing its answer on. cuts, lost: how many were.
    """

    def __init__(self, server: str):
        self.server = server
        self.mode, self.changed = "pass", threading.Condition()
        self.pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.to_cut, self.cuts = 0, 0
        self.to_lose: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.unanswered: dict[tuple[socket.socket, socket.socket], str] = {}  # of which the answer is going to be lost
        self.listener: socket.socket | None = None
        self.port = 0

    def __enter__(self) -> Proxy:
        self.listen()
        return self

    def __exit__(self, *raised: object) -> None:
        self.set("refuse")

    def listen(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen(64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def set(self, mode: str) -> None:
        with self.changed:  # so that what waits in a silence finds its pair reset
            before, self.mode = self.mode, mode
            if mode == "refuse" and self.listener is not None:
                with contextlib.suppress(OSError):
                    self.listener.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that accepts
                self.listener.close()
                self.listener = None
            if mode == "refuse" or before == "silence":
                for pair in list(self.pairs):
                    self.reset(pair)
            if before == "refuse" and mode != "refuse":
                self.listen()
            self.changed.notify_all()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            try:
                upstream.connect(self.server)
            except OSError:  # the server is away
                close(client)
                upstream.close()
                continue
            pair = (client, upstream)
            self.pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(target=self.pump, args=(source, target, pair), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(CHUNK):
                with self.changed:
                    while self.mode == "silence" and pair in self.pairs:
                        self.changed.wait()
                    if pair not in self.pairs:  # else what was said in the silence could be the statement that is to be cut now
                        break
                    cut = self.to_cut > 0 and source is pair[0]
                    if cut:
                        self.to_cut, self.cuts = self.to_cut - 1, self.cuts + 1
                    elif source is pair[0] and (name := self.commits(piece)) is not None:
                        self.unanswered[pair] = name
                    elif source is pair[1] and (name := self.unanswered.pop(pair, None)) is not None:
                        self.to_lose[name] -= 1
                        self.lost[name] += 1
                        break
                if self.mode == "delay":
                    time.sleep(DELAY_SECONDS)
                if cut:
                    target.sendall(piece[: len(piece) // 2])
                    break
                target.sendall(piece)
        self.reset(pair)

    def commits(self, piece: bytes) -> str | None:
        """Which of COMMITS a client says there whose answer is to be lost."""
        return next((name for name, words in COMMITS.items() if self.to_lose[name] > 0 and words in piece), None)

    def reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        if pair in self.pairs:
            self.pairs.discard(pair)
            self.unanswered.pop(pair, None)
            for end in pair:
                close(end)
            with self.changed:
                self.changed.notify_all()


def close(end: socket.socket) -> None:
    """With RST where the protocol has one, whatever still waits in the buffers."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RD)  # wakes the thread that reads
    end.close()
