import io
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from finetune.cache import list_entries
from finetune.data import Pixels, decoding, pixels, read_image
from finetune.errors import DataError
from finetune.progress import no_progress
from finetune.work import Work
from tests.path_table import table_of_paths

pytestmark = pytest.mark.usefixtures("empty_cache")

SIZES = ((32, 32), (40, 32), (36, 50), (8, 5), (100, 70), (33, 64))


def noise(number):
    width, height = SIZES[number % len(SIZES)]
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(number):
    buffer = io.BytesIO()
    noise(number).save(buffer, "PNG" if number % 2 else "JPEG")
    return buffer.getvalue()


def write(folder, numbers):
    paths = [str(folder / f"{number}.image") for number in numbers]
    for path, number in zip(paths, numbers, strict=True):
        Path(path).write_bytes(encoded(number))
    return paths


def bytes_of(paths):
    return sum(Path(path).stat().st_size for path in paths)


def table_of(rows):
    return Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature(decode=False)}))


@pytest.fixture
def paths(tmp_path):
    """Images of several sizes, JPEG and PNG."""
    return write(tmp_path, range(12))


@pytest.fixture
def decoded(monkeypatch):
    """The sources that were decoded, in order."""
    sources = []

    def read(source, *settings):
        sources.append(source)
        return read_image(source, *settings)

    monkeypatch.setattr(decoding, "read_image", read)
    return sources


def cached(table, side=16):
    images = Pixels(table, side)
    return images, images.cache(no_progress)


def same(images, expected):
    return all(np.array_equal(one, np.asarray(other)) for one, other in zip(images, expected, strict=True))


@pytest.mark.parametrize("block", [256, 5])
def test_kept_images_are_the_decoded_ones_in_any_order(paths, monkeypatch, block):
    monkeypatch.setattr(pixels, "BLOCK", block)
    images, work = cached(table_of_paths(paths))
    expected = [read_image(path, 16) for path in paths]
    assert images.is_cached
    assert len(images) == 12
    assert same(images.read(range(12)), expected)
    assert same(images.read([7, 0, 7, 11]), [expected[index] for index in (7, 0, 7, 11)])
    assert work == Work(decoded_images=12, decoded_bytes=bytes_of(paths))


def test_images_that_come_as_bytes_are_kept_too(paths):
    rows = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    images, work = cached(table_of(rows))
    assert same(images.read(range(12)), [read_image(path, 16) for path in paths])
    assert work.decoded_bytes == bytes_of(paths)


def test_images_that_are_not_kept_are_the_same(paths):
    images = Pixels(table_of_paths(paths), 16)
    assert not images.is_cached
    assert same(images.read([4, 1]), [read_image(paths[index], 16) for index in (4, 1)])


def test_kept_images_are_found_again_and_nothing_is_decoded(paths, decoded):
    first, _ = cached(table_of_paths(paths))
    expected = first.read(range(12))
    decoded.clear()
    again, work = cached(table_of_paths(paths))
    assert work == Work(cache_hits=12)
    assert same(again.read(range(12)), expected)
    assert decoded == []


def test_each_image_is_decoded_once_and_a_few_more_to_see_how_much_space_they_take(tmp_path, decoded):
    paths = write(tmp_path, range(40))
    images, _ = cached(table_of_paths(paths))
    images.read(range(40))
    assert len(set(map(str, decoded))) == 40
    assert len(decoded) <= 40 + pixels.SAMPLED


def test_keeping_twice_does_nothing_more(paths, decoded):
    images, _ = cached(table_of_paths(paths))
    decoded.clear()
    assert images.cache(no_progress) == Work()
    assert decoded == []


def test_the_same_images_elsewhere_and_under_other_names_are_found(paths, tmp_path):
    cached(table_of_paths(paths))
    (tmp_path / "elsewhere").mkdir()
    moved = [str(tmp_path / "elsewhere" / f"{number}") for number in range(12)]
    for old, new in zip(paths, moved, strict=True):
        Path(old).rename(new)
    assert cached(table_of_paths(moved))[1] == Work(cache_hits=12)


def test_a_file_with_new_content_of_the_same_size_and_time_is_decoded_anew(tmp_path):
    path, times = tmp_path / "0.bmp", (1_000_000_000, 1_000_000_000)
    made = []
    for colour in ("red", "blue"):
        Image.new("RGB", (20, 20), colour).save(path)
        os.utime(path, times)
        images, work = cached(table_of_paths([str(path)]))
        made.append((work.decoded_images, path.stat().st_size, tuple(images.read([0])[0][3, 3].tolist())))
    assert made == [(1, 1254, (255, 0, 0)), (1, 1254, (0, 0, 255))]


def test_the_same_images_in_another_order_are_read_in_that_order(paths):
    cached(table_of_paths(paths))
    images, work = cached(table_of_paths(paths[::-1]))
    assert work.decoded_images == 12
    assert same(images.read(range(12)), [read_image(path, 16) for path in paths[::-1]])


def test_another_shorter_side_is_another_entry(paths):
    small, large = cached(table_of_paths(paths), 16)[0], cached(table_of_paths(paths), 40)[0]
    assert min(small.read([4])[0].shape[:2]) < min(large.read([4])[0].shape[:2])
    assert cached(table_of_paths(paths), 16)[1] == Work(cache_hits=12)
    assert len(list_entries()) == 2


def test_several_tables_are_read_as_one_and_share_entries_with_each_alone(tmp_path, decoded):
    paths = write(tmp_path, range(11))
    tables = [table_of_paths(paths[:4]), table_of_paths(paths[4:5]), table_of_paths(paths[5:])]
    cached(tables[0])
    images, work = cached(tables)
    assert (work.cache_hits, work.decoded_images) == (4, 7)
    assert len(images) == 11
    expected = [read_image(path, 16) for path in paths]
    decoded.clear()
    assert same(images.read(range(11)), expected)
    assert same(images.read([10, 4, 0, 5, 3]), [expected[index] for index in (10, 4, 0, 5, 3)])
    assert [cached(table)[1].cache_hits for table in tables] == [4, 1, 6]
    assert decoded == []


def test_an_empty_table_among_several_changes_nothing(paths):
    table = table_of_paths(paths)
    images, work = cached([table, table.select([])])
    assert work.decoded_images == 12
    assert len(images) == 12
    assert same(images.read([11]), [read_image(paths[11], 16)])


def test_images_that_are_too_large_for_the_cache_are_read_from_their_files(paths, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "1e-6")
    images, work = cached(table_of_paths(paths))
    assert not images.is_cached
    assert work == Work()
    assert same(images.read(range(12)), [read_image(path, 16) for path in paths])
    assert list_entries() == []


def test_images_stay_readable_where_the_cache_is_cleared_meanwhile(paths, empty_cache):
    images, _ = cached(table_of_paths(paths))
    for file in empty_cache.rglob("*"):
        if file.is_file():
            file.unlink()
    assert same(images.read(range(12)), [read_image(path, 16) for path in paths])


def test_a_damaged_entry_is_decoded_anew(paths, empty_cache):
    cached(table_of_paths(paths))
    (file,) = empty_cache.rglob("pixels/*/pixels")
    os.truncate(file, 1000)
    images, work = cached(table_of_paths(paths))
    assert work.decoded_images == 12
    assert same(images.read(range(12)), [read_image(path, 16) for path in paths])
    assert images.is_cached


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_broken_image_is_named(paths, is_cached):
    table = table_of_paths(paths)
    Path(paths[5]).write_bytes(encoded(5)[:200])
    images = Pixels(table, 16)
    with pytest.raises(DataError, match=r"5\.image cannot be decoded \(.+\); remove it from the data"):
        images.cache(no_progress) if is_cached else images.read([5])
    assert list_entries() == []


def test_a_broken_image_without_a_path_is_named_by_its_number(paths):
    rows = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    rows[3] = {"path": None, "bytes": rows[3]["bytes"][:100]}
    with pytest.raises(DataError, match="image 3 cannot be decoded"):
        cached(table_of(rows))


@pytest.mark.parametrize("is_cached", [False, True])
def test_another_process_reads_the_same_images(paths, decoded, is_cached):
    images = Pixels(table_of_paths(paths), 16)
    if is_cached:
        images.cache(no_progress)
    expected = images.read(range(12))
    decoded.clear()
    packed = pickle.dumps(images)
    assert len(packed) < 20_000  # the table and no pixels
    other = pickle.loads(packed)
    assert other.is_cached is is_cached
    assert same(other.read(range(12)), expected)
    assert (decoded == []) is is_cached


def test_the_content_tells_images_and_their_order_apart(paths):
    images = Pixels(table_of_paths(paths), 16)
    found = {images.digest(), images.digest([1, 2]), images.digest([2, 1]), images.digest([1])}
    assert len(found) == 4
    assert images.digest(range(12)) == images.digest()
    assert images.digest(np.array([1, 2])) == images.digest([1, 2])


def test_the_content_is_that_of_the_files_wherever_they_lie(paths):
    rows = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    halves = [table_of_paths(paths[:5]), table_of_paths(paths[5:])]
    digests = {Pixels(table, side).digest() for table in (table_of_paths(paths), table_of(rows)) for side in (16, 32)}
    assert digests == {Pixels(halves, 16).digest()}


def test_reading_counts_images_and_their_share_of_the_bytes(paths):
    total = bytes_of(paths)
    images = Pixels(table_of_paths(paths), 16)
    assert images.reading_work(12) == Work(decoded_images=12, decoded_bytes=total)
    assert images.reading_work(30) == Work(decoded_images=30, decoded_bytes=round(total * 30 / 12))


def test_progress_is_told_up_to_the_last_image(paths, monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK", 5)
    told = []
    Pixels(table_of_paths(paths), 16).cache(lambda *now: told.append(now))
    assert told == [("decoding images", done, 12) for done in (5, 10, 12)]


def test_images_are_read_right_by_many_threads_at_once(paths):
    from concurrent.futures import ThreadPoolExecutor

    images, _ = cached(table_of_paths(paths))
    expected = [image.tobytes() for image in images.read(range(12))]
    order = random.Random(0).choices(range(12), k=200)
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda index: images.read([index])[0].tobytes(), order))
    assert read == [expected[index] for index in order]
