"""llama.cpp's contexts and samplers, through cyllama; a context's sequence is cached between prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING

from impruver_core.errors import ImpruverError
from impruver_core.system import available_cpus

from impruver_chat.backends.base import Prompt
from impruver_chat.generation.parameters import SamplingParams

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaContext, LlamaModel, LlamaSampler

BATCH_TOKENS = 512  # of a prompt, computed at once
PAGE_TOKENS = 256  # by which contexts grow
INITIAL_TOKENS = 2048  # of a conversation's first context


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
            try:
                self.context.set_state_seq_data(state, 0)
                self._cached_ids = ids
            except ValueError:  # computed again, then
                pass
