"""Set how this process waits for its threads, keeps memory and collects garbage, and find when it started.

All settings are made before torch is imported: they make training on a CPU faster, and each command start sooner. A
setting that the user has made in the environment stays as it is.
"""

import atexit
import ctypes
import gc
import os
import time

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's `mallopt` (malloc.h): the free memory that a heap keeps, the number of blocks outside of heaps,
and the number of heaps."""

OBJECTS_BETWEEN_COLLECTIONS = 10_000
"""Number of new objects after which Python searches for garbage; its default is 700. Importing torch, torchvision and
timm makes a million objects, none of them garbage: they are imported in 2.5 s instead of 3.0 s."""


def apply_system_settings() -> None:
    """Make waiting threads spin for a shorter time, keep freed memory, and search less for garbage."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # At its end, Python searches all objects for garbage once more. What is frozen is left to the system: .8 s less.
    atexit.register(gc.freeze)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin while they wait for each other make a busy machine ten times slower (experiments/log.md,
        # 2026-11-24). OpenMP reads this when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _keep_freed_memory()


def forget_imports() -> None:
    """Make the garbage collector leave out all objects that exist now, which are those of the imported libraries.

    Accelerate collects garbage after each training. Searching all that torch, timm and others keep until the end took
    0.3 to 0.6 s each time.
    """
    gc.freeze()


def process_start() -> float:
    """Return the value that `time.perf_counter()` had when this process started, to about a second."""
    # Linux reports the start of a process relative to that of the system, which it gives in whole seconds.
    return time.perf_counter() - (time.time() - psutil.Process().create_time())


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch, which needs the same amount.

    By default glibc returns large blocks to the system at once, and the next batch gets them back page by page. That
    took a sixth of the time of a first run at 224 px on a CPU (experiments/log.md, 2026-11-27). Only the first heap may
    grow without limit, so all threads share it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # a C library other than glibc
        return
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        mallopt(parameter, value)
