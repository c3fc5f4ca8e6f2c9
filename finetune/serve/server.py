"""Listen on an address and answer requests until a signal stops the server."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ServeError, missing_libraries

if TYPE_CHECKING:
    import uvicorn

    from finetune.serve.batching import Batcher, ServedModel

LIBRARIES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "fastapi_offline": "fastapi-offline",
}
"""Modules of the extra `serve`, with the names of their distributions."""

PATIENCE_SECONDS = 30
"""Time that requests have to end after a signal."""


def check_libraries() -> None:
    """Check that the extra `serve` is installed, without importing it.

    Raises:
        ServeError: a library is missing.
    """
    missing = [distribution for module, distribution in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ServeError(missing_libraries("serving a model", missing))


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address and does not listen yet; port 0 is any free one.

    Raises:
        ServeError: the address is in use, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(f"there is no address {host} ({error.strerror}); give another --host") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ServeError(
            f"port {port} of {host} cannot be used ({error.strerror}); give another --port or --host"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_model(path: Path) -> "ServedModel[Any]":
    """Return the model of a run folder, or that of an ONNX file, which is read without PyTorch.

    Raises:
        FinetuneError: there is no such model, or it is damaged.
    """
    if path.suffix == ".onnx":
        from finetune.serve.exported import ServedFile

        return ServedFile(path)
    from finetune.runs.folder import RunFolder
    from finetune.serve.networks import ServedNetworks

    return ServedNetworks(RunFolder(path).read_model())


def make_server(
    model: "ServedModel[Any]", batcher: "Batcher[Any]", name: str, started: Callable[[], None]
) -> "uvicorn.Server":
    """Return a server, which is run with `run(sockets=[...])`.

    Args:
        model: the model.
        batcher: the thread that predicts with it.
        name: name of the model, for people.
        started: called when requests are answered.
    """
    import uvicorn

    from finetune.serve.app import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    return Server(
        uvicorn.Config(
            create_app(model, batcher, name),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=PATIENCE_SECONDS,
        )
    )


def serve(path: Path, bound: socket.socket, tell: Callable[[str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM; requests that have begun are answered first.

    Args:
        path: a run folder, or an exported file.
        bound: socket of the address.
        tell: called with a sentence when the server starts, and when it has stopped.

    Raises:
        FinetuneError: there is no such model, or it is damaged.
    """
    from finetune.serve.batching import Batcher

    model = open_model(path)
    with Batcher(model) as batcher, _signals_end_quietly():
        sentence = f"{path} is served at {url_of(bound)} ({len(model.class_names)} classes); stop it with Ctrl+C"
        server = make_server(model, batcher, str(path), lambda: tell(sentence))
        server.run(sockets=[bound])
    tell("stopped")


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Let the process end with status 0 after a signal: uvicorn raises it again when it has stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
