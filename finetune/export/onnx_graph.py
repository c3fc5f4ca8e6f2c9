"""Write a model as an ONNX graph: resizing and cropping, merged with the exported networks, and the labels.

The shapes of a traced resizing are fixed, so this part of the graph is written in ONNX's own text format.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import compose, parser

from finetune.decide.preprocessing import Preprocessing
from finetune.export.network import SquareProbabilities

OPSET = 18
"""Version of ONNX's operators: the first one whose Resize has antialiasing."""

IR_VERSION = 10
"""Version of ONNX's file format; also runtimes of 2024 read it."""

INPUT = "images"
"""Name of the graph's input, uint8 (n, height, width, channels)."""

PROBABILITIES, DISTANCE = "probabilities", "distance"
"""Names of the graph's outputs: float32 (n, num_classes), and, with neighbours, float32 (n,)."""

HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>'
"""First line of a model in ONNX's text format."""

# Sizes are whole numbers, so Div rounds down, as torchvision does; Round rounds half to even, as torchvision does for
# the margin of the crop. Resize has PyTorch's cubic kernel (a = -1/2), and weights beyond the edges are left out.
SQUARE = """
    {name}_side = Constant <value = int64[1] {{{shorter_side}}}> ()
    {name}_scaled = Mul (sides, {name}_side)
    {name}_resized_sides = Div ({name}_scaled, shorter)
    {name}_shape = Concat <axis = 0> (count, channels, {name}_resized_sides)
    {name}_resized = Resize <mode = "{mode}", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = {exclude},
        coordinate_transformation_mode = "half_pixel"> (channels_first, , , {name}_shape)
    {name}_size = Constant <value = int64[1] {{{size}}}> ()
    {name}_margins = Sub ({name}_resized_sides, {name}_size)
    {name}_float = Cast <to = 1> ({name}_margins)
    {name}_middle = Mul ({name}_float, half)
    {name}_rounded = Round ({name}_middle)
    {name}_start = Cast <to = 7> ({name}_rounded)
    {name}_end = Add ({name}_start, {name}_size)
    {name} = Slice ({name}_resized, {name}_start, {name}_end, axes)
"""
"""Nodes that resize the shorter side of images and cut out their centre, in ONNX's text format."""

SQUARES = """
squares (uint8[n, height, width, {channels}] images) => ({outputs}) {{
    channels_first = Transpose <perm = [0, 3, 1, 2]> (images)
    count = Shape <start = 0, end = 1> (images)
    sides = Shape <start = 1, end = 3> (images)
    shorter = ReduceMin <keepdims = 1> (sides)
    channels = Constant <value = int64[1] {{{channels}}}> ()
    half = Constant <value = float[1] {{0.5}}> ()
    axes = Constant <value = int64[2] {{2, 3}}> ()
    {nodes}
}}
"""
"""Graph from images of any size to the squares of each preprocessing, in ONNX's text format."""


def write_onnx(squares: SquareProbabilities, metadata: Mapping[str, object], path: Path) -> None:
    """Write the whole graph of a model, from decoded images to probabilities.

    Args:
        squares: the networks, from squares to probabilities.
        metadata: values to store in the file, as JSON.
        path: file to write.
    """
    names = [f"square_{number}" for number in range(len(squares.preprocessings))]
    joined = [(name, name) for name in names]
    whole = compose.merge_models(square_graph(squares.preprocessings), _networks(squares, names), io_map=joined)
    onnx.helper.set_model_props(whole, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    onnx.checker.check_model(whole)
    onnx.save_model(whole, path)


def square_graph(preprocessings: Sequence[Preprocessing]) -> onnx.ModelProto:
    """Return the graph from `images` to the squares of each preprocessing: `square_0`, `square_1`, ..."""
    outputs, nodes = [], []
    channels = preprocessings[0].num_channels
    for number, preprocessing in enumerate(preprocessings):
        name, size = f"square_{number}", preprocessing.image_size
        is_linear = preprocessing.interpolation == "bilinear"
        outputs.append(f"uint8[n, {channels}, {size}, {size}] {name}")
        nodes.append(
            SQUARE.format(
                name=name,
                size=size,
                shorter_side=preprocessing.shorter_side,
                mode="linear" if is_linear else "cubic",
                # ONNX defines it for cubic kernels alone; the linear one is limited to the image anyway.
                exclude=0 if is_linear else 1,
            )
        )
    text = SQUARES.format(outputs=", ".join(outputs), nodes="".join(nodes), channels=channels)
    return parser.parse_model(HEADER + text)


def _networks(squares: SquareProbabilities, names: list[str]) -> onnx.ModelProto:
    """Return the exported networks: inputs `names`, uint8 (n, channels, size, size), and the outputs."""
    shapes = [(each.num_channels, each.image_size, each.image_size) for each in squares.preprocessings]
    # Two images: torch.export takes a dimension of one as fixed.
    examples = tuple(torch.zeros((2, *shape), dtype=torch.uint8) for shape in shapes)
    count = torch.export.Dim("n")
    with quietly():
        program = torch.onnx.export(
            squares.eval(),
            examples,
            input_names=names,
            output_names=[PROBABILITIES] if squares.neighbours is None else [PROBABILITIES, DISTANCE],
            dynamic_shapes=[tuple({0: count} for _ in shapes)],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    exported = program.model_proto
    exported.ir_version = IR_VERSION
    return exported


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the remarks of the exporter, which concern its own developers."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
