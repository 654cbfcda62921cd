"""Files that are small, or moderate, and take much to read."""

import io
import tarfile
import zipfile
from functools import cache

import pyarrow
from fuzzing.example import PACKERS, Content, Repeated
from fuzzing.mutations import RAW, dump_json
from fuzzing.tables import write_parquet

CHAT_START = b'{"messages": [{"role":"user","content":"a"}'
CHAT_TURN = b',{"role":"assistant","content":"b"},{"role":"user","content":"a"}'
MILLION = 1 << 20
# The end of the name, the file. What is to be refused is large; what is to be worked on is of a few MiB.
BOMBS = [
    *((f".jsonl.{name}", Repeated(b"", b"\0", 300 * MILLION, b"", name)) for name in ("gz", "bz2", "xz", "zst")),
    *((f".jsonl.{name}", Repeated(b'{"text": "', b"a", 300 * MILLION, b'"}', name)) for name in ("gz", "zst")),
    *((f".json.{name}", Repeated(b"[{}", b",{}", 100 * MILLION, b"]", name)) for name in ("gz", "zst")),
    *((f".{kind}.gz", Repeated(b"[[]", b",[]", 20 * MILLION, b"]", "gz")) for kind in ("json", "jsonl")),
    (".jsonl.zst", Repeated(b"", b'{"text": "a"}\n', 50_000, b"", "zst")),
    (".json.xz", Repeated(b'[{"text": "a"}', b',{"text": "a"}', 50_000, b"]", "xz")),
    (".json", Repeated(b"[{}", b",{}", 500_000, b"]")),
    (".json", Repeated(b"[[]", b",[]", 500_000, b"]")),
    (".json", Repeated(b'{"text": [', b"[", 2 * MILLION, b"]")),
    (".jsonl", Repeated(b'{"text": [[]', b",[]", 500_000, b"]}")),
    (".jsonl", Repeated(b'{"text": [{}', b",{}", 500_000, b"]}\n")),
    (".jsonl", Repeated(b'{"text": "', b"\\u0041", 300_000, b'"}\n')),
    (".jsonl", Repeated(b'{"text": "', b"a ", MILLION // 2, b'"}\n')),
    (".jsonl", Repeated(b'{"text": "', b"a", MILLION, b'"}\n')),
    (".jsonl", Repeated(b'{"text": "', b"a", 70 * MILLION, b'"}\n')),
    (".jsonl", Repeated(b"", b"\n", 8 * MILLION)),
    (".jsonl", Repeated(b"", b"{}\n", 50_000)),
    (".jsonl", Repeated(CHAT_START, CHAT_TURN, 10_000, b"]}\n")),
    (".csv", Repeated(b"text", b",a", 100_000, b"\n1\n")),
    (".csv", Repeated(b"text\n", b'"', 2 * MILLION)),
    (".csv", Repeated(b"text\n", b"a", MILLION)),
    (".csv", Repeated(b"text\n", b"a\n", 50_000)),
    (".tsv", Repeated(b"text\n", b"\t", MILLION)),
    (".csv.gz", Repeated(b"text\n", b"a\n", 200 * MILLION, b"", "gz")),
    (".csv.bz2", Repeated(b"text\n", b"\0", 300 * MILLION, b"", "bz2")),
    (".txt.gz", Repeated(b"", b"a", 300 * MILLION, b"", "gz")),
    (".txt.xz", Repeated(b"", b"a\n", 200 * MILLION, b"", "xz")),
    (".txt", Repeated(b"", b"a", MILLION)),
    (".parquet.gz", Repeated(b"PAR1", b"\0", 300 * MILLION, b"PAR1", "gz")),
    (".arrow.zst", Repeated(b"ARROW1", b"\0", 300 * MILLION, b"ARROW1", "zst")),
]


@cache
def list_bombs() -> list[tuple[str, Content]]:
    """BOMBS, tables that are small for their rows are all equal, and archives within archives."""
    rows = pyarrow.table({"text": pyarrow.array(["a" * 1000] * 20_000)})
    wide = pyarrow.concat_tables([rows] * 200)
    nulls = pyarrow.table({"text": pyarrow.nulls(50_000_000, pyarrow.string())})
    twice = PACKERS["gz"](PACKERS["gz"](b"\0" * (300 * MILLION)))
    return [
        *BOMBS,
        (".parquet", write_parquet(wide, compression="zstd")),
        (".parquet", write_parquet(nulls, compression="zstd")),
        (".parquet.gz", PACKERS["gz"](write_parquet(wide, compression="zstd"))),
        (".jsonl.gz", twice),
        (".jsonl.gz", PACKERS["gz"](b'{"text": "a"}\n') * 3 + b"trailing"),
        (".jsonl.zst", PACKERS["zst"](b'{"text": "a"}\n') * 3 + b"trailing"),
        (".jsonl.xz", PACKERS["xz"](b'{"text": "a"}\n') * 3 + b"\0\0\0"),
        (".zip", pack_members(b"\0" * (100 * MILLION), "zip")),
        (".jsonl", dump_json({"text": sorted(RAW)})),
    ]


def pack_members(content: bytes, kind: str) -> bytes:
    """A zip or tar file with members that lead out of its folder."""
    file, names = io.BytesIO(), ("data.jsonl", "../../home/profile", "/etc/evil")
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(zipfile.ZipInfo(name), content)
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()
