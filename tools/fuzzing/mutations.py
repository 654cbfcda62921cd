"""Strategies for odd values, and for what is valid with something broken in it."""

import copy
import json
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

# What json.dumps does not write, by the text that stands for it until `dump_json`.
RAW = {
    "@deep-lists": "[" * 20_000 + "]" * 20_000,
    "@deep-objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "@open-lists": "[" * 100_000,
    "@digits": "9" * 5000,
    "@exponent": "1e99999",
    "@minus-exponent": "-1e99999",
    "@nan": "NaN",
    "@infinity": "Infinity",
    "@half-pair": '"\\ud800"',
    "@null-byte": '"a\\u0000b"',
    "@long-text": json.dumps("a" * 1_000_000),
    "@twice": '{"a": 1, "a": 2}',
    "@bytes": '"\x01\x02"',
}
TEXTS = [
    *("", " ", "a", "0", "-1", "true", "null", "NaN", "1e999", "_", ".", "..", "/", "~", "~root", "~nobody/x", "*"),
    *("**", "../../x", "/etc/passwd", "/dev/null", "/dev/zero", "/proc/self/mem", "C:\\x", "a/../../b"),
    *("file:///etc/passwd", "\x00", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31mred", "\u202egnp.exe"),
    *("\u2066a\u2069", "\ufeff", "\u2028", "\r", "\n", "\t", "a\nb", "\x7f", "é", "e\u0301", "🍎", "ﷺ" * 20),
    *("\U0010ffff", "\udcff", "İ", "ß", "%s%n%d", "{0.__class__}", "{{ 7 * 7 }}", "{% raw %}", "${HOME}", "$(id)"),
    *("`id`", "'; --", '"', "\\", "<script>", "(a+)+$", "(", "[", "*a", "(?P<x>", "(?i)a", "a{1,99999999}"),
    *("os.system", "builtins.eval", "json.loads", "x" * 300, "a" * 100_000, "<|end|>", "<s>", "<pad>", "<|user|>"),
    *("LlamaForCausalLM", "transformers.AutoModel", "system"),
]
NUMBERS = [
    *(0, -1, 1, 2, 3, 7, 64, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1),
    *(2**63, 2**64 - 1, 2**64, 10**18, 10**30, 10**300, -(2**31), -(2**63), 0.5, -0.0, 1e-300, 1e300, 0.1, 1.5),
    *(1e38, 3e38),
]
PLAIN = [
    *(None, True, False, [], {}, [[]], [{}], [None], {"a": None}, {"": ""}, [1, "a", None], {"type": "x"}),
]
BLOCKS = [
    *(b"\x00", b"\xff", b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\xff" * 7 + b"\x7f"),
    *(b"\x01" + b"\x00" * 7, b"\n", b"\r", b"\r\n", b'"', b"\\", b"{", b"[", b"}", b",", b":", b"#", b"&", b"*"),
    *(b"\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x1b[2J"),
    *(b"\xc2\x9b", "\u202e".encode(), b"PK\x03\x04", b"GGUF", b"PAR1", b"ARROW1", b"\x1f\x8b", b"BZh9"),
    *(b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x80\x04cos\nsystem\n", b"a" * 5000),
]

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-(10**6), 10**6), st.floats(allow_nan=False))
scalars = st.one_of(texts, numbers, st.sampled_from(PLAIN), st.sampled_from(sorted(RAW)))
values = st.recursive(
    scalars, lambda each: st.one_of(st.lists(each, max_size=4), st.dictionaries(texts, each, max_size=3)), max_leaves=6
)


def dump_json(value: Any, **options: Any) -> bytes:
    """JSON, with what stands for RAW put in; half a surrogate pair stays as an escape."""
    text = json.dumps(value, **options)
    for name, raw in RAW.items():
        if name in text:
            text = text.replace(json.dumps(name), raw)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def mutate_value(draw: st.DrawFn, value: Any, most: int = 3, odd: st.SearchStrategy = values) -> Any:
    """The JSON value with some of its items replaced, left out, doubled, moved, or others added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        if not isinstance(value, (dict, list)) or not value:
            return copy.deepcopy(draw(odd))
        where, key = _choose_item(draw, value)
        change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "copy", "wrap")))
        if change == "replace":
            where[key] = copy.deepcopy(draw(odd))  # what is drawn is shared
        elif change == "remove":
            del where[key]
        elif change == "wrap":
            where[key] = draw(
                st.sampled_from(([where[key]], {"a": where[key]}, [where[key]] * 50, str(where[key])[:999]))
            )
        else:
            other, name = _choose_item(draw, value)
            item = copy.deepcopy(other[name] if change == "copy" else draw(odd))
            if isinstance(where, list):
                where.insert(key, item)
            else:
                where[draw(texts)] = item
    return value


def _choose_item(draw: st.DrawFn, value: dict | list) -> tuple[dict | list, Any]:
    """A container within the value and a key of it; those further up more often."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        if not isinstance(value[key], (dict, list)) or not value[key] or draw(st.integers(0, 2)) == 0:
            return value, key
        value = value[key]


@st.composite
def mutate_bytes(draw: st.DrawFn, content: bytes, most: int = 4, blocks: Sequence[bytes] = BLOCKS) -> bytes:
    """The bytes with some changed, left out, cut off, doubled, or others put in; near the beginning more often."""
    for _ in range(draw(st.integers(1, most))):
        size = len(content)
        at = draw(st.one_of(st.integers(0, min(size, 64)), st.integers(0, size)))
        length = draw(st.one_of(st.integers(1, 8), st.integers(1, max(1, size))))
        change = draw(st.sampled_from(("flip", "put", "over", "remove", "cut", "double")))
        if change == "flip" and at < size:
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif change in ("put", "over"):
            block = draw(st.sampled_from(blocks))
            content = content[:at] + block + content[at + (len(block) if change == "over" else 0) :]
        elif change == "remove":
            content = content[:at] + content[at + length :]
        elif change == "cut":
            content = content[:at]
        elif change == "double":
            content = content[: at + length] + content[at:]
    return content


@st.composite
def mutate_text(draw: st.DrawFn, text: str, pieces: Sequence[str], most: int = 4) -> str:
    """A text with some of its words and lines left out, doubled, moved, or pieces put in."""
    words = re.findall(r"\w+|\W", text)
    for _ in range(draw(st.integers(1, most))):
        at, other = (draw(st.integers(0, len(words))) for _ in range(2))
        change = draw(st.sampled_from(("put", "put", "replace", "remove", "double", "swap")))
        if change == "put":
            words.insert(at, draw(st.sampled_from(pieces)))
        elif change == "replace":
            words[at : at + 1] = [draw(st.sampled_from(pieces))]
        elif change == "remove":
            words[at : at + draw(st.integers(1, 20))] = []
        elif change == "double":
            words[at:at] = words[at : at + draw(st.integers(1, 40))]
        elif at < len(words) and other < len(words):
            words[at], words[other] = words[other], words[at]
    return "".join(words)
