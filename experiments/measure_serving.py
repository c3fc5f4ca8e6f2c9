"""Measure `finetune serve` under load on this machine, next to the bare forward pass.

    python -m experiments.measure_serving runs/mine --images DIR --clients 1 20 --requests 20

The server is a process of its own, on the loopback address. Each client is a thread that sends one image after another
on one connection. All of them share the processor with the server, as on any small machine.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data import files_below
from finetune.serve.server import open_model

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the repository."""

MOST_IMAGES = 64
"""Largest number of different images that are sent."""

REPETITIONS = 20
"""Number of times that the forward pass is timed."""


class Connection:
    """A client's connection to a server, which stays open."""

    def __init__(self, url: str) -> None:
        """Connect to a server at `http://HOST:PORT`."""
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)

    def get(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
        """Return the status, the headers and the content of a page."""
        self._connection.request("GET", path)
        return self._read()

    def predict(self, files: Sequence[tuple[str, bytes]]) -> tuple[int, Any]:
        """Send files, given by name and content; return the status and the answer."""
        body, kind = form_of(files)
        self._connection.request("POST", "/predict", body, {"Content-Type": kind})
        status, _, content = self._read()
        return status, json.loads(content)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _read(self) -> tuple[int, Mapping[str, str], bytes]:
        reply = self._connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()


def form_of(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return a form with files, given by name and content, in the field `images`, and its content type (RFC 7578)."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def load(url: str, files: Sequence[tuple[str, bytes]], clients: int, requests: int) -> tuple[list[float], int, float]:
    """Let several clients send images one after another.

    Args:
        url: address of the server.
        files: images, by name and content.
        clients: number of clients, each a thread.
        requests: number of requests of each client.

    Returns:
        Seconds of each request that was answered; number of errors; seconds in all.
    """
    seconds: list[float] = []
    errors: list[object] = []
    start = threading.Barrier(clients + 1)

    def work(client: int) -> None:
        connection = Connection(url)
        start.wait()
        for number in range(requests):
            begun = time.perf_counter()
            try:
                status, _ = connection.predict([files[(client * requests + number) % len(files)]])
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)
                connection = Connection(url)
                continue
            if status == 200:
                seconds.append(time.perf_counter() - begun)
            else:
                errors.append(status)
        connection.close()

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return seconds, len(errors), time.perf_counter() - begun


def time_bare(model: Path, files: Sequence[tuple[str, bytes]], sizes: Sequence[int]) -> list[str]:
    """Return rows with the median time of decoding an image, and of a forward pass of some numbers of images."""
    served = open_model(model)
    prepared = [served.prepare(content) for _, content in files]
    decoding = _median(lambda: served.prepare(files[0][1]))
    rows = [f"| decoding and resizing one image | {1e3 * decoding:.1f} ms |"]
    with served.predictions() as predict:
        for size in sizes:
            images = (prepared * size)[:size]
            plural = "image" if size == 1 else "images"
            taken = _median(partial(predict, images))
            rows.append(f"| bare forward pass of {size} {plural} | {1e3 * taken:.1f} ms |")
    return rows


def _median(work: Callable[[], object]) -> float:
    """Return the median wall time of a function, after one call that is not timed, in seconds."""
    work()
    taken = []
    for _ in range(REPETITIONS):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def main() -> None:
    """Time the forward pass, start a server, and put it under load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder, or an ONNX file that export wrote")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to send")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 20], help="numbers of clients")
    parser.add_argument("--requests", type=int, default=20, help="requests of each client")
    arguments = parser.parse_args()
    paths = sorted(files_below(arguments.images))
    chosen = paths[:: max(1, len(paths) // MOST_IMAGES)][:MOST_IMAGES]
    files = [(Path(path).name, Path(path).read_bytes()) for path in chosen]
    print(f"{len(files)} images of {np.mean([len(content) for _, content in files]) / 1e3:.0f} kB on average\n")
    print("| | median |\n|---|---|")
    print("\n".join(time_bare(arguments.model, files, arguments.clients)))
    command = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "serve", str(arguments.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        load(url, files, 1, 3)  # the first passes are slower
        print("\n| clients | requests | errors | requests a second | median | p99 |\n|---|---|---|---|---|---|")
        for clients in arguments.clients:
            seconds, errors, total = load(url, files, clients, arguments.requests)
            middle, worst = np.percentile(seconds, [50, 99])
            print(
                f"| {clients} | {clients * arguments.requests} | {errors} | {len(seconds) / total:.0f} "
                f"| {1e3 * middle:.0f} ms | {1e3 * worst:.0f} ms |"
            )
        process.send_signal(signal.SIGTERM)
        print(f"\n{process.stdout.read().strip()}; exit status {process.wait()}")


if __name__ == "__main__":
    main()
