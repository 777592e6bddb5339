"""`python -m hpo.dashboard` opens optuna-dashboard on loopback over the study store."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from wsgiref.simple_server import WSGIRequestHandler, make_server

from hpo.command import one_line_errors
from hpo.errors import BadSetting

HOST, PORT = "127.0.0.1", 8080


class Quiet(WSGIRequestHandler):
    """No line on the screen for every request."""

    def log_message(self, format, *arguments) -> None:
        pass


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hpo.dashboard", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--storage", default=None, help="postgresql:// URL of the store (default: the embedded server)")
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default: {HOST}, this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen on, 0 for a free one (default: {PORT})")
    parser.add_argument("--no-browser", action="store_true", help="only serve the page, do not open it")
    given = parser.parse_args(arguments)
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    from hpo.notes import artifact_folder
    from storage import embedded
    from storage.store import open_store

    store = open_store(given.storage or embedded.start())
    artifact_folder().mkdir(parents=True, exist_ok=True)
    application = wsgi(store.optuna, artifact_store=FileSystemArtifactStore(artifact_folder()))
    try:
        server = make_server(given.host, given.port, application, handler_class=Quiet)
    except (OSError, OverflowError) as error:
        raise BadSetting(f"--port {given.port} on {given.host} cannot be listened on ({error}): take another, or 0 for any free one") from error
    url = f"http://{given.host}:{server.server_port}/dashboard/"
    print(f"optuna-dashboard on {url} (Ctrl-C ends it)", flush=True)
    if not given.no_browser:
        webbrowser.open(url)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
