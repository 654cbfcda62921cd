"""Build a SentencePiece vocabulary: pieces and scores from tokenizer.model, added tokens from the files beside it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import TokenType
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import INDEX, TEXT, by_name, check_keys, read_json

from impruver_gguf.vocab.saved_tokenizer import SENTENCEPIECE_MODEL
from impruver_gguf.vocab.token_types import Token, Vocabulary, check_vocab_size, make_added_token, make_padding

NO_SCORE, ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's, for ids without a piece and for added tokens
MAX_DIFFERING = 0.01  # share of pieces that tokenizer.json may call otherwise


class AddedToken(NamedTuple):
    """A token that the files beside tokenizer.model add, or describe anew."""

    id: int
    text: str
    special: bool


def build_sentencepiece_vocab(
    folder: Path, content: dict[str, Any], config: dict[str, Any], size: int, plain_added: bool
) -> Vocabulary:
    """Build the vocabulary, padded to `size` ids; with `plain_added` added tokens stand as they are."""
    from sentencepiece import SentencePieceProcessor

    model, path = SentencePieceProcessor(), folder / SENTENCEPIECE_MODEL
    try:
        model.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise ImpruverError(f"{path}: no SentencePiece model ({error}); copy the base's again") from None
    ids = list(range(model.vocab_size()))
    texts, scores, types = model.IdToPiece(ids), model.GetScore(ids), np.full(len(ids), TokenType.NORMAL)
    kinds = {"UNUSED": model.IsUnused, "CONTROL": model.IsControl, "UNKNOWN": model.IsUnknown}
    for name, is_kind in ({"BYTE": model.IsByte} | kinds).items():
        types[np.array(is_kind(ids), bool)] = TokenType[name]
    types = types.tolist()
    check_vocab_size(folder, len(texts) - 1, size)
    _check_same_pieces(folder, texts, content)
    for token in map(make_padding, range(len(texts), size)):
        texts.append(token.text)
        types.append(token.type)
        scores.append(NO_SCORE)
    for added in _list_added_tokens(folder, content, config):
        check_vocab_size(folder, added.id, size)
        plain = Token(added.text, TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
        token = plain if plain_added else make_added_token(added.text, added.special)
        texts[added.id], types[added.id], scores[added.id] = token.text, token.type, ADDED_SCORE
    return Vocabulary(texts, types, "default", config, folder, scores)


def _check_same_pieces(folder: Path, texts: list[str], content: dict[str, Any]) -> None:
    """Raise ImpruverError where tokenizer.json has other pieces: the model was trained with those."""
    ids = content.get("model", {}).get("vocab")
    if not isinstance(ids, dict):
        return
    differing = sum(ids.get(text, token_id) != token_id for token_id, text in enumerate(texts))
    if differing > MAX_DIFFERING * len(texts):
        raise ImpruverError(
            f"{folder / SENTENCEPIECE_MODEL}: tokenizer.json has other ids for {differing} of its {len(texts)} pieces: "
            "it is of another model; copy that of the base"
        )


def _list_added_tokens(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> Iterator[AddedToken]:
    """Yield added tokens from the file that counts least to the one that counts most."""
    decoder = {int(token_id): token for token_id, token in (config.get("added_tokens_decoder") or {}).items()}
    for token in content.get("added_tokens") or []:
        if token["id"] not in decoder:
            yield AddedToken(token["id"], token["content"], bool(token.get("special")))
    path = folder / "added_tokens.json"
    named = read_json(path, missing_ok=True)
    check_keys({"added tokens": named}, {"added tokens": by_name(TEXT, INDEX)}, path)
    yield from (AddedToken(token_id, text, False) for text, token_id in named.items() if token_id not in decoder)
    for token_id, token in decoder.items():
        yield AddedToken(token_id, token["content"], bool(token.get("special")))
