import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.measure_serving import Connection
from finetune.cli import main
from finetune.errors import ServeError
from finetune.predict.onnx_model import OnnxModel
from finetune.serve import server
from finetune.serve.server import bind, check_libraries, url_of
from tests.export.pictures import write_pictures
from tests.predict.one_chunk import label_images
from tests.serve.running import ask, page, running

PROGRAM = """
import sys, time
from contextlib import contextmanager
from finetune.cli import main
from finetune.serve import exported

class Slow(exported.ServedFile):
    @contextmanager
    def predictions(self):
        with super().predictions() as predict:
            yield lambda images: time.sleep(0.5) or predict(images)

exported.ServedFile = Slow
try:
    main(["serve", sys.argv[1], "--port", "0"])
finally:
    print([name for name in ("torch", "timm") if name in sys.modules])
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return sorted(write_pictures(tmp_path_factory.mktemp("images"), 3).rglob("*.*"))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model like an exported one: the softmax of the mean colour. An export would take seconds."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "height", "width", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [0.02]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"labels": json.dumps(["red", "green", "blue"]), "shorter_side": "32"})
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    onnx.save(model, path)
    return path


def test_a_file_is_served_with_the_digits_of_a_prediction(model_file, pictures):
    with running(server.open_model(model_file)) as url:
        status, answer = ask(url, *((each.name, each.read_bytes()) for each in [*pictures, pictures[0]]))
    table, _ = label_images(OnnxModel(model_file), [*pictures, pictures[0]])
    assert status == 200
    assert [image["label"] for image in answer["images"]] == table["label"]
    assert [f"{image['probability']:.4g}" for image in answer["images"]] == [f"{p:.4g}" for p in table["probability"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_the_request_in_work_and_without_torch(model_file, pictures, number):
    command = [sys.executable, "-c", PROGRAM, str(model_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        first = process.stdout.readline()
        assert first.startswith(f"{model_file} is served at http://127.0.0.1:"), first + process.stdout.read()
        url = next(word for word in first.split() if word.startswith("http"))
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(url, (pictures[0].name, pictures[0].read_bytes()))))
        thread.start()
        while not json.loads(page(url, "/health")[2])["images_in_work"]:
            time.sleep(0.02)
        process.send_signal(number)
        thread.join()
        printed = process.stdout.read().splitlines()
    assert [status for status, _ in answers] == [200]
    assert "label" in answers[0][1]["images"][0]
    assert process.returncode == 0
    assert printed == ["stopped", "[]"]
    with pytest.raises(OSError, match="refused"):
        Connection(url).get("/health")


def test_only_this_machine_reaches_the_server_by_default():
    with bind("127.0.0.1", 0) as bound:
        assert url_of(bound).startswith("http://127.0.0.1:")
    from typer.main import get_command

    from finetune.cli import app

    (host,) = [option for option in get_command(app).commands["serve"].params if option.name == "host"]
    assert host.default == "127.0.0.1"


def test_a_port_in_use_is_named_before_the_model_is_read(trained, write_run, tmp_path, monkeypatch, capsys):
    folder = write_run(trained(), tmp_path / "run")
    monkeypatch.setattr(server, "open_model", None)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["serve", str(folder), "--port", str(port)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: port {port} of 127.0.0.1 cannot be used (Address already in use); give another")


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ServeError, match=r"port 0 of 192\.0\.2\.1 cannot be used .*; give another --port or --host"):
        bind("192.0.2.1", 0)
    with pytest.raises(ServeError, match="there is no address"):
        bind("no such host", 0)


def test_an_address_of_the_sixth_version_is_in_brackets():
    try:
        bound = bind("::1", 0)
    except ServeError:
        pytest.skip("this machine has no IPv6")
    with bound:
        assert url_of(bound).startswith("http://[::1]:")


@pytest.mark.parametrize("module", sorted(server.LIBRARIES))
def test_a_missing_library_is_named_with_its_installation(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    name = server.LIBRARIES[module]
    with pytest.raises(ServeError, match=f"serving a model needs {name}; install the libraries: pip install {name}$"):
        check_libraries()
