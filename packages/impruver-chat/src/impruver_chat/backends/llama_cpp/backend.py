"""The llama.cpp backend: a GGUF file, through cyllama.

A conversation is one sequence, cached between its prompts; several prompts at once are sequences of one context.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.errors import ImpruverError
from impruver_core.llama_cpp import load_gguf
from impruver_core.recipe.sections import TokenizerSection
from impruver_core.system import available_cpus

from impruver_chat.backends.base import MAX_BATCH_TOKENS, ActiveGeneration, Answer, Emit, IndexedAnswers, Prompt
from impruver_chat.backends.chat_tokenizer import ChatTokenizer, EncodingOptions
from impruver_chat.backends.llama_cpp.vocab import make_gguf_tokenizer
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.model_dir import GgufFile

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaBatch, LlamaContext, LlamaModel, LlamaSampler

BATCH_TOKENS = 512  # of a prompt, computed at once
PAGE_TOKENS = 256  # by which contexts grow
INITIAL_TOKENS = 2048  # of a conversation's first context
MAX_SEQUENCES = 64  # of a context; llama.cpp takes no more


class LlamaCppBackend:
    """A GGUF model that answers with llama.cpp; see `Backend`."""

    no_comparison_reason = GgufFile.no_comparison_reason

    def __init__(self, model: LlamaModel, tokenizer: ChatTokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.context_length: int | None = model.n_ctx_train
        self._sequence = CachedSequence(model)

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Emit) -> Answer:
        """Answer one prompt; see `Backend`."""
        generation, sequence = ActiveGeneration(self.tokenizer, prompt, emit=emit), self._sequence
        sequence.decode_prompt(prompt.ids, prompt.max_new_tokens)
        sampler = make_sampler(sampling, prompt, sequence.size)
        while not generation.add_token(token := sampler.sample(sequence.context, -1)):
            sequence.decode([token])
        return generation.finish()

    def answer_batch(self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int) -> IndexedAnswers:
        """Answer prompts in batches, see `Backend`; quantized sums differ with `size`, so answers may differ, too."""
        from cyllama.llama.llama_cpp import LlamaBatch

        for group in group_by_length(prompts):
            width = max(compute_length(prompts[index]) for index in group)
            count = max(1, min(size, len(group), MAX_SEQUENCES, MAX_BATCH_TOKENS // width))
            context, free, slots = make_context(self.model, width, count), list(range(count)), []
            batch = LlamaBatch(n_tokens=BATCH_TOKENS, embd=0, n_seq_max=1)
            while group or slots:
                ended = []
                while free and group:  # a sequence that is free takes the next prompt
                    prompt = prompts[index := group.pop(0)]
                    sampler = make_sampler(sampling, prompt, width)
                    slot = BatchSlot(self.tokenizer, prompt, index, free.pop(), sampler)
                    output = decode_prompt(context, batch, slot)
                    (ended if slot.sample_token(context, output) else slots).append(slot)
                if not ended and slots:
                    batch.clear()
                    for slot in slots:
                        position = len(slot.prompt.ids) + slot.token_count - 1
                        batch.add(slot.last_token, position, [slot.sequence], True)
                    context.decode(batch)
                    ended = [slot for output, slot in enumerate(slots) if slot.sample_token(context, output)]
                    slots = [slot for slot in slots if slot not in ended]
                for slot in ended:
                    context.memory_seq_rm(slot.sequence, -1, -1)
                    free.append(slot.sequence)
                    yield slot.index, slot.finish()


class CachedSequence:
    """One sequence in a context that grows; what a prompt shares with the cached tokens is not computed again."""

    def __init__(self, model: LlamaModel):
        self._model, self._cached_ids = model, []
        self.context, self.size = None, 0

    def decode_prompt(self, ids: Sequence[int], max_new_tokens: int) -> None:
        """Compute a prompt, and make sure that the context has room for the answer."""
        self._ensure_capacity(len(ids) + max_new_tokens)
        shared = len(commonprefix([self._cached_ids, ids]))  # noqa: RUF071 (no paths)
        start = min(shared, len(ids) - 1)  # the last token is always computed: its scores are wanted
        del self._cached_ids[start:]
        if not self.context.memory_seq_rm(0, start, -1):  # models with a recurrent state can't go back
            self.context.kv_cache_clear()
            self._cached_ids, start = [], 0
        for position in range(start, len(ids), BATCH_TOKENS):
            self.decode(ids[position : position + BATCH_TOKENS])

    def decode(self, ids: Sequence[int]) -> None:
        """Compute further tokens, BATCH_TOKENS at most."""
        from cyllama.llama.llama_cpp import llama_batch_get_one

        self.context.decode(llama_batch_get_one(list(ids), len(self._cached_ids)))
        self._cached_ids += ids

    def _ensure_capacity(self, tokens: int) -> None:
        if self.size >= tokens:
            return
        ids, self._cached_ids = self._cached_ids, []
        state = self.context.get_state_seq_data(0) if ids else None
        grown = max(tokens, min(max(2 * self.size, INITIAL_TOKENS), self._model.n_ctx_train))
        self.context, self.size = None, 0  # the old one's memory first
        self.context, self.size = make_context(self._model, grown), round_up_to_pages(grown)
        if state is not None:
            with suppress(ValueError):  # computed again, then
                self.context.set_state_seq_data(state, 0)
                self._cached_ids = ids


class BatchSlot(ActiveGeneration):
    """An answer while it is generated: the sequence it is in, its sampler, its last token."""

    def __init__(self, tokenizer: ChatTokenizer, prompt: Prompt, index: int, sequence: int, sampler: LlamaSampler):
        super().__init__(tokenizer, prompt, index)
        self.sequence, self.sampler, self.last_token = sequence, sampler, -1

    def sample_token(self, context: LlamaContext, output: int) -> bool:
        """Sample the token after that output of the last computation; True where the answer has ended."""
        self.last_token = self.sampler.sample(context, output)
        return self.add_token(self.last_token)


def group_by_length(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Group the indices of prompts that need about as many positions, the longest first."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: -compute_length(prompts[index])):
        if groups and 2 * compute_length(prompts[index]) >= compute_length(prompts[groups[-1][0]]):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def compute_length(prompt: Prompt) -> int:
    """Positions of the prompt and its longest answer."""
    return len(prompt.ids) + prompt.max_new_tokens


def decode_prompt(context: LlamaContext, batch: LlamaBatch, slot: BatchSlot) -> int:
    """Compute a slot's prompt; the number of its last output."""
    ids = slot.prompt.ids
    for start in range(0, len(ids), BATCH_TOKENS):
        part = ids[start : start + BATCH_TOKENS]
        batch.clear()
        for position, token in enumerate(part, start):
            batch.add(token, position, [slot.sequence], position == len(ids) - 1)
        context.decode(batch)
    return len(part) - 1


def make_context(model: LlamaModel, tokens: int, sequences: int = 1) -> LlamaContext:
    """Make an empty context of `tokens` for each of `sequences`; ImpruverError where memory does not suffice."""
    from cyllama.llama.llama_cpp import LlamaContext, LlamaContextParams

    params = LlamaContextParams()
    params.n_ctx, params.n_seq_max = round_up_to_pages(tokens) * sequences, sequences
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    threads = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(threads), available_cpus()) if threads.isdecimal() and int(threads) else available_cpus()
    params.n_threads = params.n_threads_batch = threads
    try:
        return LlamaContext(model, params)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        or_batch_size = "" if sequences == 1 else " or --batch_size"
        raise ImpruverError(
            f"--gguf: llama.cpp has no room for {params.n_ctx:,} tokens of context "
            f"({' '.join(str(error).split())}); set a lower --max_new_tokens{or_batch_size}"
        ) from error


def make_sampler(sampling: SamplingParams, prompt: Prompt, context_size: int) -> LlamaSampler:
    """Make llama.cpp's chain in transformers' order: penalty over prompt and answer, temperature, top_k, top_p."""
    from cyllama.llama.llama_cpp import LlamaSampler, LlamaSamplerChainParams

    sampler = LlamaSampler(LlamaSamplerChainParams())
    if sampling.repetition_penalty != 1:
        sampler.add_penalties(context_size, sampling.repetition_penalty, 0.0, 0.0)
        for token in prompt.ids:
            sampler.accept(token)
    if not sampling.do_sample:
        sampler.add_greedy()
        return sampler
    sampler.add_temp(sampling.temperature)
    sampler.add_top_k(sampling.top_k)
    sampler.add_top_p(sampling.top_p, 1)
    sampler.add_dist(prompt.seed % 2**32)
    return sampler


def round_up_to_pages(tokens: int) -> int:
    """Round a number of tokens up to whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


def load_backend(
    source: GgufFile, section: TokenizerSection, options: EncodingOptions, recipe_dir: Path | None = None
) -> LlamaCppBackend:
    """Load a GGUF file; `section` is the recipe's, for the tokenizer in output_dir."""
    try:
        model = load_gguf(source.path)
    except ImpruverError as error:
        raise ImpruverError(f"--gguf: {error}") from error.__cause__
    return LlamaCppBackend(model, make_gguf_tokenizer(model, source, section, options, recipe_dir))
