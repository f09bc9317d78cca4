"""A real S3 server in a process of its own, behind a proxy that counts requests and makes some of them fail."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

#: Takes the number of a request (from 0), its method and its path, and names what happens to it: "500", "503", "slow", "cut" or None.
Fault = Callable[[int, str, str], str | None]

Options = dict[str, Any]

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Start moto's S3 server; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("moto's server did not start") from None
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


class Proxy:
    """An HTTP proxy in front of one server.

    Attributes
    ----------
    address : str
    requests : Counter
        How many of each method.
    sent : int
        Bytes of the answers' bodies.
    fault : Fault
        What goes wrong; nothing by default.
    """

    def __init__(self, upstream: str) -> None:
        self.lock = threading.Lock()
        self.reset()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, upstream.removeprefix("http://")))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self, fault: Fault = lambda number, method, path: None) -> None:
        """Count from 0 again, with another fault."""
        with self.lock:
            self.requests: Counter[str] = Counter()
            self.sent = 0
            self.fault = fault

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(proxy: Proxy, upstream: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body go in two writes, between which Nagle's algorithm would wait for the other side's delayed answer.
        disable_nagle_algorithm = True

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with proxy.lock:
                number = sum(proxy.requests.values())
                proxy.requests[self.command] += 1
                fault = proxy.fault(number, self.command, self.path)
            if fault in ("500", "503"):
                self.answer(int(fault), {}, _ERRORS[fault] if self.command != "HEAD" else b"")
                return
            if fault == "slow":
                time.sleep(0.3)
            connection = http.client.HTTPConnection(upstream, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
                self.answer(answer.status, headers, answer.read(), cut=fault == "cut")
            finally:
                connection.close()

        def answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            # The answer to HEAD says how long the body would be.
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            body = body[: len(body) // 2] if cut else body
            with proxy.lock:
                proxy.sent += len(body)
            self.wfile.write(body)
            if cut:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


_ERRORS = {
    "500": b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    with s3_server() as address:
        proxy = Proxy(address)
        yield proxy
        proxy.close()


@pytest.fixture
def options(proxy: Proxy) -> Options:
    """Options for s3fs, with which botocore does not try again by itself."""
    proxy.reset()
    once = {"retries": {"max_attempts": 0}}
    return {"key": "k", "secret": "s", "endpoint_url": proxy.address, "config_kwargs": once}


@pytest.fixture
def bucket(options: Options) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", **options).mkdir(name)
    return f"s3://{name}"


def upload(folder: Path, url: str, options: Options) -> str:
    fsspec.filesystem("s3", **options).put(f"{folder}/", f"{url}/", recursive=True)
    return url
