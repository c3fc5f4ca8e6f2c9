import io

import numpy as np
import pytest
from PIL import Image

from finetune.serve import uploads
from finetune.serve.uploads import FORMATS, Refused, check_upload


def encoded(size=(40, 30), kind="PNG", mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, size).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in {"AVIF", "MPO"}])
def test_images_of_common_formats_are_accepted(kind):
    check_upload(encoded(kind=kind))


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (lambda: b"", 422, "the file is empty"),
        (lambda: b"a text", 415, "not an image of a known format; send one of AVIF, BMP, GIF, JPEG"),
        (lambda: encoded(kind="EPS"), 415, "EPS is not accepted; send one of AVIF"),
        (
            lambda: encoded((8001, 8000), mode="1"),
            413,
            "the image has 8001 x 8000 pixels, but at most 64 million are accepted; make it smaller",
        ),
        (
            lambda: encoded((2, 201)),
            422,
            "the image has 2 x 201 pixels, but one side may be at most 100 times the other; crop it",
        ),
    ],
    ids=["empty", "text", "EPS", "pixels", "elongated"],
)
def test_a_file_is_refused_with_its_status_and_reason(content, status, reason):
    with pytest.raises(Refused) as refused:
        check_upload(content())
    assert refused.value.status == status
    assert refused.value.reason.startswith(reason)


def test_an_image_that_its_decoder_refuses_to_open_is_too_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Refused, match="the image has more than 64 million pixels") as refused:
        check_upload(encoded())
    assert refused.value.status == 413


def test_an_image_at_the_limits_is_accepted():
    check_upload(encoded((8000, 8000), mode="1"))
    check_upload(encoded((2, 200)))


def test_a_tiff_of_many_channels_is_accepted_up_to_the_values_of_the_largest_colour_image(monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    content = io.BytesIO()
    tifffile.imwrite(content, np.zeros((13, 20, 30), np.uint16), photometric="minisblack", planarconfig="separate")
    check_upload(content.getvalue())
    monkeypatch.setattr(uploads, "MOST_PIXELS", 1000)
    with pytest.raises(Refused, match="30 x 20 pixels of 13 channels, but at most 0 million values") as refused:
        check_upload(content.getvalue())
    assert refused.value.status == 413
