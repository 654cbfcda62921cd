"""A SentencePiece vocabulary: pieces and scores from tokenizer.model, added tokens from the files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import INDEX, TEXT, by_name, check_keys, read_json

from impruver_gguf.vocab.byte_level_bpe import check_size
from impruver_gguf.vocab.token_types import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    added_token,
    padding,
)

MODEL = "tokenizer.model"


NO_SCORE, ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's, for ids without a piece and for added tokens


DIFFERING = 0.01  # share of pieces that tokenizer.json may call otherwise


def piece_vocabulary(
    folder: Path, content: dict[str, Any], config: dict[str, Any], size: int, plain_added: bool
) -> Vocabulary:
    """Its tokens, filled up to `size` ids; `plain_added` where added tokens are taken as they stand."""
    texts, scores, types = _pieces(folder / MODEL)
    check_size(folder, len(texts) - 1, size)
    _check_same(folder, texts, content)
    padded = range(len(texts), size)
    texts += [padding(number) for number in padded]
    scores += [NO_SCORE] * len(padded)
    types += [UNUSED] * len(padded)
    for number, text, special in _added(folder, content, config):
        check_size(folder, number, size)
        if plain_added:
            texts[number], types[number] = text, CONTROL if special else USER_DEFINED
        else:
            texts[number], types[number] = added_token(text, special)
        scores[number] = ADDED_SCORE
    return Vocabulary(texts, types, "default", config, folder, scores)


def _pieces(path: Path) -> tuple[list[str], list[float], list[int]]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        model.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise ImpruverError(f"{path}: no SentencePiece model ({error}); copy the base's again") from None
    ids = list(range(model.vocab_size()))
    types = np.full(len(ids), NORMAL)
    kinds = ((model.IsByte, BYTE), (model.IsUnused, UNUSED), (model.IsControl, CONTROL), (model.IsUnknown, UNKNOWN))
    for asked, kind in kinds:
        types[np.array(asked(ids), bool)] = kind
    return model.IdToPiece(ids), model.GetScore(ids), types.tolist()


def _check_same(folder: Path, texts: list[str], content: dict[str, Any]) -> None:
    """ImpruverError where tokenizer.json has other pieces: the model was trained with those."""
    ids = content.get("model", {}).get("vocab")
    if not isinstance(ids, dict):
        return
    differing = sum(ids.get(text, number) != number for number, text in enumerate(texts))
    if differing > DIFFERING * len(texts):
        raise ImpruverError(
            f"{folder / MODEL}: tokenizer.json has other ids for {differing} of its {len(texts)} pieces: it is of "
            "another model; copy that of the base"
        )


def _added(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of added tokens, from the file that counts least to the one that counts most."""
    known = {int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()}
    for token in content.get("added_tokens") or []:
        if token["id"] not in known:
            yield token["id"], token["content"], bool(token.get("special"))
    path = folder / "added_tokens.json"
    if path.is_file():
        named = read_json(path)
        check_keys({"added tokens": named}, {"added tokens": by_name(TEXT, INDEX)}, path)
        yield from ((number, text, False) for text, number in named.items() if number not in known)
    for number, token in known.items():
        yield number, token["content"], bool(token.get("special"))
