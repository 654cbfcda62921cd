"""A byte-level BPE vocabulary from tokenizer.json, read without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError

from impruver_gguf.vocab.pre_tokenizers import PROBE, pre_tokenizer
from impruver_gguf.vocab.token_types import NORMAL, UNUSED, Vocabulary, added_token, named_tokens, padding

AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def is_byte_level(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind."""
    model, decoder = content["model"], content.get("decoder") or {}
    parts = decoder.get("decoders") or [decoder]
    byte_level = any(part.get("type") == "ByteLevel" for part in parts)
    return byte_level and model.get("type") == "BPE" and not model.get("byte_fallback")


def byte_level_vocabulary(folder: Path, content: dict[str, Any], config: dict[str, Any], size: int) -> Vocabulary:
    """Its tokens, filled up to `size` ids; ImpruverError where llama.cpp would split text otherwise."""
    affix = next((name for name in AFFIXES if content["model"].get(name)), None)
    if affix:
        raise ImpruverError(
            f"{folder}/tokenizer.json: model.{affix} is {content['model'][affix]!r}, and llama.cpp's BPE knows no such "
            "mark on parts of words: it would give other ids, so no GGUF is written"
        )
    tokenizer = load_backend(folder, content, config)
    by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    check_size(folder, max(by_id), size)
    pre = pre_tokenizer(tokenizer.encode(PROBE).ids, content)
    if pre is None:
        raise ImpruverError(
            f"{folder}/tokenizer.json: llama.cpp knows no pre-tokenizer that splits text as this one does; nothing "
            "else would give the same ids, so no GGUF is written"
        )
    added = tokenizer.get_added_tokens_decoder()
    pairs = [_token(number, by_id, added, tokenizer) for number in range(size)]
    return Vocabulary([text for text, _ in pairs], [kind for _, kind in pairs], pre, config, folder)


def check_size(folder: Path, largest: int, size: int) -> None:
    """ImpruverError where the tokenizer has ids that the model has no rows for."""
    if largest >= size:
        raise ImpruverError(
            f"{folder}: the tokenizer has ids up to {largest}, the model {size} embedding rows: this is not its "
            "tokenizer, or its new tokens' rows were not saved"
        )


def load_backend(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> Any:
    """tokenizers' own object, with the tokens that tokenizer_config.json adds as transformers would."""
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ImpruverError(f"{folder}/tokenizer.json can't be loaded: {error}") from None
    tokenizer.no_padding()  # settings of whoever saved it, no part of how text becomes ids
    tokenizer.no_truncation()
    known = {token["content"] for token in content.get("added_tokens") or []}
    for _, entry in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if entry["content"] not in known:
            fields = {name: entry[name] for name in ("lstrip", "rstrip", "normalized", "single_word") if name in entry}
            tokenizer.add_tokens([AddedToken(entry["content"], special=entry.get("special", False), **fields)])
    named = [text for text in named_tokens(config).values() if text not in known]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
    return tokenizer


def _token(number: int, by_id: dict[int, str], added: dict[int, Any], tokenizer: Any) -> tuple[str, int]:
    """(text, type); an added token that is not normalized stands as encoding and decoding leave it."""
    if number not in by_id:
        return padding(number), UNUSED
    text = by_id[number]
    if number not in added:
        return text, NORMAL
    if not added[number].normalized:
        text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    return added_token(text, added[number].special)
