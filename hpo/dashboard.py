"""`python -m hpo.dashboard` opens optuna-dashboard on loopback over the study store."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import warnings
import webbrowser
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from hpo.command import Parser, one_line_errors, store_url, whole
from hpo.errors import BadSetting

HOST, PORT = "127.0.0.1", 8080


class Quiet(WSGIRequestHandler):
    """No line on the screen for every request."""

    def log_message(self, format, *arguments) -> None:
        pass


class Server(ThreadingMixIn, WSGIServer):
    """One thread a request: a page asks for many things at once. Threads end with the process."""

    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # a browser that went away is no error


def application(url: str):
    """optuna-dashboard as a WSGI application over the store at `url`, with the pictures of trials' notes."""
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    from hpo.notes import artifact_folder
    from storage.store import open_store

    store = open_store(url)
    artifact_folder().mkdir(parents=True, exist_ok=True)
    return wsgi(store.optuna, artifact_store=FileSystemArtifactStore(artifact_folder()))


def listen(host: str, port: int, app) -> WSGIServer:
    """A server that listens already. Raises BadSetting where it cannot."""
    try:
        return make_server(host, port, app, server_class=Server, handler_class=Quiet)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise BadSetting(f"--port {port} on --host {host} cannot be listened on ({said}): take another, or --port 0 for any free one") from error


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def has_browser() -> bool:
    """Whether a window can open; without a screen Python would start a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpo.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default=None, help="postgresql:// URL of the store (default: the embedded server)")
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST}, this machine only)")
    parser.add_argument("--port", type=whole, default=PORT, help=f"port to listen on, 0 for a free one (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="only serve the page, do not open it")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module="optuna")  # what importances think of a young study is no news
    try:
        with listen(given.host, given.port, application(store_url(given.storage))) as server:
            shown = "127.0.0.1" if given.host in ("0.0.0.0", "") else given.host
            url = f"http://{shown}:{server.server_port}/dashboard/"
            if not is_loopback(given.host):
                print(f"warning: --host {given.host}: whoever reaches this address may read, change and delete all studies, there is no password",
                      file=sys.stderr)
            print(f"optuna-dashboard on {url} (Ctrl-C ends it)", flush=True)
            if not given.no_browser and has_browser():
                webbrowser.open(url)
            server.serve_forever()
    except KeyboardInterrupt:
        pass  # the way in which it is meant to end
    return 0


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
