"""llama.cpp's contexts and samplers, through cyllama: where prompts are computed, and kept for the next turn."""

import os
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.system import available_cpus

from impruver_chat.backends.base import Prompt
from impruver_chat.generation.parameters import SamplingParams

BATCH_TOKENS = 512  # tokens of a prompt that are computed at once
PAGE_TOKENS = 256  # contexts grow by this many tokens
INITIAL_TOKENS = 2048  # tokens of a conversation's first context


def make_context(model: Any, tokens: int, sequences: int = 1) -> Any:
    """An empty context of `tokens` for each of `sequences`; ImpruverError where there is no memory for it."""
    from cyllama.llama.llama_cpp import LlamaContext, LlamaContextParams

    wanted = LlamaContextParams()
    wanted.n_ctx, wanted.n_seq_max = round_up_to_pages(tokens) * sequences, sequences
    wanted.n_batch = wanted.n_ubatch = BATCH_TOKENS
    wanted.n_threads = wanted.n_threads_batch = get_thread_count()
    try:
        return LlamaContext(model, wanted)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        beside = "" if sequences == 1 else " or --batch_size"
        raise ImpruverError(
            f"--gguf: llama.cpp has no room for {wanted.n_ctx:,} tokens of context "
            f"({' '.join(str(error).split())}); set a lower --max_new_tokens{beside}"
        ) from error


def round_up_to_pages(tokens: int) -> int:
    """`tokens` in whole pages."""
    return -(-tokens // PAGE_TOKENS) * PAGE_TOKENS


class CachedSequence:
    """One sequence in a context that grows. What a prompt shares with what is there already is not computed again."""

    def __init__(self, model: Any):
        self._model, self._kept = model, []
        self.context, self.size = None, 0

    def decode_prompt(self, ids: Sequence[int], room: int) -> None:
        """Computes a prompt; there is place for `room` more tokens."""
        self._ensure_capacity(len(ids) + room)
        shared = len(commonprefix([self._kept, ids]))  # noqa: RUF071 (no paths)
        start = min(shared, len(ids) - 1)  # the last one always: its scores are wanted
        del self._kept[start:]
        if not self.context.memory_seq_rm(0, start, -1):  # models with a state can't go back
            self.context.kv_cache_clear()
            self._kept, start = [], 0
        for at in range(start, len(ids), BATCH_TOKENS):
            self.decode(ids[at : at + BATCH_TOKENS])

    def decode(self, ids: Sequence[int]) -> None:
        """Computes further tokens, BATCH at most."""
        from cyllama.llama.llama_cpp import llama_batch_get_one

        self.context.decode(llama_batch_get_one(list(ids), len(self._kept)))
        self._kept += ids

    def _ensure_capacity(self, tokens: int) -> None:
        if self.size >= tokens:
            return
        kept, self._kept = self._kept, []
        known = self.context.get_state_seq_data(0) if kept else None
        grown = max(tokens, min(max(2 * self.size, INITIAL_TOKENS), self._model.n_ctx_train))
        self.context, self.size = None, 0  # the old one's memory first
        self.context, self.size = make_context(self._model, grown), round_up_to_pages(grown)
        if known is not None:
            try:
                self.context.set_state_seq_data(known, 0)
                self._kept = kept
            except ValueError:  # computed again, then
                pass


def make_sampler(sampling: SamplingParams, prompt: Prompt, context: int) -> Any:
    """llama.cpp's chain in transformers' order: penalty over all that was said, temperature, top_k, top_p."""
    from cyllama.llama.llama_cpp import LlamaSampler, LlamaSamplerChainParams

    sampler = LlamaSampler(LlamaSamplerChainParams())
    if sampling.repetition_penalty != 1:
        sampler.add_penalties(context, sampling.repetition_penalty, 0.0, 0.0)
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


def get_thread_count() -> int:
    """Processors that this process may run on, or OMP_NUM_THREADS if that is fewer."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(wanted), available_cpus()) if wanted.isdecimal() and int(wanted) else available_cpus()
