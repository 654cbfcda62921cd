"""The vocabulary in a GGUF file: the bytes of its tokens, special tokens, ends of turn, its own chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.masking.control_text import TemplateInput
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.traced_string import trace_messages
from impruver_core.chat_template.selection import SelectedTemplate
from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError

from impruver_chat.backends.chat_tokenizer import (
    ChatTokenizer,
    EncodingOptions,
    cache_by_arguments,
    make_chat_tokenizer,
)
from impruver_chat.backends.llama_cpp.control_text import encode_rendering
from impruver_chat.backends.llama_cpp.process import LlamaCppProcess
from impruver_chat.backends.llama_cpp.worker import GgufDescription
from impruver_chat.generation.detokenizer import make_stop_criteria
from impruver_chat.model_dir import GgufFile
from impruver_chat.responses.template_markers import TemplateMarkers, find_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_SIZE = 500  # tokens by which a tokenizer is known to be the GGUF's
SENTENCEPIECE, BYTE_LEVEL = 1, 2  # llama.cpp's vocab_type
NORMAL, CONTROL, USER_DEFINED, BYTE = 4, 8, 16, 32  # its token attributes
# GPT-2's byte-level alphabet: printable bytes stand for themselves, the others are the characters from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF_CHARACTER = {chr(byte): bytes([byte]) for byte in PRINTABLE}
BYTE_OF_CHARACTER |= {chr(256 + number): bytes([byte]) for number, byte in enumerate(OTHERS)}


class GgufVocab:
    """The vocabulary in a GGUF file that llama.cpp's process has loaded; tokens that it told once are kept."""

    def __init__(self, process: LlamaCppProcess, description: GgufDescription):
        self.description = description
        self.vocab_type, self.n_vocab = description.vocab_type, description.vocab_size
        self._process, self._tokens = process, {}

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """The ids of a text, special tokens in it included unless these are not to be parsed."""
        return self._process.request("tokenize", str.__str__(text), parse_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """llama.cpp's text of ids."""
        return self._process.request("detokenize", list(ids))

    def read_tokens(self, ids: Iterable[int]) -> None:
        """Have the process tell the texts and attributes of these tokens at once."""
        unknown = [number for number in ids if number not in self._tokens]
        self._tokens |= zip(unknown, self._process.request("get_tokens", unknown), strict=True)

    def get_text(self, number: int) -> str:
        """The text of a token as the vocabulary has it."""
        return self._get_token(number)[0]

    def get_attr(self, number: int) -> int:
        """llama.cpp's attributes of a token, as bits."""
        return self._get_token(number)[1]

    def find_added_tokens(self) -> dict[str, int]:
        """Find the control tokens and those that llama.cpp finds in any text: their ids by their texts."""
        ids = self._process.request("find_added_tokens", CONTROL | USER_DEFINED)
        self.read_tokens(ids)
        return {self.get_text(number): number for number in ids}

    def is_control(self, number: int) -> bool:
        """Whether it is a control token."""
        return bool(self.get_attr(number) & CONTROL)

    def _get_token(self, number: int) -> tuple[str, int]:
        if number not in self._tokens:
            self.read_tokens([number])
        return self._tokens[number]


def make_gguf_tokenizer(
    vocab: GgufVocab, saved: PreTrainedTokenizerBase | None, source: GgufFile, options: EncodingOptions
) -> ChatTokenizer:
    """Make the ChatTokenizer of `saved`, output_dir's, if the GGUF has its tokens, else of the GGUF's own vocabulary.

    Either stops at all ends of turn that the GGUF names as well.
    """
    if saved is not None:
        if is_same_vocabulary(saved, vocab):
            tokenizer = make_chat_tokenizer(saved, source.output_dir, options)
            ids = [*tokenizer.stops.ids, *find_end_token_ids(vocab)]
            stops = make_stop_criteria(tokenizer.stops.texts, ids, partial(find_token, vocab))
            return replace(tokenizer, stops=stops)
        log_info(f"note: {source.path} has other tokens than {source.output_dir}: its own chat template is used")
    return make_vocab_tokenizer(vocab, source.path, options)


def make_vocab_tokenizer(vocab: GgufVocab, path: Path, options: EncodingOptions) -> ChatTokenizer:
    """Make the ChatTokenizer of a GGUF file's own vocabulary and chat template."""
    model = vocab.description
    template = model.chat_template
    if not template:
        raise ImpruverError(f"--gguf: {path} has no chat template; name the --output_dir that it was made from")
    named = {"bos_token": model.bos, "eos_token": model.eos, "pad_token": model.pad}
    variables = {name: vocab.get_text(number) for name, number in named.items() if number >= 0}
    variables |= options.chat_template_kwargs
    added = vocab.find_added_tokens()
    specials = [text for text, number in added.items() if vocab.is_control(number)]
    analyze = cache_by_arguments(lambda kwargs: analyze_template(template, {**variables, **kwargs}, specials))
    analyze_with_tools = cache_by_arguments(
        lambda kwargs: analyze_template(template, {**variables, **kwargs}, specials, True)
    )

    def find(kwargs: dict) -> TemplateMarkers:
        return find_markers(template, {**variables, **kwargs}, analyze(kwargs))

    def encode(messages: list[dict], tools: list | None = None, kwargs: dict | None = None) -> list[int]:
        form = (analyze_with_tools if tools else analyze)(kwargs or {})
        selected = SelectedTemplate(template, {**variables, **(kwargs or {})}, form)
        traced = trace_messages(normalize_messages(messages, form))
        given = TemplateInput(selected, traced, tools, kwargs, add_generation_prompt=True)
        ids = encode_rendering(vocab, given, added, options.control_text, options.own_tokens)
        bos = model.bos if options.add_bos and model.add_bos else None
        return [bos, *ids] if bos is not None and ids[:1] != [bos] else ids

    drop_first_blank = model.add_space_prefix == "true"
    stops = make_stop_criteria(analyze({}).stops, find_end_token_ids(vocab), partial(find_token, vocab))
    markers = find({})
    decode = make_decoder(vocab, drop_first_blank, markers.special_tokens)
    return ChatTokenizer(encode, decode, stops, markers, template, cache_by_arguments(find))


def make_decoder(vocab: GgufVocab, drop_first_blank: bool, text_tokens: Collection[str] = ()) -> Callable[..., str]:
    """Make a function of ids to their text; cyllama's own drops blanks at both ends and before punctuation.

    Args:
        drop_first_blank: as SentencePiece does.
        text_tokens: control tokens whose text is part of the answer.
    """
    if vocab.vocab_type not in (SENTENCEPIECE, BYTE_LEVEL):
        return lambda ids: vocab.detokenize(ids) if ids else ""
    drop_first_blank &= vocab.vocab_type == SENTENCEPIECE

    def decode(ids: Sequence[int]) -> str:
        text = b"".join(get_token_bytes(vocab, number, text_tokens) for number in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if drop_first_blank else text

    return decode


def get_token_bytes(vocab: GgufVocab, number: int, text_tokens: Collection[str] = ()) -> bytes:
    """The bytes that a token stands for; none for a control token unless it is one of `text_tokens`."""
    text, attributes = vocab.get_text(number), vocab.get_attr(number)
    if attributes & USER_DEFINED or text in text_tokens:
        return text.encode()
    if attributes & BYTE:  # <0x0A>
        return bytes([int(text[3:5], 16)])
    if not attributes & NORMAL:
        return b""
    if vocab.vocab_type == SENTENCEPIECE:
        return text.replace("\u2581", " ").encode()
    return b"".join(BYTE_OF_CHARACTER.get(character) or character.encode() for character in text)


def find_end_token_ids(vocab: GgufVocab) -> list[int]:
    """EOS and the end of turn as the metadata names them, and all that llama.cpp knows as ends of generation."""
    named = [number for number in (vocab.description.eos, vocab.description.eot) if number >= 0]
    return [*named, *vocab.description.end_ids]


def find_token(vocab: GgufVocab, text: str) -> int | None:
    """Find a special token by its text; None for any other text."""
    ids = vocab.tokenize(text)
    return ids[0] if len(ids) == 1 and vocab.get_text(ids[0]) == text else None


def is_same_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab: GgufVocab) -> bool:
    """Whether a GGUF has the tokenizer's tokens: as many at least, equal in a sample spread over all."""
    count = len(tokenizer)
    sample = {*range(0, count, max(1, count // SAMPLE_SIZE)), *tokenizer.all_special_ids}
    if vocab.n_vocab < count:
        return False
    vocab.read_tokens(sample)
    return all(vocab.get_text(number) == tokenizer.convert_ids_to_tokens(number) for number in sample)
