"""Encoders of texts: `tokenizers`, and gigatoken, which is faster and is checked against it.

Both give the same ids, or gigatoken is not used. Where their tokens stand in a text follows, for byte-level BPE, from
the ids alone (`byte_level`), so that `tokenizers` need not follow offsets either; for all others it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from impruver_core.chat_template.masking.byte_level import (
    ByteLevelEncoding,
    ByteLevelVocabulary,
    build_byte_level_encodings,
    encode_with_offsets,
    read_byte_level_vocabulary,
)
from impruver_core.errors import ImpruverError, RefusedError, describe_error
from impruver_core.tokenizer import is_backend_failure, plain_encoder

if TYPE_CHECKING:
    from gigatoken import Tokenizer as Gigatoken
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

INSTALL = "pip install 'impruver-compose[fast]'"
CHECKED_FIRST, CHECKED = 100, 1  # texts of a data set, and of each further shard of a thousand rows, that both encode
RENEWED = 1 << 28  # characters after which gigatoken is loaded anew: what it remembers of words is never forgotten
EXCERPT = 40  # characters before and behind the first difference


class EncoderDisagreesError(ImpruverError):
    """gigatoken and `tokenizers` encode a text of a data set differently."""


class TokenizersEncoder:
    """Encodes by `tokenizers`: of byte-level BPE without its offsets, which cost more than to compute them."""

    name = "tokenizers"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: ByteLevelVocabulary | None = None):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    def describe(self) -> str:
        """Its name and version."""
        return f"tokenizers {version('tokenizers')}"

    def begin_shard(self, is_first: bool) -> None:
        """Says that the texts of another shard follow, of which nothing has to be checked."""

    def __call__(self, texts: list[str]) -> list[ByteLevelEncoding | Encoding | RefusedError]:
        """The encoding of each text, or a RefusedError where the backend fails on it."""
        if self._vocabulary is None:
            return encode_with_offsets(self._tokenizer, texts)
        try:
            ids = encode_ids(self._tokenizer, texts)
        except BaseException as error:
            if not is_backend_failure(error):
                raise
            return encode_with_offsets(self._tokenizer, texts)  # which says it of each text
        encodings = build_byte_level_encodings(texts, ids, self._vocabulary)
        return _fill_gaps(encodings, texts, partial(encode_with_offsets, self._tokenizer))


class GigatokenEncoder:
    """Encodes by gigatoken; EncoderDisagreesError where `tokenizers`, which encodes a sample, gives other ids."""

    name = "gigatoken"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: ByteLevelVocabulary):
        """Raises what gigatoken raises for a tokenizer that it does not take."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._content = tokenizer.backend_tokenizer.to_str()
        self._unchecked, self._passed = CHECKED_FIRST, 0
        self._gigatoken = self._load()

    def __reduce__(self) -> tuple:
        """gigatoken itself can't be sent to another process: it is loaded there."""
        return GigatokenEncoder, (self._tokenizer, self._vocabulary)

    def _load(self) -> Gigatoken:
        from gigatoken import Tokenizer

        return Tokenizer.from_json(self._content)

    def describe(self) -> str:
        """Its name and version, and those of what checks it."""
        return f"gigatoken {version('gigatoken')}, checked by tokenizers {version('tokenizers')}"

    def begin_shard(self, is_first: bool) -> None:
        """Says that the texts of another shard follow: the first ones are encoded by `tokenizers`, too."""
        self._unchecked = CHECKED_FIRST if is_first else CHECKED

    def __call__(self, texts: list[str]) -> list[ByteLevelEncoding | Encoding | RefusedError]:
        """The encoding of each text, or a RefusedError where `tokenizers` fails on it."""
        if not texts:
            return []
        self._passed += sum(map(len, texts))
        if self._passed > RENEWED:
            self._gigatoken, self._passed = self._load(), 0
        found = self._encode(texts)
        encodings = build_byte_level_encodings(texts, found, self._vocabulary)
        checked = min(self._unchecked, len(texts))
        self._unchecked -= checked
        _compare(texts[:checked], found[:checked], encode_with_offsets(self._tokenizer, texts[:checked]))

        def encode_others(others: list[str]) -> list[Encoding | RefusedError]:
            wanted = encode_with_offsets(self._tokenizer, others)
            _compare(others, [ids for ids, each in zip(found, encodings, strict=True) if each is None], wanted)
            return wanted

        return _fill_gaps(encodings, texts, encode_others)

    def _encode(self, texts: list[str]) -> list[np.ndarray | None]:
        """The ids of each text, uint32 (tokens,); None for one that gigatoken fails on."""
        return [self._encode_text(text) for text in texts]  # a batch at once would import awkward, and build lists

    def _encode_text(self, text: str) -> np.ndarray | None:
        try:
            return self._gigatoken.encode(text)
        except BaseException as error:
            if not is_backend_failure(error):
                raise
            return None


def find_encoder(tokenizer: PreTrainedTokenizerFast, wanted: str) -> TokenizersEncoder | GigatokenEncoder:
    """The encoder `wanted` for a tokenizer; `auto` is gigatoken where it is installed and takes the tokenizer.

    ImpruverError where gigatoken is wanted and can't be used.
    """
    vocabulary = read_byte_level_vocabulary(tokenizer.backend_tokenizer)
    if wanted != "tokenizers":
        if find_spec("gigatoken") is None:
            reason = f"gigatoken is not installed: {INSTALL}"
        elif vocabulary is None:
            reason = "gigatoken gives no offsets, and this tokenizer is no byte-level BPE, or changes the text before"
        else:
            try:
                return GigatokenEncoder(tokenizer, vocabulary)
            except BaseException as error:
                if not is_backend_failure(error):
                    raise
                reason = f"gigatoken does not take this tokenizer ({describe_error(error).partition(' Location:')[0]})"
        if wanted == "gigatoken":
            raise ImpruverError(f"compose.encoder: {reason}; auto takes it where it can be used")
    return TokenizersEncoder(tokenizer, vocabulary)


def encode_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """The ids of texts by `tokenizers`, without offsets; raises what the backend raises."""
    with plain_encoder(tokenizer):
        return [each.ids for each in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _fill_gaps(encodings: list[Any], texts: Sequence[str], encode: Callable[[list[str]], list]) -> list[Any]:
    """The encodings with those that are None, whose tokens are not the bytes of their text, made by `encode`."""
    gaps = [number for number, encoding in enumerate(encodings) if encoding is None]
    if gaps:
        for number, encoding in zip(gaps, encode([texts[number] for number in gaps]), strict=True):
            encodings[number] = encoding
    return encodings


def _compare(
    texts: Sequence[str], found: Sequence[np.ndarray | None], wanted: Sequence[Encoding | RefusedError]
) -> None:
    """EncoderDisagreesError for the first text that gigatoken encoded to other ids than wanted."""
    for text, ids, encoding in zip(texts, found, wanted, strict=True):
        if ids is None or isinstance(encoding, RefusedError) or ids.tolist() == encoding.ids:
            continue
        pairs = enumerate(zip(ids.tolist(), encoding.ids, strict=False))
        first = next((number for number, (one, other) in pairs if one != other), min(len(ids), len(encoding.ids)))
        at = encoding.offsets[first][0] if first < len(encoding.ids) else len(text)
        raise EncoderDisagreesError(f"at {text[max(0, at - EXCERPT) : at + EXCERPT]!r}, token {first}")
