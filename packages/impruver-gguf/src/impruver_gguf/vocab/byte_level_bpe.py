"""Build a byte-level BPE vocabulary from tokenizer.json."""

from pathlib import Path
from typing import Any

from gguf import TokenType
from impruver_core.errors import ImpruverError
from tokenizers import AddedToken, Tokenizer

from impruver_gguf.vocab.pre_tokenizers import PROBE, find_pre_tokenizer
from impruver_gguf.vocab.saved_tokenizer import load_backend_tokenizer
from impruver_gguf.vocab.token_types import Token, Vocabulary, check_vocab_size, make_added_token, make_padding

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def is_byte_level(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind."""
    model, decoder = content["model"], content.get("decoder") or {}
    parts = decoder.get("decoders") or [decoder]
    byte_level = any(part.get("type") == "ByteLevel" for part in parts)
    return byte_level and model.get("type") == "BPE" and not model.get("byte_fallback")


def build_byte_level_vocab(folder: Path, content: dict[str, Any], config: dict[str, Any], size: int) -> Vocabulary:
    """Build the vocabulary from tokenizer.json and tokenizer_config.json, padded to `size` ids."""
    affix = next((name for name in AFFIXES if content["model"].get(name)), None)
    if affix:
        raise ImpruverError(
            f"{folder}/tokenizer.json: model.{affix} is {content['model'][affix]!r}, and llama.cpp's BPE knows no such "
            "mark on parts of words: it would give other ids, so no GGUF is written"
        )
    tokenizer = load_backend_tokenizer(folder, content, config)
    by_id = {token_id: text for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    check_vocab_size(folder, max(by_id), size)
    pre = find_pre_tokenizer(tokenizer.encode(PROBE).ids, content)
    if pre is None:
        raise ImpruverError(
            f"{folder}/tokenizer.json: llama.cpp knows no pre-tokenizer that splits text as this one does; nothing "
            "else would give the same ids, so no GGUF is written"
        )
    added = tokenizer.get_added_tokens_decoder()
    tokens = [_make_token(token_id, by_id.get(token_id), added.get(token_id), tokenizer) for token_id in range(size)]
    return Vocabulary([token.text for token in tokens], [token.type for token in tokens], pre, config, folder)


def _make_token(token_id: int, text: str | None, added: AddedToken | None, tokenizer: Tokenizer) -> Token:
    """Make a token; an added one that is not normalized stands as encoding and decoding leave it."""
    if text is None:
        return make_padding(token_id)
    if added is None:
        return Token(text, TokenType.NORMAL)
    if not added.normalized:
        text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    return make_added_token(text, added.special)
