"""A server in a thread of this process, on a free port of the loopback address."""

import threading
from contextlib import contextmanager

from experiments.measure_serving import Connection
from finetune.serve.batching import Batcher
from finetune.serve.server import bind, make_server, url_of


@contextmanager
def running(model, **limits):
    """Serve a model until the context ends; give the address."""
    bound = bind("127.0.0.1", 0)
    url = url_of(bound)
    is_up = threading.Event()
    with Batcher(model, **limits) as batcher:
        server = make_server(model, batcher, "runs/<mine>", is_up.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        assert is_up.wait(30)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join()


def ask(url, *files):
    """Send files, given by name and content; return the status and the answer."""
    connection = Connection(url)
    try:
        return connection.predict(files)
    finally:
        connection.close()


def page(url, path):
    """Return the status, the headers and the text of a page."""
    connection = Connection(url)
    try:
        status, headers, content = connection.get(path)
        return status, headers, content.decode(errors="replace")
    finally:
        connection.close()
