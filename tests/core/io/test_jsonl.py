"""JSONL read and written: file and line in every error."""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io import jsonl
from impruver_core.io.jsonl import format_row, read_numbered_rows, read_rows, write_rows

ROWS = [{"a": 1, "text": "столица\u2028 \x85 🍎"}, {"b": [1.5, None, {"c": "\n"}]}]


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        assert write_rows(file, iter(ROWS)) == 2
    assert list(read_rows(path)) == ROWS
    assert path.read_bytes().count(b"\n") == 2
    assert "столица" in path.read_text(encoding="utf-8")
    assert format_row({"a": "й", "b": 1}) == '{"a":"й","b":1}'


def test_bom_blank_lines_and_windows_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \t\n{"a": 2}')
    assert list(read_numbered_rows(str(path))) == [(1, {"a": 1}), (4, {"a": 2})]
    path.write_bytes(b"")
    assert list(read_rows(path)) == []


def zstandard():
    return pytest.importorskip("zstandard").ZstdCompressor().compress


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst", "GZ"])
def test_compressed(suffix, tmp_path):
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    path = tmp_path / f"rows.jsonl.{suffix}"
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path.write_bytes((zstandard() if suffix == "zst" else compress[suffix.lower()])(content))
    assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_broken_compressed(suffix, tmp_path):
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    path = tmp_path / f"rows.jsonl.{suffix}"
    whole = compress(b'{"a": 1}\n' * 9)
    for content in (whole[:-10], whole[:20] + b"\0\0\0\0" + whole[24:]):
        path.write_bytes(content)
        with pytest.raises(ImpruverError, match=rf"rows.jsonl.{suffix}, after line \d+: the compressed file is broken"):
            list(read_rows(path))


BAD = {
    "{}\n\u00a0\n".encode(): r"line 2, column 1: not JSON: Expecting value",
    "{}\u00a0\n".encode(): r"line 1, column 3: not JSON: Extra data",
    b'{"a": 1}\n{"a"\n': r"line 2, column 5: not JSON: Expecting ':' delimiter",
    b'{"a": 1}\n\n{"a": 1} x\n': r"line 3, column 10: not JSON: Extra data",
    b"[1]\n": r"line 1: a row must be a JSON object, not list",
    b'{"a": 1}\n"x"': r"line 2: a row must be a JSON object, not str",
    b'{"a": "caf\xe9"}\n': r"line 1: not UTF-8 \(byte 11 of the line\)",
    b'{"a": 1' + b"0" * 5000 + b"}\n": r"line 1: can't be read: .*digits",
    b'{"a": ' + b"[" * 100_000: r"line 1: can't be read: .*recursion",
}


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_file_and_line_in_every_error(content, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ImpruverError, match=f"rows.jsonl, {BAD[content]}"):
        list(read_rows(path))


def test_rows_before_a_bad_line_come_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    rows = read_rows(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(ImpruverError, match="line 2"):
        next(rows)


def test_no_such_file(tmp_path):
    with pytest.raises(ImpruverError, match=r"gone\.jsonl: no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))


def test_write_rows_writes_to_any_text_file():
    file = io.StringIO()
    assert write_rows(file, []) == 0
    assert write_rows(file, [{"a": None}]) == 1
    assert file.getvalue() == '{"a":null}\n'


def compress_zeros(suffix, piece, times):
    """`times` times a piece, compressed without being held as a whole."""
    if suffix == "zst":
        packer = pytest.importorskip("zstandard").ZstdCompressor().compressobj()
    else:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(piece) for _ in range(times)]) + packer.flush()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize(
    ("piece", "told"),
    [
        (b"x" * (1 << 20), "line 1: longer than 64 MiB"),
        (b'{"a": "' + b"x" * 9_000 + b'"}\n', "more than 200 times its size"),
    ],
)
def test_a_small_file_that_unpacks_to_a_large_one(suffix, piece, told, tmp_path):
    path = tmp_path / f"bomb.jsonl.{suffix}"
    path.write_bytes(compress_zeros(suffix, piece, (1 << 28) // len(piece)))
    assert path.stat().st_size < 3 << 20
    with pytest.raises(ImpruverError, match=re.escape(str(path))) as caught:
        for _ in read_rows(path):
            pass
    assert told in str(caught.value) or "more than 200 times its size" in str(caught.value)


def test_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 31)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "' + "x" * 21 + '"}\n{"a": "' + "x" * 22 + '"}\n')
    rows = read_numbered_rows(path)
    assert next(rows)[0] == 1
    with pytest.raises(
        ImpruverError, match=r"rows\.jsonl, line 2: longer than .*; a row is one conversation or document"
    ):
        next(rows)


@pytest.mark.parametrize("kept", [5, -1, 0.5])
def test_a_zst_that_is_cut_off_is_told_with_the_line(kept, tmp_path):
    rows = b"".join(b'{"a": "%x"}\n' % (number**20) for number in range(20_000))
    content = zstandard()(rows)
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ImpruverError, match=r"rows\.jsonl\.zst, after line [0-9]+: the compressed file is broken"):
        list(read_rows(path))
    path.write_bytes(content * 2)  # of two frames
    assert len(list(read_rows(path))) == 40_000
