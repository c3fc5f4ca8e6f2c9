import base64
import hashlib
import io
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import replace
from html import escape

import pytest
from PIL import Image

from experiments.measure_serving import Connection, form_of, load
from finetune.serve import app as served_app
from finetune.serve.networks import ServedNetworks
from tests.export.pictures import write_pictures
from tests.predict.damage import damaged_png
from tests.predict.one_chunk import label_images
from tests.serve.running import ask, page, running

EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of images of several shapes."""
    return sorted(write_pictures(tmp_path_factory.mktemp("images"), 6).rglob("*.*"))


@pytest.fixture(scope="module")
def model(trained):
    """A network of three classes, one of which has the name of an attack."""
    return replace(trained(), class_names=("a", EVIL, "ü"))


@pytest.fixture(scope="module")
def url(model):
    with running(ServedNetworks(model)) as address:
        yield address


def sent(paths):
    return [(path.name, path.read_bytes()) for path in paths]


def digits(value):
    """Return a number as `finetune predict` prints it."""
    return f"{value:.4g}"


def assert_equals_prediction(found, model, paths):
    """Check labels, order and digits against those of `finetune predict`."""
    table, _ = label_images(model, paths, top_k=2)
    assert [image["name"] for image in found] == [path.name for path in paths]
    for number, image in enumerate(found):
        assert image["label"] == image["top"][0]["label"] == table["label"][number]
        assert digits(image["probability"]) == digits(table["probability"][number])
        second = image["top"][1]
        assert second == {"label": table["label_2"][number], "probability": second["probability"]}
        assert digits(second["probability"]) == digits(table["probability_2"][number])


def test_images_get_the_labels_and_the_digits_of_a_prediction(url, model, pictures):
    status, answer = ask(url, *sent(pictures))
    assert status == 200
    assert_equals_prediction(answer["images"], model, pictures)
    assert [len(image["top"]) for image in answer["images"]] == [3] * 6


def test_an_ensemble_with_flips_is_served_like_a_prediction(averaged, pictures):
    model = averaged()
    with running(ServedNetworks(model)) as address:
        status, answer = ask(address, *sent(pictures))
    assert status == 200
    assert_equals_prediction(answer["images"], model, pictures)


def test_many_clients_get_the_answers_to_their_own_images(url, pictures):
    alone = [ask(url, file)[1]["images"][0] for file in sent(pictures)]
    seconds, errors, _ = load(url, sent(pictures), clients=20, requests=3)
    assert (len(seconds), errors) == (60, 0)
    connections = [Connection(url) for _ in range(20)]
    together: list[object] = [None] * 20

    def work(number):
        together[number] = connections[number].predict([sent(pictures)[number % 6]])[1]["images"][0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    assert together == [alone[number % 6] for number in range(20)]


def test_a_bad_image_fails_alone_with_its_reason(url, pictures):
    good = sent(pictures)
    status, answer = ask(url, good[0], ("notes.txt", b"no image"), ("bad.png", damaged_png()), good[1])
    assert status == 200
    first, text, damaged, last = answer["images"]
    assert (first["name"], last["name"]) == (good[0][0], good[1][0])
    assert "label" in first
    assert "label" in last
    assert text["name"] == "notes.txt"
    assert text["error"].startswith("not an image of a known format")
    assert set(damaged) == {"name", "error"}


@pytest.mark.parametrize(("content", "expected"), [(b"no image", 415), (b"", 422), (damaged_png(), 422)])
def test_a_request_without_any_image_has_the_status_of_the_reason(url, content, expected):
    status, answer = ask(url, ("one", content))
    assert status == expected
    assert answer["images"][0]["error"]


def post(url, body, headers):
    connection = Connection(url)
    connection._connection.request("POST", "/predict", body, headers)
    status, _, content = connection._read()
    connection.close()
    return status, json.loads(content)["detail"]


def test_a_request_that_is_not_a_form_says_what_to_send(url):
    status, said = post(url, b"{}", {"Content-Type": "application/json"})
    assert status == 415
    assert said.startswith("expected multipart/form-data, but application/json was sent; send a form with files in")


def test_a_form_without_the_field_says_what_to_send(url):
    body, kind = form_of([("a.png", b"")])
    status, said = post(url, body.replace(b'name="images"', b'name="picture"'), {"Content-Type": kind})
    assert status == 422
    assert said.startswith("there is no file in the field 'images'; send a form with files in the field 'images'")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_with_too_many_bytes_is_refused(url, monkeypatch, is_chunked):
    monkeypatch.setattr(served_app, "MOST_BYTES", 2**20)
    body, kind = form_of([("a.png", b"x" * 3 * 2**20)])
    given = (body[start : start + 2**16] for start in range(0, len(body), 2**16)) if is_chunked else body
    status, said = post(url, given, {"Content-Type": kind})
    assert (status, said) == (413, "the request has more than 1 MiB; send fewer or smaller images at once")


def test_more_images_than_there_are_places_are_refused_and_later_ones_are_labelled(model, pictures):
    held = threading.Event()

    class Held(ServedNetworks):
        @contextmanager
        def predictions(self):
            with super().predictions() as predict:
                yield lambda images: predict(images) if held.wait(20) else None

    files = sent(pictures)
    with running(Held(model), most_waiting=2) as url:
        status, answer = ask(url, *files[:3])
        assert (status, answer["detail"]) == (413, "3 images were sent, but at most 2 are accepted at once; send fewer")
        first: list[object] = []
        thread = threading.Thread(target=lambda: first.append(ask(url, *files[:2])))
        thread.start()
        while json.loads(page(url, "/health")[2])["images_in_work"] < 2:
            pass
        status, answer = ask(url, files[2])
        assert status == 503
        assert answer["detail"] == "2 of at most 2 images are waiting; repeat the request in a second"
        held.set()
        thread.join()
        assert [status for status, _ in first] == [200]
        assert ask(url, files[2])[0] == 200


def test_an_image_that_the_network_fails_on_has_its_reason(model, pictures):
    class Failing(ServedNetworks):
        @contextmanager
        def predictions(self):
            def fail(_images):
                raise RuntimeError("no memory")

            yield fail

    with running(Failing(model)) as url:
        status, answer = ask(url, sent(pictures)[0])
    assert status == 500
    assert answer["images"][0]["error"] == "the network fails on this image (RuntimeError: no memory)"


def test_the_state_names_the_model_and_its_classes(url):
    status, _, text = page(url, "/health")
    found = json.loads(text)
    assert status == 200
    assert (found["status"], found["model"], found["images_in_work"]) == ("ok", "runs/<mine>", 0)
    assert found["classes"] == ["a", EVIL, "ü"]


def test_the_page_shows_names_as_text_and_runs_its_own_script_alone(url):
    status, headers, text = page(url, "/")
    assert status == 200
    assert EVIL not in text
    assert escape(EVIL, quote=False) in text.replace("&#34;", '"')
    assert "runs/&lt;mine&gt;" in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in headers["content-security-policy"]
    assert "innerHTML" not in script
    assert re.findall(r"""(?:src|href)=["']([^"']+)""", text) == ["data:,", "docs"]
    assert "http" not in text


def test_the_description_of_the_api_needs_no_other_server(url):
    status, _, text = page(url, "/docs")
    assert status == 200
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    assert links
    assert [page(url, link)[0] for link in links] == [200] * len(links)
    described = json.loads(page(url, "/openapi.json")[2])
    form = described["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert list(form) == ["multipart/form-data"]
    assert set(described["paths"]) == {"/predict", "/health"}
    assert {"200", "413", "415", "422", "503"} == set(described["paths"]["/predict"]["post"]["responses"])


def test_narrow_and_tiny_images_are_labelled(url):
    files = []
    for size in ((1, 1), (3, 200), (500, 6)):
        content = io.BytesIO()
        Image.new("RGB", size, "red").save(content, "PNG")
        files.append((f"{size[0]}.png", content.getvalue()))
    status, answer = ask(url, *files)
    assert status == 200
    sums = [sum(each["probability"] for each in image["top"]) for image in answer["images"]]
    assert sums == pytest.approx([1, 1, 1], abs=1e-3)
