"""The tensors in an ONNX file, read without the library onnx: a protocol buffer is a sequence of numbered fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# The numbers of fields in onnx.proto.
GRAPH = 7  # of a model
NODE, INITIALIZER = 1, 5  # of a graph
INPUT, NODE_NAME, OPERATOR = 1, 3, 4  # of a node
DIMENSION, TENSOR_NAME, RAW_DATA = 1, 8, 9  # of a tensor
VARINT, LENGTH, SIZES = 0, 2, {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Graph:
    """The tensors of a model by name, and the names of its matrix products, each with that of its second factor."""

    tensors: dict[str, Tensor]
    products: dict[str, str]


def read_onnx(file: Path) -> Graph:
    """Return the float32 tensors of an ONNX file."""
    content = memoryview(file.read_bytes())
    graph = next(value for number, value in _fields(content) if number == GRAPH)
    tensors, products = {}, {}
    for number, value in _fields(graph):
        if number == INITIALIZER:
            shape = [size for field, size in _numbers(value) if field == DIMENSION]
            named = dict(_fields(value))
            raw = torch.frombuffer(bytearray(named[RAW_DATA]), dtype=torch.float32)
            tensors[str(named[TENSOR_NAME], "utf-8")] = raw.reshape(shape)
        elif number == NODE:
            named = dict(_fields(value))  # of several inputs, the last
            if str(named[OPERATOR], "utf-8") == "MatMul":
                products[str(named[NODE_NAME], "utf-8")] = str(named[INPUT], "utf-8")
    return Graph(tensors, products)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that contain bytes."""
    return ((number, value) for number, value in _walk(content) if isinstance(value, memoryview))


def _numbers(content: memoryview) -> Iterator[tuple[int, int]]:
    return ((number, value) for number, value in _walk(content) if isinstance(value, int))


def _walk(content: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    place = 0
    while place < len(content):
        key, place = _read_varint(content, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _read_varint(content, place)
            yield number, value
            continue
        size, place = _read_varint(content, place) if kind == LENGTH else (SIZES[kind], place)
        yield number, content[place : place + size]
        place += size


def _read_varint(content: memoryview, place: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return value, place
