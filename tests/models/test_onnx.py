"""Tensors in an ONNX file, written here field by field as onnx.proto numbers them.

Broken by: a number of more than seven bits, a field that is skipped by the wrong length, a transposed shape.
"""

import struct
from pathlib import Path

import pytest
import torch

from milora.models.onnx import read_onnx


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def content(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def tensor(name: str, shape: tuple[int, ...], values: list[float]) -> bytes:
    dimensions = b"".join(number(1, size) for size in shape)
    kind = number(2, 1)  # float32
    return dimensions + kind + content(8, name.encode()) + content(9, struct.pack(f"<{len(values)}f", *values))


def node(operator: str, name: str, *inputs: str) -> bytes:
    listed = b"".join(content(1, one.encode()) for one in inputs)
    return listed + content(2, b"out") + content(3, name.encode()) + content(4, operator.encode())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    graph = content(2, b"a graph")
    graph += content(5, tensor("weight", (2, 3), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    graph += content(5, tensor("long", (200,), [0.5] * 200))
    graph += content(1, node("MatMul", "/layer/MatMul", "states", "weight"))
    graph += content(1, node("Add", "/layer/Add", "states", "long"))
    # What is not read: a version of two bytes, and numbers of 8 and of 4 bytes.
    others = number(1, 300) + varint(20 << 3 | 1) + bytes(8) + varint(21 << 3 | 5) + bytes(4)
    (tmp_path / "model.onnx").write_bytes(others + content(2, b"a producer") + content(7, graph) + number(5, 1))
    return tmp_path / "model.onnx"


def test_tensors_and_products_are_read(file):
    graph = read_onnx(file)
    assert graph.tensors.keys() == {"weight", "long"}
    assert torch.equal(graph.tensors["weight"], torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert torch.equal(graph.tensors["long"], torch.full((200,), 0.5))
    assert graph.products == {"/layer/MatMul": "weight"}
