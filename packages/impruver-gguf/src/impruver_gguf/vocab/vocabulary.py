"""Read the vocabulary in a tokenizer's folder, and write it to a GGUF: with merges, special tokens, chat template.

The template goes without `{% generation %}`, which only training asks for.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Keys, SpecialVocab
from impruver_core.chat_template.rendering.renderer import compile_template
from impruver_core.errors import ImpruverError

from impruver_gguf.vocab.byte_level_bpe import build_byte_level_vocab, is_byte_level
from impruver_gguf.vocab.saved_tokenizer import (
    SENTENCEPIECE_MODEL,
    read_chat_templates,
    read_tokenizer_config,
    read_tokenizer_json,
)
from impruver_gguf.vocab.sentencepiece_vocab import build_sentencepiece_vocab
from impruver_gguf.vocab.token_types import Vocabulary

GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}(\n?)")


VocabBuilder = Callable[[Path, dict[str, Any], dict[str, Any], int], Vocabulary]


def read_vocabulary(
    folder: Path, size: int, plain_added: bool = False, build_vocab: VocabBuilder | None = None
) -> Vocabulary:
    """Read the vocabulary in a folder, padded to `size` ids; `plain_added`, `build_vocab` as in `Architecture`."""
    config, path = read_tokenizer_config(folder), folder / "tokenizer.json"
    has_model = (folder / SENTENCEPIECE_MODEL).is_file()
    if not path.is_file() and not has_model:
        raise ImpruverError(f"{path} is not there: copy the tokenizer's files into {folder}, or train again")
    content = read_tokenizer_json(folder)
    if path.is_file() and not content.get("model"):
        raise ImpruverError(f"{path}: holds no tokenizer (model is not set): copy the tokenizer's files again")
    if content and build_vocab:
        return build_vocab(folder, content, config, size)
    if content and is_byte_level(content):
        return build_byte_level_vocab(folder, content, config, size)
    kind = (content.get("model") or {}).get("type")
    if kind in ("WordPiece", "WordLevel"):
        raise ImpruverError(f"{path}: a {kind} vocabulary, which llama.cpp's language models do not have")
    if not has_model:
        raise ImpruverError(
            f"{path}: no byte-level BPE but a SentencePiece vocabulary, whose scores stand in {SENTENCEPIECE_MODEL} "
            f"alone: copy the base's {SENTENCEPIECE_MODEL} into {folder} (other kinds are not converted)"
        )
    return build_sentencepiece_vocab(folder, content, config, size, plain_added)


def write_vocab(
    writer: GGUFWriter, vocab: Vocabulary, change_ids: Callable[[dict[str, int]], dict[str, int]] = dict
) -> None:
    """Write tokens, merges, special ids and the chat template.

    `change_ids` makes other special ids, by their role (`eos`), of those that the folder has.
    """
    writer.add_tokenizer_model("llama" if vocab.is_sentencepiece else "gpt2")
    writer.add_tokenizer_pre(vocab.pre)
    writer.add_token_list(vocab.tokens)
    if vocab.scores is not None:
        writer.add_token_scores(vocab.scores)
    writer.add_token_types(vocab.types)
    write_special_tokens(writer, vocab, load_merges=not vocab.is_sentencepiece, change_ids=change_ids)


def write_special_tokens(
    writer: GGUFWriter,
    vocab: Vocabulary,
    load_merges: bool,
    change_ids: Callable[[dict[str, int]], dict[str, int]] = dict,
) -> None:
    """Write what gguf-py's reader of a tokenizer's folder finds: merges, special ids and the chat template."""
    n_vocab = None if load_merges else len(vocab.tokens)
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)  # it notes what llama.cpp does not need
    try:
        special = SpecialVocab(vocab.folder, load_merges=load_merges, n_vocab=n_vocab)
    except Exception as error:  # gguf takes these files as they come
        raise ImpruverError(
            f"{vocab.folder}: the special tokens in config.json, tokenizer_config.json or tokenizer.json can't be "
            f"read ({error}); copy these files again"
        ) from None
    special.special_token_ids = change_ids(special.special_token_ids)
    templates = read_chat_templates(vocab.folder)
    if templates is not None:
        special.chat_template = None  # gguf lets tokenizer_config.json win over files, and writes names in any order
    special.add_to_gguf(writer, quiet=True)
    write_chat_templates(writer, {"default": templates} if isinstance(templates, str) else templates or {})


def write_chat_templates(writer: GGUFWriter, templates: Mapping[str, str]) -> None:
    """Write chat templates by name; those beside the default under keys of their own, and a list of their names."""
    further = sorted(templates.keys() - {"default"})
    keys = {name: get_template_key(name) for name in further}
    for name, key in keys.items():
        same = [other for other in further if keys[other] == key]
        if len(same) > 1:
            raise ImpruverError(
                f"the chat templates {' and '.join(same)} would both be {key} in a GGUF file: rename one of them"
            )
        writer.add_string(key, strip_generation_tags(templates[name]))
    if further:
        writer.add_array(Keys.Tokenizer.CHAT_TEMPLATES, [key.rpartition(".")[2] for key in keys.values()])
    if "default" in templates:
        writer.add_chat_template(strip_generation_tags(templates["default"]))


def get_template_key(name: str) -> str:
    """The metadata key of a chat template; what is neither letter nor digit in its name becomes an underscore."""
    if name == "default":
        return Keys.Tokenizer.CHAT_TEMPLATE
    return Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=re.sub("[^A-Za-z0-9]", "_", name))


def strip_generation_tags(template: str) -> str:
    """Take the generation tags out of a template; what it renders stays the same, blanks included.

    Where a tag also trims the blanks around it (a dash, a line of its own), an empty block that trims alike stands in.
    """
    tags = _find_tag_starts(template) if GENERATION_TAG.search(template) else set()

    def replace(match: re.Match) -> str:
        if match.start() not in tags:
            return match[0]
        left, right, newline = match.groups()
        line = template[: match.start()].rpartition("\n")[2]
        trims = left or right or newline or not line.strip()
        return f"{{%{left} if true %}}{{% endif {right}%}}{newline}" if trims else ""

    return GENERATION_TAG.sub(replace, template)


def _find_tag_starts(template: str) -> set[int]:
    """Where tags start, less what is in a text, a comment or a raw block; none where the template does not parse."""
    text = template.replace("\r\n", " \n").replace("\r", "\n")  # as the lexer reads lines, with the same positions
    try:
        tokens = list(compile_template(template).environment.lex(text))
    except ImpruverError:
        return set()
    position, starts = 0, set()
    for _, kind, value in tokens:
        position = text.index(value, position)  # the lexer leaves out blanks that are trimmed
        if kind == "block_begin":
            starts.add(position)
        position += len(value)
    return starts
