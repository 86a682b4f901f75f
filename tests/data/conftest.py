"""A server of files for tests of sources at an address."""

import http.server
import re
import threading

import pytest


class Ranged(http.server.SimpleHTTPRequestHandler):
    """As web servers do and Python's own does not: parts of files, asked for by a range of bytes."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        first, last = 0, len(content) - 1
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and not self.server.refuses:
            first, last = int(match[1]), min(int(match[2] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "none" if self.server.refuses else "bytes")
        self.send_header("ETag", f'"{hash(content)}"')
        self.end_headers()
        if self.command == "GET":
            self.server.sent.append(last + 1 - first)
            self.wfile.write(content[first : last + 1])
        return None

    do_HEAD = do_GET

    def log_message(self, *arguments):
        """Nobody reads it."""


@pytest.fixture
def web():
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranged)
    server.files, server.sent, server.refuses = {}, [], False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
