"""Headers of GGUF files: what is forged is one message with the path, what exporters write is read."""

import struct
import time
from dataclasses import replace

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.io import gguf_file
from impruver_core.io.gguf_families import LISTS, is_usual_model
from impruver_core.io.gguf_file import GgufTensor, GgufValue, read_gguf_header, read_gguf_parts
from support.gguf_files import F16, LIST, Q8_0, TEXT, TOKENS, TYPES, GgufFile, Tensor, pack_text, pack_value

HUGE = (1 << 64) - 1
NESTED = struct.pack("<I", LIST) + struct.pack("<IQ", LIST, 1) * 100_000


def key(name, value):
    """Sets a key to bytes: its type's number and its value."""
    return lambda file: file.keys.__setitem__(name, value)


def number(name, kind, value):
    return key(name, pack_value(kind, value))


def tensor(**changes):
    """Changes the second tensor, which has 32 values of F32."""
    return lambda file: file.tensors.__setitem__(1, replace(file.tensors[1], **changes))


def whole(**changes):
    return lambda file: vars(file).update(changes)


def added(name, shape, *rest):
    return lambda file: file.tensors.append(Tensor(name, shape, *rest))


FORGED = {
    "no bytes": (lambda file: whole(cut=len(file.pack()))(file), "it does not begin with GGUF"),
    "four bytes": (lambda file: whole(cut=len(file.pack()) - 4)(file), "its header is cut off"),
    "another magic": (whole(magic=b"GGML"), "it does not begin with GGUF"),
    "the first version": (whole(version=1), "its version is 1, not 2 or 3"),
    "a later version": (whole(version=4), "its version is 4"),
    "big-endian": (whole(version=3 << 24), "for machines of the other byte order"),
    "more keys than there are": (whole(key_count=20), "its header is cut off|has the type|a name of|no text"),
    "fewer keys than there are": (whole(key_count=3), "a name of|no text|dimensions|has the type"),
    "keys beyond the file": (whole(key_count=4000), "its header is cut off|has the type|a name of|no text"),
    "countless keys": (whole(key_count=HUGE), "it counts 18,446,744,073,709,551,615 keys"),
    "countless tensors": (whole(tensor_count=1 << 62), "it counts 4,611,.* tensors"),
    "tensors beyond the file": (whole(tensor_count=9999), "its header is cut off|a name of|no text"),
    "a key without a name": (number("", "u32", 1), "a key has a name of 0 bytes"),
    "a key of several lines": (number("a\nb", "u32", 1), "the name of a key is no text"),
    "a key with zeros": (number("a\0b", "u32", 1), "the name of a key is no text"),
    "a key that is no text": (number(b"\xff", "u32", 1), "the name of a key is no text"),
    "a very long key": (number("a" * 70_000, "u32", 1), "a key has a name of 70,000 bytes"),
    "a type that is none": (key("x", struct.pack("<I", 13)), "x has the type 13"),
    "a list of a type that is none": (key("x", struct.pack("<IIQ", LIST, 99, 0)), "x has the type 99"),
    "a text beyond the file": (key("x", struct.pack("<IQ", TEXT, 1 << 40)), "its header is cut off"),
    "a text of all bytes": (key("x", struct.pack("<IQ", TEXT, HUGE)), "its header is cut off"),
    "a text that is none": (number("x", "text", b"\xff\xfe"), "the text of x is not UTF-8"),
    "a list beyond the file": (key("x", struct.pack("<IIQ", LIST, 4, 1 << 40)), "its header is cut off"),
    "a list of all numbers": (key("x", struct.pack("<IIQ", LIST, 12, HUGE)), "its header is cut off"),
    "a list of all texts": (key("x", struct.pack("<IIQ", LIST, TEXT, HUGE)), "its header is cut off"),
    "texts of a list beyond the file": (key("x", struct.pack("<IIQQ", LIST, TEXT, 2, HUGE)), "its header is cut off"),
    "a list of lists": (key("x", struct.pack("<IIQ", LIST, LIST, 0)), "x is a list of lists"),
    "deep nesting": (key("x", NESTED), "x is a list of lists"),
    "not quite true": (number("x", "bool", 2), "x is neither true nor false, but 2"),
    "a list of what is not quite true": (number("x", "[bool]", [0, 1, 255]), "x has items that are neither true nor"),
    "no number": (number("x", "f32", float("nan")), "x is nan"),
    "an infinite number": (number("x", "f64", float("-inf")), "x is -inf"),
    "an alignment of 0": (number("general.alignment", "u32", 0), "general.alignment is no power of two"),
    "an odd alignment": (number("general.alignment", "u32", 24), "general.alignment is no power of two"),
    "a large alignment": (number("general.alignment", "u32", 1 << 31), "general.alignment is no power of two"),
    "an alignment that is a float": (number("general.alignment", "f32", 32.0), "general.alignment is no power of two"),
    "alignments": (number("general.alignment", "[u32]", [32]), "general.alignment is no power of two"),
    "another alignment": (number("general.alignment", "u32", 4096), "are no tensor's|has bytes|cut off|begins at"),
    "a tensor without a name": (tensor(name=""), "a tensor has a name of 0 bytes"),
    "a tensor with a long name": (tensor(name="a" * 64), "a tensor has a name of 64 bytes"),
    "a tensor twice": (tensor(name="token_embd.weight"), "the tensor token_embd.weight stands there twice"),
    "no dimensions": (tensor(shape=[]), "output_norm.weight has 0 dimensions"),
    "five dimensions": (tensor(shape=[32, 1, 1, 1, 1]), "output_norm.weight has 5 dimensions"),
    "no values": (tensor(shape=[32, 0]), r"output_norm.weight is \[32, 0\]: it has no values"),
    "more values than there are": (tensor(shape=[HUGE, HUGE, HUGE, HUGE]), "blk.0.attn_norm.weight overlaps"),
    "a type of tensor that is none": (tensor(kind=99), "output_norm.weight has the type 99"),
    "a type that was given up": (tensor(kind=4), "output_norm.weight has the type 4"),
    "rows that are no blocks": (tensor(shape=[8], kind=Q8_0), "has rows of 8 values, and Q8_0 takes multiples of 32"),
    "shorter than its place": (tensor(shape=[8]), "blk.0.attn_norm.weight has bytes before it that are no tensor's"),
    "longer than its place": (tensor(shape=[40]), "blk.0.attn_norm.weight overlaps the tensor before it"),
    "in the place of another": (tensor(offset=0), "output_norm.weight overlaps the tensor before it"),
    "later than it should": (tensor(offset=1 << 40), "output_norm.weight has bytes before it that are no tensor's"),
    "not aligned": (tensor(offset=33_153), "output_norm.weight"),
    "at the end of all numbers": (tensor(offset=HUGE), "output_norm.weight has bytes before it"),
    "cut off": (whole(cut=1), "it is cut off within blk.0.ffn_down.weight, at"),
    "cut off in the middle": (whole(cut=40_000), "it is cut off within"),
    "cut off in the header": (whole(cut=73_000), "its header is cut off"),
    "trailing bytes": (whole(tail=b"x" * 7), "7 bytes follow its end"),
    "trailing zeros": (whole(tail=bytes(32)), "32 bytes follow its end"),
    "something in the padding": (added("x", [1]), "there are bytes at .* which are no tensor's"),
    "another file behind": (lambda file: whole(tail=GgufFile().pack())(file), "bytes follow its end"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_refused(what, tmp_path):
    change, words = FORGED[what]
    file = GgufFile()
    change(file)
    if what == "something in the padding":
        file.padding = b"x"
    path = file.write(tmp_path / "forged.gguf")
    with pytest.raises(ImpruverError, match=words) as refused:
        read_gguf_header(path)
    assert str(refused.value).startswith(f"{path}: no GGUF file: ")
    assert len(str(refused.value).splitlines()) == 1


def test_any_bytes_of_a_header_may_be_others(tmp_path):
    """A byte of it is another, or the last: no error but ours."""
    path = GgufFile().write(tmp_path / "x.gguf")
    content, refused = path.read_bytes(), 0
    for place in range(0, read_gguf_header(path).data_start, 41):
        for other in (content[:place], content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]):
            path.write_bytes(other)
            try:
                is_usual_model(read_gguf_parts(path, LISTS))
            except ImpruverError:
                refused += 1
    assert refused > 150


def test_a_key_that_stands_there_twice(tmp_path):
    content = GgufFile().pack()
    (tmp_path / "x.gguf").write_bytes(content.replace(b"llama.context_length", b"llama.block_count\0\0\0"))
    with pytest.raises(ImpruverError, match="the name of a key is no text"):
        read_gguf_header(tmp_path / "x.gguf")
    keys = pack_text("llama.block_count") + pack_value("u32", 1)
    twice = replace(GgufFile(), key_count=len(GgufFile().keys) + 1).pack().replace(keys, keys * 2)
    (tmp_path / "x.gguf").write_bytes(twice)
    with pytest.raises(ImpruverError, match=r"llama.block_count stands there twice"):
        read_gguf_header(tmp_path / "x.gguf")


def test_what_a_file_says(tmp_path):
    file = GgufFile()
    file.tensors += [Tensor("odd", [3], F16, bytes(6)), Tensor("last", [32, 2], Q8_0, bytes(68))]
    file.keys |= {"on": pack_value("bool", 1), "several": pack_value("[u16]", [1, 65535])}
    for changes in ({}, {"version": 2}, {"cut": 28}, {"cut": 5}, {"alignment": 8}, {"alignment": 4096}):
        changed = replace(file, **changes)
        changed.set("general.alignment", "u32", changed.alignment)
        header = read_gguf_header(changed.write(tmp_path / "x.gguf"), ("tokenizer.ggml.tokens", "several"))
        assert header.values["llama.block_count"] == GgufValue("uint32", 1)
        assert header.values["on"] == GgufValue("bool", True)
        assert header.values["several"] == GgufValue("uint16", (1, 65535), 2)
        assert header.values["tokenizer.ggml.tokens"].value == [token.encode() for token in TOKENS]
        assert header.values["tokenizer.ggml.token_type"] == GgufValue("int32", None, len(TYPES))
        assert header.tensors[0] == GgufTensor("token_embd.weight", (32, 260), "F32")
        assert header.tensors[-2:] == [GgufTensor("odd", (3,), "F16"), GgufTensor("last", (32, 2), "Q8_0")]
        assert header.data_start % changed.alignment == 0


def test_a_file_of_keys_alone(tmp_path):
    path = replace(GgufFile(), tensors=[]).write(tmp_path / "x.gguf")
    assert read_gguf_header(path).tensors == []
    path.write_bytes(path.read_bytes() + bytes(64))
    with pytest.raises(ImpruverError, match="bytes follow its end"):
        read_gguf_header(path)


def test_a_model_in_parts(tmp_path):
    first, second = GgufFile(), GgufFile(keys={"split.count": pack_value("u16", 2)})
    first.set("split.count", "u16", 2)
    first.tensors, second.tensors = first.tensors[:4], first.tensors[4:]
    path = first.write(tmp_path / "model-00001-of-00002.gguf")
    with pytest.raises(ImpruverError, match=r"model-00002-of-00002.gguf, one of its 2 parts, is not beside it"):
        read_gguf_parts(path)
    other = second.write(tmp_path / "model-00002-of-00002.gguf")
    assert [len(header.tensors) for header in read_gguf_parts(path, LISTS)] == [4, 7]
    assert not is_usual_model(read_gguf_parts(path, LISTS))
    other.write_bytes(other.read_bytes() + b"x")
    with pytest.raises(ImpruverError, match=r"00002-of-00002.gguf: no GGUF file: 1 bytes follow its end"):
        read_gguf_parts(path)


def test_a_pointer_of_git_lfs(tmp_path):
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ImpruverError, match="fetch that with git lfs pull"):
        read_gguf_header(tmp_path / "x.gguf")


def test_the_types_of_tensors_are_those_of_gguf_py():
    from gguf import GGML_QUANT_SIZES

    assert {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} == gguf_file.TENSOR_TYPES


def test_a_large_vocabulary_costs_little(tmp_path):
    file, texts = GgufFile(), [f"token {number}" for number in range(150_000)]
    file.set("tokenizer.ggml.tokens", "[text]", texts)
    path = file.write(tmp_path / "x.gguf")
    times = []
    for _ in range(5):
        start = time.process_time()
        read_gguf_header(path, LISTS)
        times.append(time.process_time() - start)
    assert min(times) < 0.15  # 0.025 s on an idle machine


def test_a_header_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "MOST_HEADER_BYTES", 4096)
    with pytest.raises(ImpruverError, match=r"its header is cut off, or takes more than 4,096 bytes"):
        read_gguf_header(GgufFile().write(tmp_path / "x.gguf"))
