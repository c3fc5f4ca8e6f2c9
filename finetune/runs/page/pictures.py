"""Make the pictures of a report: images as the network sees them, and maps of the places that a prediction rests on."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image

from finetune.data import ImageSource, ImageSplits, in_threads, load_plan_images, read_pixels
from finetune.data.augmentation import plain_view
from finetune.data.batches import normaliser
from finetune.decide.plan import Plan
from finetune.errors import FinetuneError
from finetune.predict.activation_maps import class_activation_maps
from finetune.predict.model import TrainedModel
from finetune.reading import Reading
from finetune.runs.image_tables import places_of

LARGE, SMALL = 144, 88
"""Sides of the pictures of single errors and of those in rows, in pixels."""

QUALITY = 78
"""Quality of the JPEG files of the pictures, 0 .. 100."""

SHADE = 0.82
"""Opacity of the shade over the places that a prediction does not rest on, 0 .. 1."""

MAP_SIDE = 36
"""Side of the picture of a map, in pixels; the browser enlarges it smoothly."""

FindSource = Callable[[str, str], ImageSource | None]
"""Function that returns the image of a split (`validation` or `test`) and a path; None: it cannot be found."""


class Picture(NamedTuple):
    """An image as the network sees it, and the map of a prediction."""

    image: str
    """Data URI of the image; empty: the image cannot be read any more."""
    shade: str = ""
    """Data URI of the shade to lay over the image; empty: there is no map."""


def sources_in(splits: ImageSplits, plan: Plan) -> FindSource:
    """Return the function that finds an image in the splits of a run."""
    held_out = splits.validation if plan.validation == "given" else splits.train
    tables = {"validation": held_out, "test": splits.test}
    rows: dict[str, dict[str, int]] = {}

    def find(split: str, path: str) -> ImageSource | None:
        table: Dataset | None = tables[split]
        if table is None:
            return None
        if split not in rows:
            rows[split] = {place: number for number, place in enumerate(places_of(table))}
        number = rows[split].get(path)
        found: ImageSource | None = None if number is None else table[number]["image"]
        return found

    return find


def find_again(plan: Plan) -> FindSource:
    """Return the function that finds the images of a finished run: files by their paths, others in the data."""
    loaded: list[FindSource] = []

    def find(split: str, path: str) -> ImageSource | None:
        if Path(path).is_file():
            return path
        if not loaded:
            try:
                splits = load_plan_images(plan)
                loaded.append(sources_in(splits, plan))
            except FinetuneError:  # the data is not there any more; the report says so for each picture
                loaded.append(lambda _split, _path: None)
        return loaded[0](split, path)

    return find


def view_images(find: FindSource, rows: pd.DataFrame, plan: Plan) -> list[NDArray[np.uint8] | None]:
    """Return the images of some predictions as the network sees them, each (size, size, channels); None: it cannot be
    read.

    Args:
        find: function that finds the images.
        rows: predictions, with the columns split and path.
        plan: plan with the preprocessing.
    """
    given = [find(split, path) for split, path in zip(rows["split"], rows["path"], strict=True)]

    def view(source: ImageSource | None) -> NDArray[np.uint8] | None:
        if source is None:
            return None
        try:
            image = read_pixels(source, plan.preprocessing.shorter_side, plan.preprocessing.reading)
        except Exception:  # decoders raise exceptions of any type; the file has changed since the run
            return None
        square: NDArray[np.uint8] = plain_view(image, plan.preprocessing).permute(1, 2, 0).numpy()
        return square

    return in_threads(view, given)


def map_images(
    model: TrainedModel, views: Sequence[NDArray[np.uint8] | None], classes: NDArray[np.int64]
) -> list[NDArray[np.float32] | None]:
    """Return the class activation map of each image for a class, (rows, columns) in 0 .. 1; None where there is none.

    Args:
        model: the model whose prediction is explained.
        views: images as the network sees them.
        classes: class of each image whose logit is explained, (n,).
    """
    present = [number for number, view in enumerate(views) if view is not None]
    found: list[NDArray[np.float32] | None] = [None] * len(views)
    if not present:
        return found
    pixels = torch.stack([torch.from_numpy(np.array(views[number])).permute(2, 0, 1) for number in present])
    device = next(model.network.parameters()).device
    inputs = normaliser(model.plan.preprocessing, device, model.plan.forward.layout)(pixels)
    maps = class_activation_maps(model.network.eval(), inputs, classes[present])
    for number, own in zip(present, maps if maps is not None else (), strict=maps is not None):
        found[number] = own if own.max() > 0 else None
    return found


def describe_pictures(reading: Reading) -> str:
    """Return which channels the pictures show; "" if they are those that the network sees."""
    if reading.is_rgb:
        return ""
    *others, last = map(str, (reading.channels or ())[:3])
    colours = "red, green and blue" if len(others) == 2 else "red and green"
    all_of_them = "both" if reading.num_channels == 2 else f"all {reading.num_channels}"
    return (
        f"The pictures show the channels {', '.join(others)} and {last} as {colours}; the network sees {all_of_them}."
    )


def draw_picture(view: NDArray[np.uint8] | None, side: int, heat: NDArray[np.float32] | None = None) -> Picture:
    """Return an image, at most `side` pixels wide, and the shade over the places where its map is low.

    Args:
        view: image (size, size, channels); None: it cannot be read. Of other channels than red, green and blue, the
            first three are shown as these.
        side: largest side, in pixels.
        heat: class activation map of the image, (rows, columns) in 0 .. 1.
    """
    if view is None:
        return Picture("")
    shown = view[..., :3] if view.shape[-1] > 2 else np.pad(view, ((0, 0), (0, 0), (0, 1)))
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    shade = ""
    if heat is not None:
        dark = Image.fromarray((255.0 * SHADE * (1.0 - heat)).astype(np.uint8))
        alpha = dark.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
        shade = _data_uri(Image.merge("LA", (Image.new("L", alpha.size, 0), alpha)), "PNG", optimize=True)
    return Picture(_data_uri(image, "JPEG", quality=QUALITY, optimize=True), shade)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    """Return an image as a data URI."""
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
