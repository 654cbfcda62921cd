"""Plain text of any length to tokens, window by window: an encoding takes a hundred bytes and more for each token.

Two windows overlap. They are joined where both have the same tokens at the same places for a while: a tokenizer that
splits text into words, or merges what stands side by side, goes on alike from there.

    text       the quick brown fox jumps over the lazy dog
    window 1   the| quick| brown| fox| jumps| ov
    window 2                    own| fox| jumps| over| the| lazy| dog
    joined     the| quick| brown| fox| jumps| over| the| lazy| dog
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from impruver_core.chat_template.masking.byte_level import ByteLevelEncoding
from impruver_core.errors import RefusedError
from tokenizers import Encoding

WINDOW, OVERLAP = 1 << 20, 1 << 13  # characters
AGREEING = 16  # tokens that both windows have in a row


class TokenizedText(NamedTuple):
    """The tokens of a text: ids, (tokens,) of uint32, and where in the text each begins, (tokens,) of int64."""

    ids: np.ndarray
    starts: np.ndarray


def tokenize_text(encode: Callable[[list[str]], list], text: str) -> TokenizedText:
    """Tokenizes a text; `encode` is a text encoder. RefusedError where the tokenizer fails on it."""
    start, stop = 0, min(WINDOW, len(text))
    done, window = [], _encode_window(encode, text, start, stop)
    while stop < len(text):
        next_start, next_stop = stop - OVERLAP, min(stop - OVERLAP + WINDOW, len(text))
        following = _encode_window(encode, text, next_start, next_stop)
        join = _find_join(window, following, next_start + OVERLAP // 4, stop - OVERLAP // 4)
        if join is None:  # not to be cut there: both are one window
            window = _encode_window(encode, text, start, next_stop)
        else:
            here, there = join
            done.append(TokenizedText(window.ids[:here], window.starts[:here]))
            start, window = next_start, TokenizedText(following.ids[there:], following.starts[there:])
        stop = next_stop
    done.append(window)
    return TokenizedText(*(np.concatenate(parts) for parts in zip(*done, strict=True)))


def make_tokenized_text(encoding: Encoding | ByteLevelEncoding) -> TokenizedText:
    """The tokens of a text's encoding."""
    if isinstance(encoding, ByteLevelEncoding):
        return TokenizedText(np.array(encoding.ids, np.uint32), encoding.starts.copy())
    starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(encoding))
    return TokenizedText(np.array(encoding.ids, np.uint32), starts)


def _encode_window(encode: Callable, text: str, start: int, stop: int) -> TokenizedText:
    (encoding,) = encode([text[start:stop]])
    if isinstance(encoding, RefusedError):
        raise encoding
    tokens = make_tokenized_text(encoding)
    return TokenizedText(tokens.ids, tokens.starts + start)


def _find_join(window: TokenizedText, following: TokenizedText, first: int, last: int) -> tuple[int, int] | None:
    """Where, between two characters, both have the same AGREEING tokens: the first one's number in either."""
    for here in range(*np.searchsorted(window.starts, (first, last))):
        there = int(np.searchsorted(following.starts, window.starts[here]))
        stop, following_stop = here + AGREEING, there + AGREEING
        if stop > len(window.ids) or (here and window.starts[here - 1] == window.starts[here]):
            continue  # not within a character of several tokens
        if np.array_equal(window.starts[here:stop], following.starts[there:following_stop]) and np.array_equal(
            window.ids[here:stop], following.ids[there:following_stop]
        ):
            return here, there
    return None
