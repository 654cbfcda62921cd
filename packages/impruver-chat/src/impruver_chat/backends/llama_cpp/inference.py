"""Compute answers with llama.cpp, token by token: contexts, sequences, samplers. It runs in a process of its own.

A conversation is one sequence, cached between its prompts; several prompts at once are sequences of one context.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from math import isnan
from os.path import commonprefix
from typing import TYPE_CHECKING

from impruver_core import llama_bindings as bindings
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.llama_bindings import decode_tokens, make_batch
from impruver_core.system import available_cpus

from impruver_chat.generation.prompt import Prompt, SamplingParams

if TYPE_CHECKING:
    from impruver_core.llama_bindings import LlamaBatch, LlamaContext, LlamaModel, LlamaSampler

BATCH_TOKENS = 512  # of a prompt, computed at once
PAGE_TOKENS = 256  # by which contexts grow
INITIAL_TOKENS = 2048  # of a conversation's first context


class CachedSequence:
    """One sequence in a context that grows; what a prompt shares with the cached tokens is not computed again."""

    def __init__(self, model: LlamaModel):
        self._model, self._cached_ids = model, []
        self.context, self.size = None, 0

    def generate_answer(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[int | None]:
        """Yield the tokens that answer a prompt, without end; before the first one None for each part of the prompt."""
        for _ in self._decode_prompt(prompt.ids, prompt.max_new_tokens):
            yield None
        check_no_nan(self.context, -1)
        sampler = make_sampling_chain(self._model, sampling, prompt, self.size)
        while True:
            yield (token := sampler.sample(self.context, -1))
            self._decode([token])

    def _decode_prompt(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[None]:
        """Compute a prompt part by part, and make sure that the context has room for the answer."""
        self._ensure_capacity(len(ids) + max_new_tokens)
        shared = len(commonprefix([self._cached_ids, ids]))  # noqa: RUF071 (no paths)
        start = min(shared, len(ids) - 1)  # the last token is always computed: its scores are wanted
        del self._cached_ids[start:]
        if not self.context.memory_seq_rm(0, start, -1):  # models with a recurrent state can't go back
            self.context.kv_cache_clear()
            self._cached_ids, start = [], 0
        for position in range(start, len(ids), BATCH_TOKENS):
            self._decode(ids[position : position + BATCH_TOKENS])
            yield

    def _decode(self, ids: Sequence[int]) -> None:
        """Compute further tokens, BATCH_TOKENS at most."""
        decode_tokens(self.context, ids, len(self._cached_ids))
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


class BatchSlot:
    """An answer while it is computed: its prompt and that one's index, its sequence and sampler, its last token."""

    def __init__(self, index: int, prompt: Prompt, sequence: int, sampler: LlamaSampler):
        self.index, self.prompt, self.sequence, self.sampler = index, prompt, sequence, sampler
        self.token_count, self.last_token = 0, -1

    def sample_token(self, context: LlamaContext, output: int) -> int:
        """Sample the token after that output of the last computation."""
        self.last_token = self.sampler.sample(context, output)
        self.token_count += 1
        return self.last_token


def generate_batch(
    model: LlamaModel, prompts: Sequence[Prompt], sampling: SamplingParams, width: int, count: int
) -> Generator[list[tuple[int, int]], Sequence[int], None]:
    """Yield (index in `prompts`, next token) of the answers to several prompts, again and again until all have ended.

    It is sent the indices of those whose answers end with that token.

    Args:
        width: positions that the longest of the prompts needs with its answer.
        count: sequences that are computed at once; one that is free takes the next prompt.
    """
    context, free, slots = make_context(model, width, count), list(range(count)), []
    batch = make_batch(BATCH_TOKENS)
    waiting = list(enumerate(prompts))
    while waiting or slots:
        ended: list[BatchSlot] = []
        while free and waiting:
            index, prompt = waiting.pop(0)
            slot = BatchSlot(index, prompt, free.pop(), make_sampling_chain(model, sampling, prompt, width))
            output = decode_prompt(context, batch, slot)
            check_no_nan(context, output)
            ended_indices = yield [(index, slot.sample_token(context, output))]
            (ended if ended_indices else slots).append(slot)
        if not ended and slots:
            batch.clear()
            for slot in slots:
                position = len(slot.prompt.ids) + slot.token_count - 1
                batch.add(slot.last_token, position, [slot.sequence], True)
            context.decode(batch)
            ended_indices = yield [
                (slot.index, slot.sample_token(context, output)) for output, slot in enumerate(slots)
            ]
            ended = [slot for slot in slots if slot.index in ended_indices]
            slots = [slot for slot in slots if slot.index not in ended_indices]
        for slot in ended:
            context.memory_seq_rm(slot.sequence, -1, -1)
            free.append(slot.sequence)


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


def check_no_nan(context: LlamaContext, output: int) -> None:
    """Raise CheckFailedError where the scores of an output of the last computation are NaN: any token would do."""
    if isnan(sum(context.get_logits_ith(output))):
        raise CheckFailedError("--gguf: the model computes NaN, so it has no answer: its weights are broken")


def make_context(model: LlamaModel, tokens: int, sequences: int = 1) -> LlamaContext:
    """Make an empty context of `tokens` for each of `sequences`; ImpruverError where memory does not suffice."""
    size = round_up_to_pages(tokens) * sequences
    threads = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(threads), available_cpus()) if threads.isdecimal() and int(threads) else available_cpus()
    try:
        return bindings.make_context(model, size, BATCH_TOKENS, threads, n_seq_max=sequences)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        or_batch_size = "" if sequences == 1 else " or --batch_size"
        raise ImpruverError(
            f"--gguf: llama.cpp has no room for {size:,} tokens of context "
            f"({' '.join(str(error).split())}); set a lower --max_new_tokens{or_batch_size}"
        ) from error


def make_sampling_chain(model: LlamaModel, sampling: SamplingParams, prompt: Prompt, context_size: int) -> LlamaSampler:
    """Make llama.cpp's chain in transformers' order: penalty over prompt and answer, temperature, top_k, top_p."""
    sampler = bindings.make_sampler()
    if sampling.repetition_penalty != 1:
        bindings.add_repetition_penalty(sampler, sampling.repetition_penalty, context_size, model.n_vocab)
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
