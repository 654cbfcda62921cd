"""Parquet and Arrow files: of rows, or of types that no converter expects; with bytes changed."""

import io
from functools import cache
from typing import Any

import pyarrow
import pyarrow.parquet
from fuzzing.mutations import BLOCKS, mutate_bytes
from hypothesis import strategies as st


@st.composite
def write_columns(draw: st.DrawFn, rows: list, kind: str) -> bytes:
    """A Parquet or Arrow file of the rows, where these can be a table; else of one column of odd values."""
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        table = draw(st.sampled_from(list_tables()))
    if draw(st.integers(0, 3)) == 0 or not table.num_columns:
        table = draw(st.sampled_from(list_tables()))
    try:
        content = write_parquet(table) if kind == "parquet" else write_arrow(table, draw(st.booleans()))
    except (pyarrow.ArrowException, NotImplementedError):
        content = write_arrow(list_tables()[0], True)
    if draw(st.booleans()):
        size = len(content)
        tail = draw(st.sampled_from((0, size // 2, max(0, size - 400))))  # Parquet's header is at its end
        content = content[:tail] + draw(mutate_bytes(content[tail:], 3, BLOCKS))
    return content


@cache
def list_tables() -> list[pyarrow.Table]:
    """Tables of types that no converter expects."""
    many = pyarrow.array(["a"] * 50_000)
    columns = [
        {"text": many.dictionary_encode()},
        {"text": pyarrow.array([b"\xff\x00", None])},
        {"text": pyarrow.array([1, None, -(2**63)])},
        {"text": pyarrow.array([float("nan"), float("inf")])},
        {"text": pyarrow.array([None, None])},
        {"text": pyarrow.array([10**18] * 2, pyarrow.timestamp("ns", "Europe/Berlin"))},
        {"text": pyarrow.array([1, 2], pyarrow.duration("ns"))},
        {"text": pyarrow.array([1, 2], pyarrow.decimal128(38, 30))},
        {"text": pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64()))},
        {"text": pyarrow.array([{"a": {"b": [None, {"c": 1}]}}, None])},
        {"messages": pyarrow.array([[{"role": "user", "content": None}], []])},
        {"messages": pyarrow.array([[[["a"]]], None])},
        {"text": pyarrow.array([]), "\x1b[31m": pyarrow.array([])},
        {
            "text": pyarrow.array(["\x1b[31m\u202e", "\ud83c".encode("utf-8", "replace").decode()]),
            "a\u202e": pyarrow.array([1, 2]),
        },
        {"": pyarrow.array(["x", "y"]), "text": pyarrow.array(["x", "y"])},
        {f"c{number}": pyarrow.array([number]) for number in range(2000)},
        {"text": pyarrow.array([["a"] * 100_000])},
        {"text": pyarrow.array(["a" * 1_000_000])},
        {
            "text": pyarrow.array([True, False]),
            "tools": pyarrow.array(["[" * 99_999, "{}"]),
            "chat_template_kwargs": pyarrow.array(["[]", "1"]),
        },
    ]
    return [pyarrow.table(each) for each in columns]


def write_parquet(table: pyarrow.Table, **options: Any) -> bytes:
    """A Parquet file in memory."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def write_arrow(table: pyarrow.Table, streamed: bool) -> bytes:
    """An Arrow file in memory: a stream, as `datasets` writes it, or one with a footer."""
    file = io.BytesIO()
    with (pyarrow.ipc.new_stream if streamed else pyarrow.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()
