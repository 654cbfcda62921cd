"""Where the tokens of byte-level BPE stand in their text: known from the tokens alone, without offsets.

Such a tokenizer changes nothing of a text (one that composes characters, by NFC, nothing of a text that is composed):
its tokens are the text's bytes in order. So a token's place is the sum of the bytes before it, and a text whose bytes
are as many as its tokens' has lost none. Encoders that give ids without offsets are faster, `tokenizers`' own among
them.

    text       Hé <|im_end|>
    tokens     H   Ã   ©   Ġ   <|im_end|>      (é is two bytes, here two tokens)
    bytes      1   1   1   1   10
    ends       1   2   3   4   14
"""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from impruver_core.errors import RefusedError
from impruver_core.tokenizer import plain_encoder

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

SPLITTERS = ("Split", "Digits", "ByteLevel")  # take nothing away, unless they say so
OTHER_BYTES = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")  # of a model
UNKNOWN = 1 << 40  # bytes of a token that may stand for any: with one, the sum is never that of a text
CONTINUATION = 0xC0, 0x80  # of a byte in UTF-8 the two highest bits, and what they are unless it begins a character


class ByteLevelVocabulary(NamedTuple):
    """The bytes of each token, (vocabulary + 1,) of int64; `composes`: by NFC, before a text is split."""

    lengths: np.ndarray
    composes: bool


class ByteLevelEncoding:
    """The ids of a text, also as an array, and where its tokens stand in it, as `tokenizers.Encoding` says it.

    `ends`, (tokens,) of int64, are the bytes up to the end of each token; `size` are those of the text.
    """

    def __init__(self, text: str, array: np.ndarray, ends: np.ndarray, size: int):
        self.text, self.array = text, array
        self._ends, self._size = ends, size

    def __len__(self) -> int:
        return len(self.array)

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the text."""
        return self.array.tolist()

    def _find_char_starts(self) -> np.ndarray | None:
        """The first byte of each character and the end of the text, (characters + 1,); None where that is its index."""
        if self._size == len(self.text):
            return None
        content = np.frombuffer(self.text.encode(errors="surrogatepass"), np.uint8)
        mask, value = CONTINUATION
        return np.append(np.flatnonzero((content & mask) != value), self._size)

    @cached_property
    def starts(self) -> np.ndarray:
        """The character in which each token begins, (tokens,) of int64."""
        starts = np.concatenate([self._ends[:0], [0], self._ends[:-1]])[: len(self._ends)]
        char_starts = self._find_char_starts()
        return starts if char_starts is None else np.searchsorted(char_starts, starts, "right") - 1

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters that each token holds one byte of, or more: from the first to behind the last."""
        char_starts = self._find_char_starts()
        ends = self._ends if char_starts is None else np.searchsorted(char_starts, self._ends, "left")
        return list(zip(self.starts.tolist(), ends.tolist(), strict=True))

    def find_token_ranges(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The tokens that hold a byte of each span of characters, first and behind the last; (0, 0) of an empty one."""
        starts = self._find_char_starts()
        ends = self._ends.tolist()  # of few spans bisecting a list is faster than arrays
        ranges = []
        for start, stop in spans:
            first, last = (start, stop) if starts is None else (int(starts[start]), int(starts[stop]))
            ranges.append((bisect_right(ends, first), bisect_left(ends, last) + 1) if start < stop else (0, 0))
        return ranges


def build_byte_level_encodings(
    texts: Sequence[str], ids: Sequence[Sequence[int] | None], vocabulary: ByteLevelVocabulary
) -> list[ByteLevelEncoding | None]:
    """Builds the encodings of texts from their ids; None where there are no ids, or their bytes are not the text."""
    lengths = vocabulary.lengths
    counts = [len(each) if each is not None else 0 for each in ids]
    known = [each for each in ids if each is not None]
    if known and isinstance(known[0], np.ndarray):
        array = np.concatenate(known)
    else:
        array = np.fromiter(chain.from_iterable(known), np.uint32, sum(counts))
    ends = np.cumsum(lengths[np.minimum(array, len(lengths) - 1)])  # of all texts, one behind the other
    encodings: list[ByteLevelEncoding | None] = []
    start, before = 0, 0
    for text, own, count in zip(texts, ids, counts, strict=True):
        stop = start + count
        size = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        after = int(ends[stop - 1]) if stop else 0
        is_whole = own is not None and after - before == size
        is_whole = is_whole and (not vocabulary.composes or unicodedata.is_normalized("NFC", text))
        encodings.append(
            ByteLevelEncoding(text, array[start:stop], ends[start:stop] - before, size) if is_whole else None
        )
        start, before = stop, after
    return encodings


def encode_with_offsets(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Encoding | RefusedError]:
    """The encodings of texts as `tokenizers` gives them."""
    with plain_encoder(tokenizer) as encode:
        return encode(texts)


def read_byte_level_vocabulary(backend: Tokenizer) -> ByteLevelVocabulary | None:
    """The vocabulary of a byte-level BPE; None for any other kind of tokenizer."""
    if not _is_byte_level(backend):
        return None
    tokens = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder()
    lengths = np.full(max((*tokens.values(), *added), default=0) + 2, UNKNOWN, np.int64)  # the last: of any other id
    numbers = np.fromiter(tokens.values(), np.int64, len(tokens))
    lengths[numbers] = np.fromiter(map(len, tokens), np.int64, len(tokens))  # a character for each byte
    for number, token in added.items():
        lengths[number] = len(token.content.encode())
    unknown = backend.model.unk_token
    if unknown is not None and (number := backend.token_to_id(unknown)) is not None:
        lengths[number] = UNKNOWN
    lengths[lengths == 0] = UNKNOWN
    return ByteLevelVocabulary(lengths, backend.normalizer is not None)


def _is_byte_level(backend: Tokenizer) -> bool:
    """Whether a tokenizer gives the bytes of any text in order, if it loses none."""
    model = backend.model
    try:
        normalizer, steps = _read_component(backend.normalizer), _read_component(backend.pre_tokenizer)
    except Exception:  # bare ones, of components that are written in Python
        return False
    steps = steps.get("pretokenizers", [steps])
    return (
        type(model).__name__ == "BPE"
        and normalizer in ({}, {"type": "NFC"})
        and not any(getattr(model, name) for name in OTHER_BYTES)
        and sum(step.get("type") == "ByteLevel" for step in steps) == 1
        and all(step.get("type") in SPLITTERS and step.get("behavior") != "Removed" for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and steps[-1].get("type") == "ByteLevel"
    )


def _read_component(component: Any) -> dict:
    """A part of a tokenizer as its JSON has it; {} for none."""
    return {} if component is None else json.loads(component.__getstate__())
