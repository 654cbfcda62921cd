"""The same rows from every encoding and packing of every kind of text; archives that are none of one file."""

import bz2
import gzip
import io
import json
import lzma
import stat
import zipfile

import pytest
import zstandard

ROWS = [{"text": "столица: Осло, 5 °C"}, {"text": "x 🍎"}, {"text": ""}]
TEXTS = {
    "d.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "d.json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "d.csv": "text;n\n" + "".join(f"{row['text']};1\n" for row in ROWS),
    "d.tsv": "text\tn\n" + "".join(f"{row['text']}\t1\n" for row in ROWS),
    "d.txt": "".join(row["text"] + "\n" for row in ROWS),
}
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def zipped(members: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".zip": lambda content: zipped({"x": content}),
}


def texts(rows: list[dict]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize("name", TEXTS)
def test_encodings_and_line_ends(name, load):
    for encoding in ENCODINGS:
        if encoding in ("utf-16-le", "utf-16-be") and name == "d.txt":
            continue  # it begins with no ASCII and no BOM: nothing tells
        for end in ("\n", "\r\n"):
            assert texts(load(name, TEXTS[name].replace("\n", end).encode(encoding))) == texts(ROWS), (encoding, end)


@pytest.mark.parametrize("suffix", PACKERS)
def test_packings(suffix, load):
    for name, text in TEXTS.items():
        assert texts(load(name + suffix, PACKERS[suffix](text.encode()))) == texts(ROWS), name
        assert texts(load("u" + name + suffix, PACKERS[suffix](text.encode("utf-16")))) == texts(ROWS), name


def test_a_zip_is_of_the_kind_that_the_file_in_it_is(load, tmp_path):
    import pyarrow
    from pyarrow import parquet

    for name, text in TEXTS.items():
        beside = {"sub/": b"", "__MACOSX/sub/._d": b"fork", "sub/.DS_Store": b"", f"sub/{name}": text.encode()}
        assert texts(load("data.zip", zipped(beside))) == texts(ROWS), name
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    assert texts(load("p.zip", zipped({"d.parquet": (tmp_path / "d.parquet").read_bytes()}))) == texts(ROWS)


LINES = TEXTS["d.jsonl"].encode()
ARCHIVES = {
    "several files": (zipped({"a.jsonl": LINES, "b.jsonl": LINES}), "holds 2 files (a.jsonl, b.jsonl)"),
    "many files": (zipped({f"{n}.jsonl": LINES for n in range(9)}), "holds 9 files (0.jsonl, 1.jsonl, 2.jsonl, …)"),
    "no file": (zipped({"a/": b""}), "holds no file"),
    "a file above": (zipped({"../a.jsonl": LINES}), "names a file outside of it"),
    "a file elsewhere": (zipped({"/etc/a.jsonl": LINES}), "names a file outside of it"),
    "one above among others": (zipped({"a.jsonl": LINES, "x/../../b": b""}), "names a file outside of it"),
    "a kind that is not read": (zipped({"a.xlsx": b"x"}), "of no kind that can be read"),
    "no archive": (b"PK\x03\x04 nothing", "the compressed file is broken"),
    "cut off": (zipped({"a.jsonl": LINES})[:-30], "the compressed file is broken"),
    "a bomb": (zipped({"a.jsonl": LINES * 400_000}, compresslevel=9), "unpacks to more than 200 times its size"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_are_not_read(case, load_error, tmp_path):
    content, told = ARCHIVES[case]
    message = load_error("a.zip", content)
    assert "a.zip" in message
    assert told in message
    assert not list((tmp_path / "cache").glob("datasets/*/*.jsonl"))


def test_a_damaged_and_an_encrypted_archive(load_error):
    content = bytearray(zipped({"a.jsonl": LINES}))
    content[45] ^= 1  # in the packed bytes
    assert "the compressed file is broken" in load_error("a.zip", bytes(content))
    locked = bytearray(zipped({"a.jsonl": LINES}))
    locked[6] |= 1
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    assert "can't be unpacked" in load_error("a.zip", bytes(locked))


def test_a_link_in_an_archive_is_not_followed(load_error, tmp_path):
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a.jsonl")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path / "secret.jsonl"))
    assert "line 1, column 1: not JSON" in load_error("a.zip", file.getvalue())


def test_what_is_in_no_encoding_is_told(load_error):
    assert "d.csv: not UTF-16-LE, as it begins" in load_error(
        "d.csv", b"\xff\xfe" + "text\nx\n".encode("utf-16-le") + b"\0"
    )
    for name in ("d.jsonl", "d.json", "d.csv", "d.txt"):
        assert "byte" in load_error(name, TEXTS[name].encode() + b"\xe9 \xff\n"), name


def test_a_changed_file_in_another_encoding_is_read_anew(composed, files, texts, tmp_path):
    for answer in ("one", "two"):
        (tmp_path / "d.csv").write_text(f"question;answer\nhi;{answer}\n", encoding="utf-16")
        assert texts(composed(data="d.csv").train) == [files.rendered(("user", "hi"), ("assistant", answer))]
