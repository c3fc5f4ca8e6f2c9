import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from platformdirs.macos import MacOS

from finetune import cache
from finetune.cache import CachedRows, list_entries, make_key, new_entry, read_arrays, read_value, write_value
from finetune.errors import CacheError

ROWS = np.arange(300, dtype=np.int16).reshape(100, 3)

pytestmark = pytest.mark.usefixtures("empty_cache")


def add(key, rows=ROWS, num_bytes=None):
    """Cache some rows in two parts; return whether they were cached."""
    with new_entry("features", key, f"entry {key}", rows.nbytes if num_bytes is None else num_bytes) as writer:
        if writer is not None:
            writer.append("rows", rows[:40])
            writer.append("rows", rows[40:])
    return writer is not None


def rows_of(key):
    arrays = read_arrays("features", key)
    return None if arrays is None else arrays["rows"][:]


def keys():
    return [entry.path.name for entry in list_entries()]


def last_used(folder, key, seconds_ago):
    moment = time.time() - seconds_ago
    os.utime(folder / "features" / key / cache.ABOUT, (moment, moment))


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_entry_is_there_when_its_context_ends_and_not_before():
    with new_entry("features", "k", "some rows", ROWS.nbytes) as writer:
        writer.append("rows", ROWS)
        assert read_arrays("features", "k") is None
        assert list_entries() == []
    assert np.array_equal(rows_of("k"), ROWS)
    (entry,) = list_entries()
    assert (entry.kind, entry.about) == ("features", "some rows")
    assert entry.num_bytes >= ROWS.nbytes


def test_arrays_that_grow_in_parts_have_all_rows_in_order_and_their_type():
    add("k")
    read = rows_of("k")
    assert (read.dtype, read.shape) == (np.int16, (100, 3))
    assert np.array_equal(read, ROWS)


def test_an_entry_holds_several_arrays_and_a_value():
    with new_entry("pixels", "k", "two arrays", 0, {"number": 3}) as writer:
        writer.append("first", ROWS)
        writer.append("second", ROWS[:, 0].astype(np.float32))
    arrays = read_arrays("pixels", "k")
    assert np.array_equal(arrays["first"][:], ROWS)
    assert np.array_equal(arrays["second"][:], ROWS[:, 0].astype(np.float32))
    assert read_value("pixels", "k") == {"number": 3}


def test_an_entry_that_fails_in_the_middle_leaves_nothing(empty_cache):
    def fail():
        with new_entry("features", "k", "half", ROWS.nbytes) as writer:
            writer.append("rows", ROWS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert rows_of("k") is None
    assert files_in(empty_cache) == []


KILLED = """
import os, signal
import numpy as np
from finetune.cache import new_entry

with new_entry("features", "k", "half", 1000) as writer:
    writer.append("rows", np.arange(100_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_the_middle():
    done = subprocess.run([sys.executable, "-c", KILLED], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_half_written_is_never_read(empty_cache):
    kill_in_the_middle()
    assert files_in(empty_cache)
    assert rows_of("k") is None
    assert list_entries() == []
    add("k")
    assert np.array_equal(rows_of("k"), ROWS)


@pytest.mark.parametrize(("age", "stays"), [(0.5, True), (1.1, False)])
def test_what_a_killed_process_left_is_removed_when_nothing_was_added_for_an_hour(empty_cache, age, stays):
    kill_in_the_middle()
    (left,) = (empty_cache / "features").iterdir()
    moment = time.time() - age * cache.ABANDONED
    for path in (*left.iterdir(), left):
        os.utime(path, (moment, moment))
    add("other")
    assert left.exists() is stays


def test_an_entry_in_the_making_whose_files_still_grow_is_left_alone(empty_cache):
    kill_in_the_middle()
    (left,) = (empty_cache / "features").iterdir()
    os.utime(left, (0, 0))  # the folder itself changes only when a file is added
    add("other")
    assert left.exists()


AT_ONCE = """
import sys, time
from pathlib import Path
import numpy as np
from finetune.cache import new_entry, read_arrays

folder, own, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
rows = np.arange(300, dtype=np.int16).reshape(100, 3)
with new_entry("features", "k", f"made by {own}", rows.nbytes) as writer:
    writer.append("rows", rows)
    (folder / own).touch()
    while not (folder / other).exists():
        time.sleep(0.005)
assert np.array_equal(read_arrays("features", "k")["rows"][:], rows)
"""


def test_two_processes_that_make_the_same_entry_at_once_both_read_it(tmp_path, empty_cache):
    names = ("one", "two")
    makers = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, str(tmp_path), own, other])
        for own, other in (names, names[::-1])
    ]
    assert [maker.wait(timeout=60) for maker in makers] == [0, 0]
    assert keys() == ["k"]
    assert np.array_equal(rows_of("k"), ROWS)
    assert list(empty_cache.rglob("*.partial")) == []


def test_the_least_recently_used_entries_make_room(empty_cache, monkeypatch):
    rows = np.zeros((100, 30), dtype=np.uint8)
    for number, key in enumerate("abc"):
        add(key, rows)
        last_used(empty_cache, key, 1000 - 100 * number)
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "10e-6")
    add("d", rows)
    assert keys() == ["b", "c", "d"]


def test_reading_an_entry_counts_as_use(empty_cache, monkeypatch):
    rows = np.zeros((100, 30), dtype=np.uint8)
    for number, key in enumerate("abc"):
        add(key, rows)
        last_used(empty_cache, key, 1000 - 100 * number)
    read_arrays("features", "a")
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "10e-6")
    add("d", rows)
    assert keys() == ["c", "a", "d"]


def test_an_entry_larger_than_the_limit_is_not_cached_and_removes_nothing(monkeypatch):
    add("small")
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "10e-6")
    assert not add("large", num_bytes=10_001)
    assert keys() == ["small"]


def test_a_limit_of_0_caches_nothing(empty_cache, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", "0")
    assert not add("k")
    write_value("measurements", "v", "a value", {"number": 1})
    assert read_value("measurements", "v") is None
    assert not empty_cache.exists()


@pytest.mark.parametrize("limit", ["lots", "nan", "inf", "20GB"])
def test_a_limit_that_is_not_a_number_is_refused_in_a_sentence(monkeypatch, limit):
    monkeypatch.setenv("FINETUNE_CACHE_LIMIT", limit)
    with pytest.raises(CacheError, match=f"FINETUNE_CACHE_LIMIT is '{limit}'; give the size in GB, such as 20"):
        add("k")


def test_without_a_limit_the_cache_takes_at_most_a_quarter_of_what_is_free_with_what_it_has(monkeypatch):
    class Usage:
        free = 4_000_000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage)
    assert cache.size_limit() == 1_000_000
    add("k")
    assert cache.size_limit() == 1_000_000 + list_entries()[0].num_bytes // 4
    Usage.free = 10**12
    assert cache.size_limit() == cache.LARGEST


def test_a_folder_that_cannot_be_made_caches_nothing_and_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    assert not add("k")
    write_value("measurements", "v", "a value", {"number": 1})
    assert rows_of("k") is None
    assert list_entries() == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_that_cannot_be_written_to_can_still_be_read(empty_cache):
    add("k")
    (empty_cache / "features").chmod(0o500)
    try:
        assert not add("other")
        assert np.array_equal(rows_of("k"), ROWS)
    finally:
        (empty_cache / "features").chmod(0o700)


def test_an_entry_with_a_file_that_was_cut_short_counts_as_missing(empty_cache):
    add("k")
    file = empty_cache / "features" / "k" / "rows"
    os.truncate(file, file.stat().st_size - 1)
    assert rows_of("k") is None


def test_an_entry_without_one_of_its_files_counts_as_missing(empty_cache):
    add("k")
    (empty_cache / "features" / "k" / "rows").unlink()
    assert rows_of("k") is None


def test_an_entry_whose_description_is_damaged_counts_as_missing(empty_cache):
    add("k")
    (empty_cache / "features" / "k" / cache.ABOUT).write_text('{"about": "ent')
    assert rows_of("k") is None
    assert list_entries() == []


@pytest.mark.parametrize("damage", ["rows", cache.ABOUT])
def test_a_damaged_entry_is_made_again(empty_cache, damage):
    add("k")
    os.truncate(empty_cache / "features" / "k" / damage, 5)
    add("k")
    assert np.array_equal(rows_of("k"), ROWS)


def test_clearing_removes_everything_and_returns_its_size(empty_cache):
    add("k")
    write_value("measurements", "v", "a value", {"number": 1})
    (empty_cache / "digits").mkdir()
    (empty_cache / "digits" / "0.png").touch()  # the embedded demo, which is no entry
    total = sum(entry.num_bytes for entry in list_entries())
    assert cache.clear() == total > ROWS.nbytes
    assert [path.name for path in files_in(empty_cache)] == ["0.png"]
    assert cache.clear() == 0


def test_rows_that_are_being_read_survive_a_clearing():
    add("k")
    arrays = read_arrays("features", "k")
    cache.clear()
    assert np.array_equal(arrays["rows"][:], ROWS)


def test_a_value_is_read_as_it_was_written():
    value = {"rate": 0.1 + 0.2, "names": ["ä", "b"], "inner": {"none": None}}
    write_value("measurements", "v", "a value", value)
    assert read_value("measurements", "v") == value


def test_an_entry_that_was_removed_by_half_is_made_again(empty_cache):
    add("k")
    (empty_cache / "features" / "k" / "about.json").unlink()
    assert rows_of("k") is None
    assert add("k")
    assert rows_of("k") is not None


def test_a_value_of_another_kind_or_key_is_another():
    write_value("measurements", "v", "a value", {"number": 1})
    assert read_value("measurements", "w") is None
    assert read_value("features", "v") is None


def test_keys_are_names_of_files_and_differ_where_a_part_differs(monkeypatch):
    parts = [(), ("a",), ("a", "b"), ("a", "c"), ("b", "a"), ("a", 1), ("a", 1.5), ("a", None), ("a", "b", "c")]
    made = {make_key(*each) for each in parts}
    assert len(made) == len(parts)
    assert all(key.isalnum() for key in made)
    assert make_key("a", 1) == make_key("a", 1)
    before = make_key("a")
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert make_key("a") != before


@pytest.mark.parametrize("released", [0, 100, 10**9])
@pytest.mark.parametrize("mapped", [False, True])
def test_rows_are_equal_to_the_array_however_often_pages_are_released(monkeypatch, mapped, released):
    monkeypatch.setattr(cache, "RELEASE_AFTER", released)
    array = np.random.default_rng(0).integers(0, 100, (5000, 7), dtype=np.int32)
    rows = CachedRows(array)
    if mapped:
        add("k", array)
        rows = read_arrays("features", "k")["rows"]
        assert isinstance(rows.array, np.memmap)
    assert len(rows) == 5000
    for part in (slice(10, 700), [4999, 3, 3], np.array([7, 1]), slice(None), 12):
        assert np.array_equal(rows[part], array[part])


@pytest.mark.parametrize("mapped", [False, True])
def test_rows_are_copies_that_may_be_written_to(mapped):
    add("k")
    rows = read_arrays("features", "k")["rows"] if mapped else CachedRows(ROWS.copy())
    part = rows[:5]
    part[:] = -1
    assert type(part) is np.ndarray
    assert np.array_equal(rows[:5], ROWS[:5])


@pytest.mark.parametrize(
    ("read", "counts"), [(slice(50), [0, 0, 0, 1, 1, 1, 1, 2]), ([0, 40], [0, 1, 1, 2, 2, 3, 3, 4])]
)
def test_pages_are_released_after_enough_bytes_with_those_around_each_piece(monkeypatch, read, counts):
    add("k")
    rows = read_arrays("features", "k")["rows"]
    advised = []

    class Mapping:
        def madvise(self, advice):
            advised.append(advice)

    monkeypatch.setattr(cache, "RELEASE_AFTER", 3 * (ROWS[:50].nbytes + cache.MAPPED_AROUND))
    monkeypatch.setattr(rows.array, "_mmap", Mapping())
    found = []
    for _ in range(8):
        rows[read]
        found.append(len(advised))
    assert found == counts


def test_the_folder_is_the_asked_one_or_finetune_in_the_users_cache(monkeypatch, tmp_path, empty_cache):
    assert cache.cache_folder() == empty_cache
    monkeypatch.delenv("FINETUNE_CACHE")
    assert cache.cache_folder().name == "finetune"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache.cache_folder() == tmp_path / "finetune"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache.cache_folder() == Path.home() / ".cache" / "finetune"


def test_the_folder_is_in_the_place_that_the_system_has_for_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "PlatformDirs", MacOS)
    assert cache.cache_folder() == tmp_path / "Library" / "Caches" / "finetune"


def test_an_entrys_description_can_be_read_by_people(empty_cache):
    add("k")
    about = json.loads((empty_cache / "features" / "k" / cache.ABOUT).read_text("utf-8"))
    assert about["about"] == "entry k"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_reported_with_what_to_do_and_leaves_nothing(empty_cache):
    def write_on_a_full_disk():
        with new_entry("features", "full", "x", 10) as writer:
            (folder,) = (empty_cache / "features").iterdir()
            (folder / "rows").symlink_to("/dev/full")
            writer.append("rows", np.zeros((100_000, 3), dtype=np.int16))

    with pytest.raises(CacheError, match="FINETUNE_CACHE_LIMIT=0"):
        write_on_a_full_disk()
    assert list((empty_cache / "features").iterdir()) == []


def test_clearing_removes_damaged_entries_but_nothing_of_another_kind(empty_cache):
    add("a")
    (empty_cache / "features" / "a" / cache.ABOUT).write_text("{")
    (empty_cache / "digits" / "0").mkdir(parents=True)
    cache.clear()
    assert [path.name for path in empty_cache.glob("*/*")] == ["0"]
