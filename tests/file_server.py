"""A file server that truncates, stalls, redirects, ignores ranges, or sends wrong headers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """The served content, the misbehaviour of the server, and the requests it received."""

    url: str = ""
    content: bytes = b""
    tag: str = '"one"'
    ranges: bool = True
    cut: int | None = None  # bytes of an answer after which the connection is closed
    stall: int | None = None  # or nothing more comes
    length: str = ""  # what it says of the length, if not the truth
    encoding: str = ""
    away: str = ""  # where it redirects to
    files: dict[str, bytes] = field(default_factory=dict)  # by path; the others are `content`
    pace: float = 0  # seconds before each answer
    states: list[int] = field(default_factory=list)  # answered first
    asked: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def file_server(content: bytes) -> Iterator[FileServer]:
    """A server of one file, or of `files` by path, in a thread of this process."""
    control = FileServer(content=content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            control.asked.append(self.headers.get("Range", ""))
            if control.states:
                self.send_error(control.states.pop(0))
                return
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
                self.end_headers()
                return
            if self.path.startswith("/away"):
                self.send_response(307)
                self.send_header("Location", control.away)
                self.end_headers()
                return
            if self.path.startswith("/loop"):
                self.send_response(302)
                self.send_header("Location", "/loop")
                self.end_headers()
                return
            body, start = control.files.get(self.path, control.content), 0
            time.sleep(control.pace)
            asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            fresh = self.headers.get("If-Range", control.tag) == control.tag
            if control.ranges and asked and fresh:
                start = int(asked)
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            rest = body[start:]
            self.send_header("ETag", control.tag)
            if control.encoding:
                self.send_header("Content-Encoding", control.encoding)
            self.send_header("Content-Length", control.length or str(len(rest)))
            self.end_headers()
            if control.stall is not None:
                self.wfile.write(rest[: control.stall])
                self.wfile.flush()
                control.stop.wait(10)
            else:
                self.wfile.write(rest[: control.cut])

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    control.url = f"http://127.0.0.1:{httpd.server_port}"
    yield control
    control.stop.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()
