"""Build a byte-level BPE vocabulary from tokenizer.json, with the one of llama.cpp's pre-tokenizers that it needs.

llama.cpp's converter identifies a published vocabulary by the hash of the ids that a probe text gets: its table is
pretokenizers.json. A vocabulary that it never saw (a tokenizer of one's own) is identified by how its tokenizer.json
splits text.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from gguf import TokenType
from impruver_core.errors import ImpruverError
from tokenizers import AddedToken, Tokenizer

from impruver_gguf.vocab.saved_tokenizer import load_backend_tokenizer, read_tokenizer_config, read_tokenizer_json
from impruver_gguf.vocab.token_types import Token, Vocabulary, check_vocab_size, make_added_token, make_padding

PROBE = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"  # noqa: E501
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLIT = (  # Llama 3's and Qwen 2's differ in how many digits go together
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _SPLIT % r"\p{N}{1,3}", _SPLIT % r"\p{N}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (  # splits words where capitals begin
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
    r"%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = _CASED % ("", "", r"\p{N}")  # Mistral's
GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
# How tokenizer.json splits, and whether it takes whole words before merging → the pre-tokenizer that does the same.
SPLITS = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", LLAMA3), ("ByteLevel", False)), True): "llama-bpe",
    ((("Split", LLAMA3), ("ByteLevel", False)), False): "dbrx",
    ((("Split", QWEN2), ("ByteLevel", False)), False): "qwen2",
    ((("Split", TEKKEN), ("ByteLevel", False)), True): "tekken",
    ((("Split", GPT4O), ("ByteLevel", False)), False): "gpt-4o",
}
# Normalizers that vocabularies of Qwen, Cohere and GPT-NeoX have, and llama.cpp does without.
IGNORED_NORMALIZERS = {(name, "NFC") for name in ("qwen2", "smollm", "gpt-2")}
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def get_published_pre_tokenizer(ids: list[int]) -> str | None:
    """llama.cpp's name for a vocabulary that it knows by its ids of PROBE, else None."""
    table = json.loads(Path(__file__).with_name("pretokenizers.json").read_text(encoding="utf-8"))
    return table.get(sha256(str(ids).encode()).hexdigest())


def find_pre_tokenizer(content: dict[str, Any]) -> str | None:
    """llama.cpp's name for a pre-tokenizer that splits as this `content` of a tokenizer.json; None without one."""
    pre = content.get("pre_tokenizer") or {}
    steps = tuple(_describe_step(step) for step in pre.get("pretokenizers") or [pre])
    name = SPLITS.get((steps, bool(content["model"].get("ignore_merges"))))
    normalizer = (content.get("normalizer") or {}).get("type")
    return None if normalizer and (name, normalizer) not in IGNORED_NORMALIZERS else name


def find_unpublished_pre_tokenizer(folder: Path) -> str | None:
    """Find the pre-tokenizer of a byte-level vocabulary that llama.cpp does not know; None where it knows or can't."""
    content = read_tokenizer_json(folder)
    if not content.get("model") or not is_byte_level(content):
        return None
    tokenizer = load_backend_tokenizer(folder, content, read_tokenizer_config(folder))
    known = get_published_pre_tokenizer(tokenizer.encode(PROBE).ids)
    return None if known else find_pre_tokenizer(content)


def _describe_step(step: dict[str, Any]) -> tuple[str | None, Any]:
    """A pre-tokenizer's type with the setting that matters for how it splits; None for settings that no SPLITS has."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind, step.get("use_regex", True)
    if kind == "Digits":
        return kind, step.get("individual_digits")
    # What a pattern matches is a piece, and what it leaves is another; these patterns leave nothing.
    whole = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
    if kind == "Split" and whole:
        return kind, (step.get("pattern") or {}).get("Regex")
    return kind, None


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
    pre = get_published_pre_tokenizer(tokenizer.encode(PROBE).ids) or find_pre_tokenizer(content)
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
