"""Loads tokenizers with the recipe's special tokens and chat template, and encodes plainly with them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.dynamic_import import allow_remote_code, load_object
from impruver_core.errors import ImpruverError, RefusedError, describe_error
from impruver_core.io.model_files import check_no_lfs_pointer
from impruver_core.modeling.foreign_config import check_config
from impruver_core.recipe.paths import find_local, find_or_download, resolve_model_path
from impruver_core.recipe.sections import FURTHER_TOKENS
from impruver_core.tokenizer_trial import UnloadableTokenizerError, trying_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from impruver_core.recipe.sections import TokenizerSection

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(
    section: TokenizerSection,
    model_name: str | None = None,
    *,
    recipe_dir: Path | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe (`tokenizer.name`, else `model_name`), special tokens and chat template set.

    Of a special token its text counts: a `*_token_id` that disagrees is warned about with the right id.
    Local names are looked for in `recipe_dir`, the working folder and the installed recipes. `warn` takes the warnings.
    Raises ImpruverError where the tokenizer can't be loaded, or a key of the section names nothing.
    """
    name = section.name or model_name
    if not name:
        raise ImpruverError("the recipe names no tokenizer: set tokenizer.name or model.name")
    source = resolve_model_path(name, recipe_dir, "tokenizer.name" if section.name else "model.name")
    try:
        with trying_tokenizer(_find_tokenizer_json(source, recipe_dir)):
            class_ = load_object(section.class_ or "transformers.AutoTokenizer", "tokenizer.class", recipe_dir)
    except UnloadableTokenizerError as error:
        raise ImpruverError(_describe_failure(name, Path(source), error)) from None
    trusted = allow_remote_code(section.trust_remote_code, "tokenizer.trust_remote_code")
    check_config(Path(source))  # transformers may read it for the tokenizer's class
    try:
        with _muting_stdout():
            tokenizer = class_.from_pretrained(source, trust_remote_code=trusted)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError and more for a bad repository
        raise ImpruverError(_describe_failure(name, Path(source), error)) from None
    if not hasattr(tokenizer, "add_special_tokens"):
        raise ImpruverError(f"tokenizer.class: {section.class_} loads no tokenizer but a {type(tokenizer).__name__}")
    _set_special_tokens(tokenizer, section.special_tokens or {}, warn)
    if section.chat_template:
        tokenizer.chat_template = _read_template(section.chat_template, recipe_dir)
    return tokenizer


@contextmanager
def _muting_stdout() -> Iterator[None]:
    """Takes file descriptor 1 away from the libraries below Python: tokenizers' Rust prints names of unknown fields."""
    try:
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):  # it is closed: nothing can be printed there
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()  # what Python printed is none of its business either
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _find_tokenizer_json(source: str, recipe_dir: Path | None) -> Path:
    """The tokenizer.json of a folder or hub repository; it may not be there."""
    try:
        return find_or_download(source, recipe_dir, ["tokenizer.json"]) / "tokenizer.json"
    except OSError:  # offline, gated, misspelt: loading it says so
        return Path(source, "tokenizer.json")


def _describe_failure(name: str, folder: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"the tokenizer of {name} needs its repository's code: read it, then set tokenizer.trust_remote_code: true"
        )
    if not folder.is_dir():
        return f"{name} is no folder here, and its tokenizer can't be loaded from the hub: {describe_error(error)}"
    return f"the tokenizer of {name} can't be loaded: {_describe_broken_file(folder) or describe_error(error)}"


def _describe_broken_file(folder: Path) -> str | None:
    """What is wrong with the first file that a local tokenizer fails on: the libraries' own messages name no file."""
    from tokenizers import Tokenizer
    from transformers import AutoConfig

    loads = {
        "tokenizer.json": lambda path: Tokenizer.from_file(str(path)),
        "config.json": lambda path: AutoConfig.from_pretrained(path.parent, trust_remote_code=False),
    }
    names = ("tokenizer_config.json", "special_tokens_map.json", *loads)
    for path in filter(Path.is_file, (folder / name for name in names)):
        check_no_lfs_pointer(path)
        try:
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return f"{path}: not a JSON object; copy it again from the model that it belongs to"
            if path.name in loads:
                loads[path.name](path)
        except Exception as error:  # tokenizers raises bare ones
            return f"{path}: {describe_error(error)}; copy it again from the model that it belongs to"
    return None


def _set_special_tokens(tokenizer: PreTrainedTokenizerBase, wanted: dict, warn: Callable[[str], Any]) -> None:
    texts = {key: value for key, value in wanted.items() if not key.endswith("_token_id") and value is not None}
    unknown = [key for key in texts if key not in (*NAMED_TOKENS, *FURTHER_TOKENS)]
    if unknown:
        known = ", ".join(NAMED_TOKENS)
        raise ImpruverError(f"tokenizer.special_tokens.{unknown[0]}: no such token; there are {known}")
    for key, value in texts.items():
        if key in NAMED_TOKENS and not (isinstance(value, str) and value):
            raise ImpruverError(f"tokenizer.special_tokens.{key}: {value!r} is no text of a token; write it in quotes")
    try:
        tokenizer.add_special_tokens(texts)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        raise ImpruverError(f"tokenizer.special_tokens: {describe_error(error)}") from None
    for key, number in wanted.items():
        name = key.removesuffix("_id")
        if key.endswith("_token_id") and name in texts:
            text, right = texts[name], tokenizer.convert_tokens_to_ids(texts[name])
            if right != number:
                warn(f"tokenizer.special_tokens.{key}: {text!r} has the id {right}, not {number}; the text counts")


def _read_template(value: str, recipe_dir: Path | None) -> str:
    """A template given inline, or the text of the file that `value` names."""
    if "{" in value or "\n" in value:
        return value
    path = find_local(value, recipe_dir)
    if path is None:
        raise ImpruverError(
            f"tokenizer.chat_template: {value} is neither a template nor a file; left out, it is the tokenizer's own"
        )
    return path.read_text(encoding="utf-8")


def get_special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict:
    """Special tokens by name, as templates read them; the further ones as the list `additional_special_tokens`."""
    names = dict(tokenizer.special_tokens_map)
    known = {str(value) for value in names.values() if isinstance(value, str)}
    added = sorted(tokenizer.added_tokens_decoder.items())
    further = [token.content for _, token in added if token.special and token.content not in known]
    listed = [str(token) for token in getattr(tokenizer, "extra_special_tokens", None) or []]
    ordered = list(dict.fromkeys([*(token for token in listed if token not in known), *further]))
    return names | {"additional_special_tokens": ordered}


@contextmanager
def plain_encoder(tokenizer: PreTrainedTokenizerFast) -> Iterator[Callable[[list[str]], list[Encoding | RefusedError]]]:
    """`encode(texts) -> [Encoding]` on the tokenizer's own backend: no special tokens added, nothing cut or padded.

    For a text that the backend fails on there is a RefusedError in the list. Meanwhile the backend has no truncation,
    padding or post-processor: that one would trim blanks from the offsets.
    """
    backend = tokenizer.backend_tokenizer
    truncation, padding, post = backend.truncation, backend.padding, backend.post_processor
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    try:
        yield partial(encode_backend_texts, backend)
    finally:
        if post is not None:
            backend.post_processor = post
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of a text, as `plain_encoder` encodes it; RefusedError where the backend fails on it."""
    with plain_encoder(tokenizer) as encode:
        (encoding,) = encode([text])
    if isinstance(encoding, RefusedError):
        raise encoding
    return encoding.ids


def encode_backend_texts(backend: Tokenizer, texts: list[str]) -> list[Encoding | RefusedError]:
    """The encodings of texts by a backend as it is; for a text that it fails on a RefusedError."""
    try:
        return backend.encode_batch(texts, add_special_tokens=False)
    except BaseException as error:
        if not is_backend_failure(error):
            raise
        if len(texts) > 1:  # which of them it is
            return [encoding for text in texts for encoding in encode_backend_texts(backend, [text])]
        return [RefusedError("tokenizer_failed", " ".join(str(error).split()))]


def is_backend_failure(error: BaseException) -> bool:
    """Whether a tokenizer's backend failed: by an exception, or a panic of Rust, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def compute_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256 of the tokenizer's own JSON less truncation and padding, which change as it is used."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return _hash_text(json.dumps(content, sort_keys=True, ensure_ascii=False))


def compute_template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The sha256 of the chat template (of all, where it has several); None without one."""
    template = tokenizer.chat_template
    if template is not None and not isinstance(template, str):
        template = json.dumps(template, sort_keys=True, ensure_ascii=False)
    return None if template is None else _hash_text(template)


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
