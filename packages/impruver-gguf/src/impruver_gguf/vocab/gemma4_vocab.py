"""Gemma 4's vocabulary: byte-pair merges of pieces with a mark for blanks, as tokenizer.json has them.

llama.cpp has a tokenizer of its own for it, and its converter gives other types to tokens than to SentencePiece's.
"""

import logging
import re
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from impruver_core.errors import ImpruverError

from impruver_gguf.vocab.saved_tokenizer import get_named_tokens, load_backend_tokenizer
from impruver_gguf.vocab.token_types import WORD_BORDER, Token, Vocabulary, check_vocab_size, make_padding
from impruver_gguf.vocab.vocabulary import write_special_tokens

SCORE = -1000.0  # of each token, since merges decide
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
# Tokens of tools and reasoning, which llama.cpp renders so that its parser can read them.
VISIBLE = {
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
}
BLANKS_AS_BORDERS = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_BORDER}


def build_gemma4_vocab(folder: Path, content: dict[str, Any], config: dict[str, Any], size: int) -> Vocabulary:
    """Build the vocabulary from tokenizer.json and tokenizer_config.json, padded to `size` ids."""
    _check_kind(folder, content)
    tokenizer = load_backend_tokenizer(folder, content, config)
    by_id = {token_id: text for text, token_id in tokenizer.get_vocab(with_added_tokens=True).items()}
    check_vocab_size(folder, max(by_id), size)
    base, special = tokenizer.get_vocab_size(with_added_tokens=False), _list_special_tokens(config)
    tokens = [_make_token(token_id, by_id.get(token_id), base, special) for token_id in range(size)]
    texts, types = [token.text for token in tokens], [token.type for token in tokens]
    return Vocabulary(texts, types, "gemma4", config, folder, [SCORE] * size)


def _check_kind(folder: Path, content: dict[str, Any]) -> None:
    """Raise ImpruverError where llama.cpp's Gemma 4 would split text otherwise."""
    model, pre = content.get("model") or {}, content.get("pre_tokenizer") or {}
    splits_at_blanks = pre.get("type") == "Split" and (pre.get("pattern") or {}).get("String") == " "
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ImpruverError(
            f"{folder}/tokenizer.json: no byte-pair merges with bytes to fall back on, which llama.cpp's Gemma 4 asks "
            "for: copy the base's tokenizer files"
        )
    if content.get("normalizer") != BLANKS_AS_BORDERS or (pre and not splits_at_blanks):
        raise ImpruverError(
            f"{folder}/tokenizer.json: splits text otherwise than Gemma 4's, and llama.cpp knows nothing else for it: "
            "other ids would come out, so no GGUF is written"
        )


def _list_special_tokens(config: dict[str, Any]) -> set[str]:
    """The texts that transformers counts as special: those that tokenizer_config.json names or lists."""
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [value for key, value in config.items() if key.endswith("_token")]
    values = [*(listed.values() if isinstance(listed, dict) else listed), *named]
    values += (config.get("model_specific_special_tokens") or {}).values()
    texts = {value.get("content") if isinstance(value, dict) else value for value in values}
    return {text for text in texts if isinstance(text, str)} | {*get_named_tokens(config).values()}


def _make_token(token_id: int, text: str | None, base: int, special: set[str]) -> Token:
    """Make a token; those from `base` on were added, and count as the user's own."""
    if text is None:
        return make_padding(token_id)
    if text in VISIBLE:
        return Token(text, TokenType.USER_DEFINED)
    if text in special:
        return Token(text, TokenType.CONTROL)
    if token_id >= base:
        return Token(text, TokenType.USER_DEFINED)
    return Token(text, TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL)


def write_gemma4_vocab(writer: GGUFWriter, vocab: Vocabulary) -> None:
    """Write tokens, merges, special ids and the chat template; a text begins with BOS, and with no blank."""
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(vocab.tokens)
    writer.add_token_scores(vocab.scores)
    writer.add_token_types(vocab.types)
    write_special_tokens(writer, vocab, load_merges=True)
    writer.add_add_space_prefix(False)
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)  # it notes that the next key may be there
    writer.add_add_bos_token(True)
