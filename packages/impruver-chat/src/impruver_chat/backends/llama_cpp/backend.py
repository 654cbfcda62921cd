"""Answers with llama.cpp, through cyllama: a GGUF file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.llama_cpp import check_cyllama_installed, load_gguf

from impruver_chat.backends.base import ActiveGeneration, Answer, Prompt
from impruver_chat.backends.llama_cpp import batching as parallel
from impruver_chat.backends.llama_cpp.context import CachedSequence, make_sampler
from impruver_chat.backends.llama_cpp.vocab import (
    find_end_token_ids,
    is_same_vocabulary,
    make_decoder,
    make_token_finder,
    read_special_tokens,
)
from impruver_chat.generation.detokenizer import StopCriteria, make_stop_criteria
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.model_dir import GGUF_NO_COMPARISON, TOKENIZER
from impruver_chat.responses.template_markers import TemplateMarkers, find_markers, find_tokenizer_markers


@dataclass
class LlamaCppBackend:
    """A GGUF model, ready to answer."""

    model: Any
    encode: Callable[..., list[int]]
    stops: StopCriteria
    decode: Callable[[Sequence[int]], str]
    markers: TemplateMarkers
    no_comparison_reason = GGUF_NO_COMPARISON
    answer_batch = parallel.answer_batch

    def __post_init__(self) -> None:
        self.context_length: int | None = self.model.n_ctx_train
        self._conversation = CachedSequence(self.model)

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Callable[[str], None]) -> Answer:
        """As `Backend.stream`."""
        reply, there = ActiveGeneration(self, prompt, emit=emit), self._conversation
        there.decode_prompt(prompt.ids, prompt.max_new_tokens)
        sampler = make_sampler(sampling, prompt, there.size)
        while not reply.add_token(token := sampler.sample(there.context, -1)):
            there.decode([token])
        return reply.finish()


def load_backend(path: Path, output_dir: Path | None, tokenizer: Any, options: dict[str, Any]) -> LlamaCppBackend:
    """The backend of a GGUF; ids as output_dir's tokenizer gives them where it is at hand and the GGUF's own."""
    check_cyllama_installed("--gguf", "impruver-chat")
    model = load_gguf(path)
    vocab = model.get_vocab()
    if output_dir is not None and (output_dir / TOKENIZER).is_file():
        from impruver_chat.backends.transformers import backend as transformers

        fast = transformers.load_saved_tokenizer(output_dir, tokenizer)
        if is_same_vocabulary(fast, vocab):
            saved = transformers.find_stop_criteria(fast, output_dir)
            stops = make_stop_criteria(saved.texts, [*saved.ids, *find_end_token_ids(vocab)], make_token_finder(vocab))
            markers = find_tokenizer_markers(fast, options["chat_template_kwargs"])
            encode, decode = (
                partial(transformers.encode_messages, fast, options),
                transformers.make_decoder(fast, markers),
            )
            return LlamaCppBackend(model, encode, stops, decode, markers)
        log_info(f"note: {path} has other tokens than {output_dir}: its own chat template is used")
    template = model.metadata().get("tokenizer.chat_template")
    if not template:
        raise ImpruverError(f"--gguf: {path} has no chat template; name the --output_dir that it was made from")
    variables, specials = read_special_tokens(vocab)
    named = {**variables, **options["chat_template_kwargs"]}
    shape = analyze_template(template, named, specials)
    markers = find_markers(template, named, shape)
    stops = make_stop_criteria(shape.stops, find_end_token_ids(vocab), make_token_finder(vocab))
    encode = make_gguf_encoder(template, shape, variables, specials, vocab, options)
    prefixed = model.metadata().get("tokenizer.ggml.add_space_prefix", "true") == "true"
    return LlamaCppBackend(model, encode, stops, make_decoder(vocab, prefixed, markers.special_tokens), markers)


def make_gguf_encoder(
    template: str, shape: TemplateFormat, variables: dict, specials: list[str], vocab: Any, options: dict
) -> Callable[..., list[int]]:
    """Encodes with the GGUF's own chat template and tokens."""

    def encode(messages: list[dict], tools: list | None = None, kwargs: dict | None = None) -> list[int]:
        named = {**variables, **options["chat_template_kwargs"], **(kwargs or {})}
        own = analyze_template(template, named, specials, bool(tools)) if tools or kwargs else shape
        text = render_template(
            template, normalize_messages(messages, own), tools, add_generation_prompt=True, variables=named
        )
        ids = vocab.tokenize(str.__str__(text), add_special=False, parse_special=True)
        bos = vocab.token_bos() if options["add_bos"] and vocab.get_add_bos() else None
        return [bos, *ids] if bos is not None and ids[:1] != [bos] else ids

    return encode
