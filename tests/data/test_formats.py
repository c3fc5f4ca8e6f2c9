"""Formats that Pillow alone does not read: DICOM, HEIC; animations; and what a missing library is answered with."""

import builtins
import io

import numpy as np
import pytest
from PIL import Image, features

from finetune.data import load_images, native_size, read_image, why_unreadable
from finetune.data.kinds import describe_kinds
from finetune.data.scanning import scan
from finetune.reading import AS_STORED, Reading


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(pixels, bits=16, interpretation="MONOCHROME2", **attributes):
    """A DICOM file of these pixels (height, width) or (height, width, 3)."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    content = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    content.Rows, content.Columns = pixels.shape[:2]
    content.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        content.PlanarConfiguration = 0
    content.PhotometricInterpretation = interpretation
    content.BitsAllocated = 8 * pixels.dtype.itemsize
    content.BitsStored = min(bits, content.BitsAllocated)
    content.HighBit = content.BitsStored - 1
    content.PixelRepresentation = int(pixels.dtype.kind == "i")
    content.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(content, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, content)
    return buffer.getvalue()


def pixels(source, **reading):
    return np.asarray(read_image(source, reading=Reading(**reading)))


def said(source, reading=AS_STORED):
    return describe_kinds([each.kind for each in scan([source], reading)], reading)


def reason(source):
    (found,) = why_unreadable([source])
    return found


STORED = np.array([[0, 1000, 2000], [3000, 3500, 4000]], dtype=np.uint16)


def test_dicom_has_the_values_of_the_modality():
    source = dicom(STORED, 12, RescaleSlope=2, RescaleIntercept=-1000)
    # -1000, 1000, 3000, 5000, 6000, 7000: Hounsfield units of a scanner that stores half of them
    assert pixels(source, range=(-1000, 4100))[..., 0].tolist() == [[0, 100, 200], [255, 255, 255]]
    assert native_size(source) == (3, 2)


def test_dicom_of_signed_values_is_read():
    stored = np.array([[-1000, 0], [100, 1550]], dtype=np.int16)
    assert pixels(dicom(stored), range=(-1000, 1550))[..., 0].tolist() == [[0, 100], [110, 255]]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # PS3.3 C.11.2.1.2.1: ((x - (c - 1/2)) / (w - 1) + 1/2) * 255, with c = 2000 and w = 11
        ("LINEAR", [[0, 13, 115], [140, 166, 255]]),
        # PS3.3 C.11.2.1.3.2: ((x - c) / w + 1/2) * 255
        ("LINEAR_EXACT", [[0, 12, 104], [128, 151, 243]]),
    ],
)
def test_the_window_of_a_dicom_file_is_its_range_and_that_is_said(function, expected):
    stored = np.array([[0, 1995, 1999], [2000, 2001, 2005]], dtype=np.uint16)
    source = dicom(stored, 12, WindowCenter=2000, WindowWidth=11, VOILUTFunction=function)
    assert pixels(source)[..., 0].tolist() == expected
    assert said(source)[0].startswith("1 image is scaled by the window that each file names; --set image.window=false")


def test_of_several_windows_the_first_is_used():
    one = dicom(STORED, 12, WindowCenter=2000, WindowWidth=2041)
    several = dicom(STORED, 12, WindowCenter=[2000, 40], WindowWidth=[2041, 400])
    np.testing.assert_array_equal(pixels(several), pixels(one))


def test_a_range_that_is_asked_for_goes_before_the_window():
    source = dicom(STORED, 12, WindowCenter=2000, WindowWidth=2041)
    assert pixels(source, range=(0, 5100))[..., 0].tolist() == [[0, 50, 100], [150, 175, 200]]
    assert pixels(source, window=False)[..., 0].tolist() == [[0, 64, 128], [191, 223, 255]]
    assert said(source, Reading(range=(0, 5100))) == []


def test_in_monochrome1_the_smallest_value_is_white():
    source = dicom(STORED, 12, "MONOCHROME1")
    assert pixels(source, range=(0, 5100))[..., 0].tolist() == [[255, 205, 155], [105, 80, 55]]
    shallow = dicom(np.array([[0, 10, 255]], dtype=np.uint8), 8, "MONOCHROME1")
    assert pixels(shallow)[..., 1].tolist() == [[255, 245, 0]]


def test_colours_of_dicom_are_red_green_and_blue():
    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    source = dicom(values, 8, "RGB")
    np.testing.assert_array_equal(pixels(source), values)
    assert said(source) == []


def test_a_palette_of_dicom_is_looked_up():
    colours = {
        f"{colour}PaletteColorLookupTable{part}": value
        for number, colour in enumerate(("Red", "Green", "Blue"))
        for part, value in (
            ("Descriptor", [3, 0, 16]),
            ("Data", np.array([0, 100 << 8, (number + 1) << 8], dtype=np.uint16).tobytes()),
        )
    }
    source = dicom(np.array([[0, 1, 2]], dtype=np.uint8), 8, "PALETTE COLOR", **colours)
    assert pixels(source).tolist() == [[[0, 0, 0], [100, 100, 100], [1, 2, 3]]]


def test_several_frames_of_dicom_are_refused_in_a_sentence():
    source = dicom(np.zeros((6, 4), dtype=np.uint16), Rows=2, NumberOfFrames=3)
    assert reason(source) == (
        "it has 3 frames, but a file with one image is expected; save each frame as a file of its own"
    )


def test_compressed_dicom_without_a_decoder_names_the_command_that_installs_one():
    pydicom = pytest.importorskip("pydicom")
    source = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    source.PixelData = pydicom.encaps.encapsulate([b"nothing here"])
    source.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, source)
    found = reason(buffer.getvalue())
    assert found.startswith("its pixels are compressed as JPEG-LS Lossless")
    assert "pip install pylibjpeg" in found


def test_dicom_without_an_image_is_told():
    assert reason(dicom(STORED, PixelData=None, Rows=None)) == "it has no image"


SMOOTH = Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2))


def test_heic_is_read_like_the_picture_that_was_saved():
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(SMOOTH).save(buffer, quality=-1)
    source = buffer.getvalue()
    np.testing.assert_allclose(pixels(source), np.asarray(SMOOTH), atol=2)
    assert said(source) == []
    assert native_size(source) == (64, 48)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_by_pillow_alone():
    np.testing.assert_allclose(pixels(encoded(SMOOTH, "AVIF", quality=100)), np.asarray(SMOOTH), atol=3)


@pytest.mark.parametrize(("kind", "name"), [("GIF", "GIF"), ("WEBP", "WebP"), ("PNG", "APNG")])
def test_of_an_animation_the_first_frame_is_read_and_that_is_said(kind, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    source = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.unique(pixels(source).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]
    assert said(source) == [f"1 image is animated ({name}): the first frame is read"]


def test_colours_of_16_bits_in_a_png_lose_their_lower_half_and_that_is_said():
    codecs = pytest.importorskip("imagecodecs")
    values = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 1000
    source = bytes(codecs.png_encode(values))
    np.testing.assert_array_equal(pixels(source), values >> 8)
    assert "of which the upper 8 are read" in said(source)[0]


@pytest.fixture
def without(monkeypatch):
    """A function that makes the import of a library fail as if it were not installed."""

    def remove(name):
        own = builtins.__import__

        def refuse(wanted, *rest):
            if wanted.partition(".")[0] == name:
                raise ImportError(f"No module named '{name}'")
            return own(wanted, *rest)

        monkeypatch.setattr(builtins, "__import__", refuse)

    return remove


def test_a_stack_without_tifffile_names_the_command_that_installs_it(without):
    frames = [Image.new("L", (8, 6), level) for level in (10, 20)]
    source = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    without("tifffile")
    assert reason(source) == "this kind of TIFF needs tifffile and imagecodecs: pip install tifffile imagecodecs"
    assert reason(encoded(frames[0], "TIFF")) is None


def test_dicom_without_pydicom_names_the_command_that_installs_it(without):
    without("pydicom")
    assert reason(bytes(128) + b"DICM" + bytes(100)) == "DICOM needs pydicom: pip install pydicom"


def test_heic_without_pillow_heif_names_the_command_that_installs_it(without):
    without("pillow_heif")
    content = b"\0\0\0\x18ftypheic" + bytes(100)
    assert reason(content) == "HEIC needs pillow-heif: pip install pillow-heif"


def test_files_that_cannot_be_read_are_listed_next_to_those_that_can(tmp_path):
    for label, level in (("a", 10), ("b", 200)):
        (tmp_path / label).mkdir()
        for number in range(6):
            Image.new("RGB", (8, 8), (level, number, 0)).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "scan.dcm").write_bytes(dicom(np.zeros((6, 4), dtype=np.uint16), Rows=2, NumberOfFrames=3))
    (tmp_path / "b" / "text.jpg").write_text("no image")
    listed = {file.path.rpartition("/")[2]: file.reason for file in load_images(str(tmp_path)).unreadable}
    assert listed["text.jpg"] == "not an image of a known format"
    assert listed["scan.dcm"].startswith("it has 3 frames")
