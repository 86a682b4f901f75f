"""`visus watch`: the page of a run on this machine's own address, while the run goes on.

It reads run folders and writes nothing. It answers requests from this machine only, and for pages of its runs only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import pydantic

from visus.errors import UsageError, VisusError
from visus.machine_load import describe_load
from visus.reporting.page import render, render_overview
from visus.reporting.reading import clean, read_run
from visus.reporting.thumbnails import Draw, Key, open_pictures
from visus.reporting.wording import count, decimal, duration, isolated, percent

HOST = "127.0.0.1"
_READ = (
    "config.yaml",
    "metrics.jsonl",
    "split.csv",
    "environment.json",
    "summary.json",
    "evaluation.json",
    "audit.json",
    "profile.json",
    "predictions.csv",
    "predictions.parquet",
)
"""The files that a page is made of; checkpoints change with the metrics."""
_MOST_CURVES = 7
_SILENT_SECONDS = 20
"""A run in the middle of an epoch tells of itself more often than that."""
_MOST = 10**12
_Count = Annotated[int, pydantic.Field(ge=1, le=_MOST)]


class Watcher:
    """Pages of the runs in `folder`, or of the one run that it is; made anew when a run's files have changed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(
                f"{folder}: expected the folder of a run, or a folder with runs in it, found none"
            )
        self._pages: dict[str, tuple[str, str]] = {}
        self._draws: dict[str, Draw] = {}
        self._lock = Lock()

    @property
    def single(self) -> bool:
        """Whether the folder is that of one run."""
        return (self.folder / "config.yaml").is_file()

    def runs(self) -> dict[str, Path]:
        """The folders of runs by their names, the one written last first."""
        if self.single:
            return {self.folder.name: self.folder}
        try:
            found = [each for each in self.folder.iterdir() if (each / "config.yaml").is_file()]
        except OSError:
            return {}
        return {each.name: each for each in sorted(found, key=written_at, reverse=True)}

    def page(self, path: str) -> tuple[str, str] | None:
        """The mark (it changes with the page) and the text of the page at `path`; `None` where there is none."""
        shown = self._shown(path)
        if shown is None:
            return None
        folders, overview = shown
        mark = _mark(folders)
        with self._lock:
            kept = self._pages.get(path)
            if kept is None or kept[0] != mark:
                kept = self._pages[path] = (mark, self._render(folders, mark, overview=overview))
        return kept

    def now(self, path: str) -> str | None:
        """How far the epochs are of the runs of the page at `path` that go on now, in a line each; `None` where it is no page."""
        shown = self._shown(path)
        if shown is None:
            return None
        folders, overview = shown
        told = ((each.name, describe_progress(each)) for each in folders)
        return "\n".join(f"{_in_a_line(name)}: {line}" if overview else line for name, line in told if line)

    def _shown(self, path: str) -> tuple[list[Path], bool] | None:
        """The folders that the page at `path` is about, and whether it is the overview; `None` where there is no such page."""
        runs = self.runs()
        if path == "/":
            return list(runs.values()), not self.single
        name = unquote(path.removeprefix("/runs/")) if path.startswith("/runs/") else None
        return ([runs[name]], False) if name in runs else None

    def _render(self, folders: Iterable[Path], mark: str, *, overview: bool) -> str:
        results = [read_run(each) for each in folders]
        if not overview:
            return render(results, live=mark, pictures=self._pictures)
        links = [f"/runs/{quote(each.path.name, safe='')}" for each in results]
        return render_overview(results, links, mark, most_curves=_MOST_CURVES)

    def _pictures(self, config: Mapping[str, Any]) -> Draw:
        """What draws pictures of the data; each is drawn once, however often the page is made."""
        known = json.dumps([config.get(name) for name in ("data", "val", "val_fraction", "split_seed")])
        if known not in self._draws:
            self._draws[known] = _remembering(open_pictures(config))
        return self._draws[known]


def serve(watcher: Watcher, port: int, say: Callable[[str], object]) -> None:
    """Answer until interrupted; `UsageError` where the port is taken."""
    with open_server(watcher, port) as server:
        say(f"http://{HOST}:{server.server_port}/ shows {watcher.folder}; stop with Ctrl-C")
        server.serve_forever()


def open_server(watcher: Watcher, port: int) -> ThreadingHTTPServer:
    """A server for the pages of `watcher` on this machine's own address; port 0 takes any that is free."""

    class Handler(_Handler):
        pages = watcher

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--port {port}: cannot be had ({reason}); choose another, or 0 for any") from None
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    pages: Watcher

    def do_GET(self) -> None:
        # A name that a foreign page had pointed at this machine must not read what is here.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in ("127.0.0.1", "localhost", "::1"):
            return self._answer(HTTPStatus.FORBIDDEN, "for this machine only")
        path = urlsplit(self.path).path
        if path == "/machine":
            return self._answer(HTTPStatus.OK, describe_load())
        try:
            if path.startswith("/now/"):
                told = self.pages.now(path.removeprefix("/now"))
                return self._answer(HTTPStatus.NOT_FOUND if told is None else HTTPStatus.OK, told or "")
            found = self.pages.page(path)
        # A folder may go, or a file be damaged, while it is read.
        except (OSError, VisusError, ValueError, KeyError, TypeError) as error:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"the run cannot be read now: {error}")
        if found is None:
            return self._answer(HTTPStatus.NOT_FOUND, "there is no such run, or not any more")
        mark, text = found
        if self.headers.get("If-None-Match") == f'"{mark}"':
            return self._answer(HTTPStatus.NOT_MODIFIED, "")
        return self._answer(HTTPStatus.OK, text, kind="text/html", mark=mark)

    def _answer(
        self, status: HTTPStatus, text: str, kind: str = "text/plain", mark: str | None = None
    ) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if mark:
            self.send_header("ETag", f'"{mark}"')
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: what a browser asks for every other second is no news."""


def written_at(folder: Path) -> float:
    """When a run was last written to, in seconds since 1970."""
    return max((time for _, time, _ in _stamps(folder)), default=0) / 1e9


class _Told(pydantic.BaseModel):
    """What `progress.json` holds; somebody else may have written it."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)

    epoch: _Count
    epochs: _Count
    iteration: _Count
    iterations: _Count | None
    seconds: float = pydantic.Field(gt=0, le=_MOST)
    loss: float | None = pydantic.Field(ge=-_MOST, le=_MOST)
    correct: int = pydantic.Field(ge=0, le=_MOST)
    n: _Count


def describe_progress(folder: Path) -> str:
    """How far the epoch is that a run is in the middle of, and since when nothing more was heard; empty where none is told."""
    path = folder / "progress.json"
    try:
        ago = max(0.0, time.time() - path.stat().st_mtime)
        told = _Told.model_validate_json(path.read_bytes())
    # It may be that of another version; then the page tells of whole epochs only.
    except (OSError, pydantic.ValidationError):
        return ""
    parts = [
        f"epoch {told.epoch} of {told.epochs}, step {told.iteration} of {told.iterations or '?'}",
        f"loss {decimal(told.loss) or 'not finite'}",
        f"accuracy {percent(min(1.0, told.correct / told.n))}",
        f"{count(told.n / told.seconds)} images/s",
    ]
    if ago > _SILENT_SECONDS:
        parts.append(f"last heard of {duration(ago)} ago")
    elif told.iterations and told.iterations >= told.iteration:
        left = told.seconds * (told.iterations - told.iteration) / told.iteration
        parts.append(f"about {duration(left)} more of this epoch")
    return ", ".join(parts)


def _in_a_line(name: str) -> str:
    return isolated(clean(" ".join(name.split())))


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for name in _READ:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        found.append((name, status.st_mtime_ns, status.st_size))
    return found


def _mark(folders: Iterable[Path]) -> str:
    stamps = [(str(each), _stamps(each)) for each in folders]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def _remembering(draw: Draw) -> Draw:
    known: dict[Key, str] = {}

    def draw_new(keys: Iterable[Key]) -> dict[Key, str]:
        wanted = list(keys)
        known.update(draw([key for key in wanted if key not in known]))
        return {key: known[key] for key in wanted if key in known}

    return draw_new
