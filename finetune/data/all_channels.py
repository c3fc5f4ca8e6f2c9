"""Find out how many channels `image.channels: all` stands for: as many as most training images have."""

from collections import Counter
from collections.abc import Mapping

from finetune.data.decoding import ImageSource, in_threads, opened
from finetune.data.kinds import Kind, kind_of
from finetune.data.table import LabelledTable
from finetune.errors import RecipeError
from finetune.reading import Reading


def resolve_channels(table: LabelledTable, reading: Reading) -> tuple[Reading, Mapping[int, str], list[str]]:
    """Return a reading that lists its channels, the reason for each row with another number of them, and what to say.

    A reading that does not ask for all channels is returned as it is. Only headers are read.

    Args:
        table: labelled images.
        reading: how images are read.

    Raises:
        RecipeError: the reading has a range for each channel, but of another number of channels.
    """
    if reading.channels != "all":
        return reading, {}, []
    kinds = in_threads(lambda source: _kind(source, reading), table.sources)
    splits = table.splits or ["train"] * len(kinds)
    training = [kind for kind, split in zip(kinds, splits, strict=True) if split == "train" and kind is not None]
    if not training:  # the scan of the files says why none of them can be read
        return reading.changed(channels=None, range=None), {}, []
    counts = Counter(kind.num_channels for kind in training)
    count = max(counts, key=lambda number: (counts[number], number))
    if len(reading.ranges) > 1 and len(reading.ranges) != count:
        raise RecipeError(
            f"image.range has {len(reading.ranges)} ranges, but the images have {count} channels; give [low, high] or "
            f"{count} such pairs"
        )
    reasons = {
        row: f"it has {kind.num_channels} channel{'' if kind.num_channels == 1 else 's'}, but most "
        f"{'training images' if table.splits else 'images'} have {count} (image.channels=all)"
        for row, kind in enumerate(kinds)
        if kind is not None and kind.num_channels != count
    }
    names = next((kind.names for kind in training if kind.num_channels == count and kind.names), ())
    listed = f" ({', '.join(names)})" if names else ""
    of_all = "all" if counts[count] == len(training) else f"{counts[count]:,} of"
    said = (
        f"image.channels=all: {count} channel{'' if count == 1 else 's'}{listed}, as {of_all} {len(training):,} "
        f"{'training images' if table.splits else 'images'} have"
    )
    return reading.changed(channels=tuple(range(count))), reasons, [said]


def _kind(source: ImageSource | None, reading: Reading) -> Kind | None:
    """Return the kind of an image; None if its header cannot be read."""
    try:
        assert source is not None
        with opened(source, reading) as image:
            return kind_of(image)
    except Exception:  # decoders raise exceptions of any type; the scan says why
        return None
