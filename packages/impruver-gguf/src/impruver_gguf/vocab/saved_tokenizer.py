"""Read a saved tokenizer without transformers: its files, its chat templates, and the tokenizer itself."""

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
from impruver_core.tokenizer_trial import trying_tokenizer
from tokenizers import AddedToken, Tokenizer

SENTENCEPIECE_MODEL = "tokenizer.model"
TEMPLATE_FILE, FURTHER_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
FILES = (
    *("tokenizer.json", "tokenizer_config.json", SENTENCEPIECE_MODEL, "added_tokens.json"),
    *(TEMPLATE_FILE, FURTHER_TEMPLATES),
)
TOKEN = JsonType(
    "an object with a text as content", lambda value: OBJECT.holds(value) and TEXT.holds(value.get("content"))
)
NUMBERED_TOKEN = JsonType(
    "an object with a text as content and an id", lambda value: TOKEN.holds(value) and INDEX.holds(value.get("id"))
)
NAMED_TEMPLATE = JsonType(
    "an object with texts as name and template",
    lambda value: OBJECT.holds(value) and TEXT.holds(value.get("name")) and TEXT.holds(value.get("template")),
)
IDENTIFIER = JsonType("a number in digits", str.isdecimal)
CONFIG_KEYS = {
    **dict.fromkeys(NAMED_TOKENS, either(TEXT, TOKEN)),
    **dict.fromkeys(("add_prefix_space", "add_bos_token", "add_eos_token"), FLAG),
    "added_tokens_decoder": by_name(IDENTIFIER, TOKEN),
    "chat_template": either(TEXT, list_of(NAMED_TEMPLATE), by_name(TEXT, TEXT)),
}
TOKENIZER_KEYS = {"model": {}, "decoder": {"decoders": list_of(OBJECT)}, "added_tokens": list_of(NUMBERED_TOKEN)}


class SavedTokenizer:
    """The fast tokenizer in a folder, with those of transformers' attributes that `impruver_core` reads."""

    is_fast = True

    def __init__(self, folder: Path):
        config = read_tokenizer_config(folder)
        named = get_named_tokens(config)
        self.backend_tokenizer = load_backend_tokenizer(folder, read_tokenizer_json(folder), config)
        self.chat_template = read_chat_templates(folder)
        self.special_tokens_map = named
        self.extra_special_tokens = read_special_tokens(folder)["additional_special_tokens"]
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.bos_token, self.eos_token = named.get("bos_token"), named.get("eos_token")
        self.bos_token_id, self.eos_token_id = (
            self.backend_tokenizer.token_to_id(token) if token else None for token in (self.bos_token, self.eos_token)
        )
        self.size = max(self.backend_tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # its ids are below


def load_backend_tokenizer(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> Tokenizer:
    """Load tokenizer.json, whose parsed `content` this is, and add the tokens of `config` as transformers would."""
    with trying_tokenizer(folder / "tokenizer.json"):
        pass
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
    named = [text for text in get_named_tokens(config).values() if text not in known]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
    return tokenizer


def read_tokenizer_json(folder: Path) -> dict[str, Any]:
    """Read tokenizer.json, less its merges; {} where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    stat = path.stat()
    return _read_tokenizer_json(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)  # asked for more than once, and tens of megabytes
def _read_tokenizer_json(path: Path, *_: int) -> dict[str, Any]:
    content = read_json(path, TOKENIZER_KEYS)
    (content.get("model") or {}).pop("merges", None)  # most of it, and needed by nobody here
    return content


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; {} where there is none."""
    return read_json(folder / "tokenizer_config.json", CONFIG_KEYS, missing_ok=True)


def get_largest_token_id(folder: Path) -> int:
    """The largest id in tokenizer.json; -1 where it has none."""
    content = read_tokenizer_json(folder)
    ids = [token["id"] for token in content.get("added_tokens") or []]
    vocab = (content.get("model") or {}).get("vocab")
    return max([-1, *ids, *(vocab.values() if isinstance(vocab, dict) else ())])


def get_named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The texts of bos_token, eos_token, … in a tokenizer_config.json."""
    texts = {name: config.get(name) for name in NAMED_TOKENS}
    texts = {name: text.get("content") if isinstance(text, dict) else text for name, text in texts.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def read_special_tokens(folder: Path) -> dict[str, Any]:
    """The texts of special tokens by the names that templates read; further ones as `additional_special_tokens`."""
    named = get_named_tokens(read_tokenizer_config(folder))
    added = read_tokenizer_json(folder).get("added_tokens") or []
    further = [token["content"] for token in added if token.get("special") and token["content"] not in named.values()]
    return named | {"additional_special_tokens": further}


def read_chat_templates(folder: Path) -> str | dict[str, str] | None:
    """The chat template in a tokenizer's folder; several by their names, None without one.

    As in transformers files of templates win over what stands in tokenizer_config.json, each of its names included.
    """
    templates = read_template_files(folder)
    if templates.keys() == {"default"}:
        return templates["default"]
    if templates:
        return templates
    template = read_tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    return template if template or isinstance(template, str) else None


def read_template_files(folder: Path) -> dict[str, str]:
    """The chat templates that are files of their own, by name: chat_template.jinja is the default one."""
    default = folder / TEMPLATE_FILE
    templates = {"default": read_text(default)} if default.is_file() else {}
    return templates | {path.stem: read_text(path) for path in sorted(folder.glob(FURTHER_TEMPLATES))}


def read_chat_template(folder: Path) -> str | None:
    """The chat template in a tokenizer's folder; the default one of several, None without one."""
    templates = read_chat_templates(folder)
    return templates.get("default") if isinstance(templates, dict) else templates
