"""The tokenizer as GGUF holds it, read without transformers; its chat template and special tokens."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import (
    FLAG,
    INDEX,
    OBJECT,
    TEXT,
    JsonType,
    by_name,
    either,
    list_of,
    read_json,
    read_text,
)
from impruver_core.tokenizer import NAMED_TOKENS

from impruver_gguf.vocab.byte_level_bpe import byte_level_vocabulary, is_byte_level
from impruver_gguf.vocab.chat_template_export import exported
from impruver_gguf.vocab.sentencepiece_vocab import MODEL, piece_vocabulary
from impruver_gguf.vocab.token_types import Vocabulary, named_tokens

FILES = ("tokenizer.json", "tokenizer_config.json", MODEL, "added_tokens.json", "chat_template.jinja")


TOKEN = JsonType(
    "an object with a text as content", lambda value: OBJECT.holds(value) and TEXT.holds(value.get("content"))
)


NUMBERED = JsonType(
    "an object with a text as content and an id", lambda value: TOKEN.holds(value) and INDEX.holds(value.get("id"))
)


IDENTIFIER = JsonType("a number in digits", str.isdecimal)


CONFIG_KEYS = {
    **dict.fromkeys(NAMED_TOKENS, either(TEXT, TOKEN)),
    **dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token"), FLAG),
    "added_tokens_decoder": by_name(IDENTIFIER, TOKEN),
    "chat_template": either(TEXT, list_of(by_name(TEXT, TEXT))),
}


TOKENIZER_KEYS = {"model": {}, "decoder": {"decoders": list_of(OBJECT)}, "added_tokens": list_of(NUMBERED)}


def read_vocabulary(folder: Path, size: int, plain_added: bool = False) -> Vocabulary:
    """The vocabulary in a folder, filled up to `size` ids; ImpruverError where it can't be had or is another kind."""
    config, path = tokenizer_config(folder), folder / "tokenizer.json"
    if not path.is_file() and not (folder / MODEL).is_file():
        raise ImpruverError(f"{path} is not there: copy the tokenizer's files into {folder}, or train again")
    content = tokenizer_json(folder)
    if path.is_file() and not content.get("model"):
        raise ImpruverError(f"{path}: holds no tokenizer (model is not set): copy the tokenizer's files again")
    if content and is_byte_level(content):
        return byte_level_vocabulary(folder, content, config, size)
    kind = (content.get("model") or {}).get("type")
    if kind in ("WordPiece", "WordLevel"):
        raise ImpruverError(f"{path}: a {kind} vocabulary, which llama.cpp's language models do not have")
    if not (folder / MODEL).is_file():
        raise ImpruverError(
            f"{path}: no byte-level BPE but a SentencePiece vocabulary, whose scores stand in {MODEL} alone: copy the "
            f"base's {MODEL} into {folder} (other kinds are not converted)"
        )
    return piece_vocabulary(folder, content, config, size, plain_added)


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Tokens, merges, special ids and the chat template, through gguf's own reader of a tokenizer's folder."""
    import gguf

    writer.add_tokenizer_model("llama" if vocabulary.sentencepiece else "gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    merges, count = not vocabulary.sentencepiece, len(vocabulary.tokens) if vocabulary.sentencepiece else None
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it notes what llama.cpp does not need
    try:
        special = gguf.SpecialVocab(vocabulary.folder, load_merges=merges, n_vocab=count)
    except Exception as error:  # gguf takes these files as they come
        raise ImpruverError(
            f"{vocabulary.folder}: the special tokens in config.json, tokenizer_config.json or tokenizer.json can't be "
            f"read ({error}); copy these files again"
        ) from None
    special.chat_template = exported(special.chat_template)
    special.add_to_gguf(writer, quiet=True)


def tokenizer_json(folder: Path) -> dict[str, Any]:
    """tokenizer.json without its merges; {} where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    known = path.stat()
    return _tokenizer_json(path, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=1)
def _tokenizer_json(path: Path, *_: int) -> dict[str, Any]:
    content = read_json(path, TOKENIZER_KEYS)  # asked for more than once, and tens of megabytes
    (content.get("model") or {}).pop("merges", None)  # most of them, and needed by nobody here
    return content


def largest_id(folder: Path) -> int:
    """The largest id of a tokenizer's tokens; -1 where tokenizer.json tells none."""
    content = tokenizer_json(folder)
    ids = [token["id"] for token in content.get("added_tokens") or []]
    vocab = (content.get("model") or {}).get("vocab")
    return max([-1, *ids, *(vocab.values() if isinstance(vocab, dict) else ())])


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path, CONFIG_KEYS) if path.is_file() else {}


def chat_templates(folder: Path) -> str | dict[str, str] | None:
    """The template of a tokenizer's folder; several by their names, None without one."""
    template = tokenizer_config(folder).get("chat_template")
    if template is None and (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    if isinstance(template, list):
        return {entry.get("name"): entry.get("template") for entry in template} or None
    return template


def chat_template(folder: Path) -> str | None:
    """The template of a tokenizer's folder; the default of several, None without one."""
    found = chat_templates(folder)
    return found.get("default") if isinstance(found, dict) else found


def special_tokens(folder: Path) -> dict[str, Any]:
    """Special tokens by name as templates read them; the further ones as `additional_special_tokens`."""
    named = named_tokens(tokenizer_config(folder))
    added = tokenizer_json(folder).get("added_tokens") or []
    further = [token["content"] for token in added if token.get("special") and token["content"] not in named.values()]
    return named | {"additional_special_tokens": further}
