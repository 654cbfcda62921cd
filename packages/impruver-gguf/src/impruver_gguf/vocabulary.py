"""The tokenizer as GGUF holds it: a byte-level BPE vocabulary from tokenizer.json, read without transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError

from impruver_gguf.jinja import exported
from impruver_gguf.jsonfile import FLAG, OBJECT, TEXT, Kind, by_name, either, list_of, read_json, read_text
from impruver_gguf.pretokenizers import PROBE, pre_tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN = Kind("an object with a text as content", lambda value: OBJECT.holds(value) and TEXT.holds(value.get("content")))
IDENTIFIER = Kind("a number in digits", str.isdecimal)
CONFIG_KEYS = {
    **dict.fromkeys(NAMED, either(TEXT, TOKEN)),
    **dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token"), FLAG),
    "added_tokens_decoder": by_name(IDENTIFIER, TOKEN),
    "chat_template": either(TEXT, list_of(by_name(TEXT, TEXT))),
}
TOKENIZER_KEYS = {"model": {}, "decoder": {"decoders": list_of(OBJECT)}, "added_tokens": list_of(TOKEN)}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's token types
WORD_BORDER = "\u2581"  # SentencePiece's blank


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their types by id, and the name of the pre-tokenizer; `config` is tokenizer_config.json."""

    tokens: list[str]
    types: list[int]
    pre: str
    config: dict[str, Any]
    folder: Path


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary in a folder, filled up to `size` ids; ImpruverError where it can't be had or is another kind."""
    content = _tokenizer_json(folder)
    config = tokenizer_config(folder)
    tokenizer = _loaded(folder, content, config)
    by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(by_id) >= size:
        raise ImpruverError(
            f"{folder}: the tokenizer has ids up to {max(by_id)}, the model {size} embedding rows: this is not its "
            "tokenizer, or its new tokens' rows were not saved"
        )
    pre = pre_tokenizer(tokenizer.encode(PROBE).ids, content)
    if pre is None:
        raise ImpruverError(
            f"{folder}/tokenizer.json: llama.cpp knows no pre-tokenizer that splits text as this one does; nothing "
            "else would give the same ids, so no GGUF is written"
        )
    added = tokenizer.get_added_tokens_decoder()
    pairs = [_token(number, by_id, added, tokenizer) for number in range(size)]
    return Vocabulary([text for text, _ in pairs], [kind for _, kind in pairs], pre, config, folder)


def _tokenizer_json(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tokenizer.model").is_file():
            raise _sentencepiece(folder / "tokenizer.model")
        raise ImpruverError(f"{path} is not there: copy the tokenizer's files into {folder}, or train again")
    content = read_json(path, TOKENIZER_KEYS)
    model = content.get("model")
    if not model:
        raise ImpruverError(f"{path}: holds no tokenizer (model is not set): copy the tokenizer's files again")
    if model.get("type") != "BPE" or model.get("byte_fallback") or not _byte_level(content):
        raise _sentencepiece(path)
    return content


def _byte_level(content: dict[str, Any]) -> bool:
    decoder = content.get("decoder") or {}
    parts = decoder.get("decoders") or [decoder]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _sentencepiece(path: Path) -> ImpruverError:
    return ImpruverError(
        f"{path}: a SentencePiece vocabulary, or another that is no byte-level BPE, and only that is converted so far; "
        "llama.cpp's own script does it: convert_hf_to_gguf.py (merge an adapter with peft first), then impruver-gguf "
        "--only_quantize"
    )


def _loaded(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> Any:
    """tokenizers' own object, with the tokens that tokenizer_config.json adds as transformers would."""
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ImpruverError(f"{folder}/tokenizer.json can't be loaded: {error}") from None
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
        return f"[PAD{number}]", UNUSED
    text = by_id[number]
    if number not in added:
        return text, NORMAL
    if not added[number].normalized:
        text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    if added[number].special or _looks_special(text):
        return text, CONTROL
    return text.replace(WORD_BORDER, " "), USER_DEFINED


def _looks_special(text: str) -> bool:
    """llama.cpp's rule for tokens that some models forgot to mark."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Tokens, merges, special ids and the chat template, through gguf's own reader of a tokenizer's folder."""
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    try:
        special = gguf.SpecialVocab(vocabulary.folder, load_merges=True)
    except Exception as error:  # gguf takes these files as they come
        raise ImpruverError(
            f"{vocabulary.folder}: the special tokens in config.json, tokenizer_config.json or tokenizer.json can't be "
            f"read ({error}); copy these files again"
        ) from None
    special.chat_template = exported(special.chat_template)
    special.add_to_gguf(writer, quiet=True)


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path, CONFIG_KEYS) if path.is_file() else {}


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … of a tokenizer_config.json, as texts."""
    texts = {name: config.get(name) for name in NAMED}
    texts = {name: text.get("content") if isinstance(text, dict) else text for name, text in texts.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def chat_template(folder: Path) -> str | None:
    """The template of a tokenizer's folder; the default of several, None without one."""
    template = tokenizer_config(folder).get("chat_template")
    if template is None and (folder / "chat_template.jinja").is_file():
        template = read_text(folder / "chat_template.jinja")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def special_tokens(folder: Path) -> dict[str, Any]:
    """Special tokens by name as templates read them; the further ones as `additional_special_tokens`."""
    named = named_tokens(tokenizer_config(folder))
    path = folder / "tokenizer.json"
    added = read_json(path, TOKENIZER_KEYS).get("added_tokens") or [] if path.is_file() else []
    further = [token["content"] for token in added if token.get("special") and token["content"] not in named.values()]
    return named | {"additional_special_tokens": further}
