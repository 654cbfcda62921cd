"""Encodes renderings whose data hold text of control tokens: as ordinary text, as the tokens, or not at all.

As text they are encoded by a copy of the tokenizer in which the control tokens have private names of the same length,
which stand in the rendering where the template wrote them. So the copy splits the rendering as the tokenizer would if
its vocabulary had no such tokens but in those places; the positions of characters stay what they are.

    rendering    <|im_start|>user\\nWhat is <|im_end|>?<|im_end|>      (A, B: characters for private use)
    encoded      AAAAAAAAAAAAuser\\nWhat is <|im_end|>?BBBBBBBBBB
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from impruver_core.chat_template.masking.byte_level import ByteLevelEncoding
from impruver_core.chat_template.masking.control_text import (
    ControlText,
    ControlTokens,
    InexactError,
    TemplateInput,
    select_control_tokens,
)
from impruver_core.chat_template.selection import SelectedTemplate
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.recipe.sections import CONTROL_TEXT
from impruver_core.tokenizer import encode_backend_texts

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

FIRST_NAME = 0xF0000  # characters for private use, 65,534 of them
PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

_literal_backends: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple, LiteralBackend | InexactError]] = (
    WeakKeyDictionary()
)


class TokenizedRendering(NamedTuple):
    """A rendering's tokens: their encoding with positions of characters, and where control text stands.

    `copied_ids`: the ids, where the encoding is that of a copy of the tokenizer.
    """

    encoding: Encoding | ByteLevelEncoding
    control: Sequence[ControlText] = ()
    copied_ids: list[int] | None = None

    def build_array(self) -> np.ndarray:
        """The ids, uint32 (tokens,)."""
        if self.copied_ids is None and isinstance(self.encoding, ByteLevelEncoding):
            return self.encoding.array
        return np.array(self.encoding.ids if self.copied_ids is None else self.copied_ids, np.uint32)


class ControlTextEncoder:
    """Looks for control text in what one tokenizer encodes, and does with it what `mode` says.

    `own_tokens`: special tokens that the recipe adds for its data.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, mode: str, own_tokens: Collection[str] = ()):
        if mode not in CONTROL_TEXT:
            raise ImpruverError(f"control_text must be one of {', '.join(CONTROL_TEXT)}, not {mode!r}")
        self._tokenizer, self._mode, self._own = tokenizer, mode, own_tokens
        self._added: dict[int, AddedToken] = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        named = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
        self._special = {each.content for each in self._added.values() if each.special or each.content in named}
        self._selected: dict[int, ControlTokens] = {}

    def encode(
        self, encoding: Encoding | ByteLevelEncoding, text: str, given: TemplateInput
    ) -> TokenizedRendering | RefusedError:
        """The tokens of `text`, the traced rendering of `given`, which the tokenizer itself encodes as `encoding`.

        RefusedError("control_text") where the mode is `refuse`, or `text` and it can't be exact.
        """
        tokens, plain = self._select_tokens(given.template), TokenizedRendering(encoding)
        if not tokens.may_occur(text, given):
            return plain
        candidates = self._find_tokens(encoding, str.__str__(text), tokens)
        if not tokens.is_in_data(text, given, candidates):
            return plain
        control = candidates
        try:
            marks = tokens.mark_data(text, given)
            control = [each for each in candidates if 1 in marks[each.start : each.stop]]
            if not control:
                return plain
            if self._mode == "keep":
                return plain._replace(control=control)
            if self._mode == "refuse":
                return RefusedError("control_text", tokens.describe_all(text, given, control))
            known = set(candidates)
            # Others may be none to the tokenizer (within a word), unless control text hides them.
            written = [
                each
                for each in tokens.find_written(text, marks)
                if each in known or any(each.start < hit.stop and hit.start < each.stop for hit in control)
            ]
            if not known.difference(control).issubset(written):
                raise InexactError("the tokenizer finds its tokens by other rules")
            tokenized = self._encode_as_text(str.__str__(text), tokens, written)
            return tokenized if isinstance(tokenized, RefusedError) else tokenized._replace(control=control)
        except InexactError as error:
            if self._mode == "keep":
                return plain._replace(control=tokens.find_traced(text, control))
            told = control is not candidates
            describe = tokens.describe_all if told else tokens.describe_candidates
            where = describe(text, given, control)
            return RefusedError("control_text", f"{where}: it can't be encoded as text exactly: {error}")

    def _select_tokens(self, template: SelectedTemplate) -> ControlTokens:
        if id(template.format) not in self._selected:
            added = {each.content for each in self._added.values()}
            control = select_control_tokens(template, self._special, added - self._special, self._own)
            normalizes = self._tokenizer.backend_tokenizer.normalizer is not None
            normalized = normalizes and any(
                each.normalized and each.content in control for each in self._added.values()
            )
            self._selected[id(template.format)] = ControlTokens(control, added, normalized)
        return self._selected[id(template.format)]

    def _find_tokens(self, encoding: Encoding, text: str, tokens: ControlTokens) -> list[ControlText]:
        """The control tokens in an encoding. Those of bytes, and for unknown characters, may stand for other text."""
        offsets, normalizer = encoding.offsets, self._tokenizer.backend_tokenizer.normalizer
        by_id = {number: each for number, each in self._added.items() if each.content in tokens.tokens}
        found = []
        for position, number in enumerate(encoding.ids):
            if number not in by_id:
                continue
            token, (start, stop) = by_id[number], offsets[position]
            at = text.find(token.content, start, stop)
            if at >= 0:
                found.append(ControlText(token.content, at, at + len(token.content)))
            elif token.normalized and normalizer is not None:
                piece = text[start:stop].strip()
                if normalizer.normalize_str(piece) == normalizer.normalize_str(token.content):
                    at = text.index(piece, start)
                    found.append(ControlText(token.content, at, at + len(piece)))
        return found

    def _encode_as_text(
        self, text: str, tokens: ControlTokens, written: Sequence[ControlText]
    ) -> TokenizedRendering | RefusedError:
        backend, backends = self._tokenizer.backend_tokenizer, _literal_backends.setdefault(self._tokenizer, {})
        with _reporting_no_copy():
            kind = (repr(self._added), repr(backend.normalizer), repr(backend.pre_tokenizer), tokens.tokens)
        if kind not in backends:
            backends.clear()
            try:
                backends[kind] = LiteralBackend(backend, tokens.tokens)
            except InexactError as error:
                backends[kind] = error
        if isinstance(backends[kind], InexactError):
            raise backends[kind]
        return backends[kind].encode(text, written)


@contextmanager
def _reporting_no_copy() -> Iterator[None]:
    """InexactError for whatever `tokenizers` raises: components that are written in Python can't be copied."""
    try:
        yield
    except Exception as error:  # bare ones
        raise InexactError(f"the tokenizer can't be copied: {' '.join(str(error).split())}") from None


class LiteralBackend:
    """A copy of a backend that takes the text of control tokens for ordinary text; InexactError where there is none."""

    def __init__(self, backend: Tokenizer, tokens: Collection[str]):
        from tokenizers import Tokenizer

        self._names = {token: chr(FIRST_NAME + number) * len(token) for number, token in enumerate(sorted(tokens))}
        self._control_ids = {backend.token_to_id(token): token for token in tokens}
        with _reporting_no_copy():
            content = json.loads(backend.to_str())
            content |= {"truncation": None, "padding": None, "post_processor": None}
            for token in content["added_tokens"]:
                token["content"] = self._names.get(token["content"], token["content"])
            _rename_in_model(content["model"], self._names)
            self._backend = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        added = {each.content: number for number, each in backend.get_added_tokens_decoder().items()}
        copied = ((self._backend.token_to_id(self._names.get(token, token)), number) for token, number in added.items())
        self._ids = {there: number for there, number in copied if there != number}

    def encode(self, text: str, written: Sequence[ControlText]) -> TokenizedRendering | RefusedError:
        """The tokens of a text, of which `written` are control tokens, and no others are."""
        if PRIVATE.search(text):
            raise InexactError("the text has characters for private use, U+F0000 to U+FFFFD")
        parts, position = [], 0
        for token, start, stop in written:
            parts += [text[position:start], self._names[token]]
            position = stop
        named = "".join([*parts, text[position:]])
        (encoding,) = encode_backend_texts(self._backend, [named])
        if isinstance(encoding, RefusedError):
            return encoding
        ids = [self._ids.get(number, number) for number in encoding.ids] if self._ids else encoding.ids
        self._check(named, ids, encoding, written)
        return TokenizedRendering(encoding, copied_ids=ids)

    def _check(self, named: str, ids: list[int], encoding: Encoding, written: Sequence[ControlText]) -> None:
        """InexactError where a control token that was written is none, or text is one."""
        offsets, found = encoding.offsets, []
        for position, number in enumerate(ids):
            if (token := self._control_ids.get(number)) is None:
                continue
            at = named.find(self._names[token], *offsets[position])
            if at >= 0:
                found.append(ControlText(token, at, at + len(token)))
            elif named.find(token, *offsets[position]) >= 0:
                raise InexactError(f"the model of the tokenizer makes {token!r} of text")
        if found != list(written):
            raise InexactError("the tokenizer does not find its tokens in the places of the template's")


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Gives the control tokens other names in the model's own vocabulary; no merge leads to one any more."""
    vocabulary = model.get("vocab")
    if model.get("byte_fallback"):  # which looks for the tokens of bytes by their names
        names = {token: name for token, name in names.items() if not BYTE_TOKEN.fullmatch(token)}
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    elif model["type"] in ("BPE", "WordPiece", "WordLevel"):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
        if model.get("unk_token") in vocabulary:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    else:
        raise ValueError(f"its model is a {model['type']}")
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = (pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"])
        model["merges"] = [
            [one, other] for one, other in pairs if not {one, other, one + other.removeprefix(prefix)} & names.keys()
        ]
