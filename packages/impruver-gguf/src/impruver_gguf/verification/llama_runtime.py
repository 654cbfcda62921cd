"""Run a GGUF file with llama.cpp, through cyllama: logits where they are asked for, greedy answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from impruver_core.llama_cpp import load_gguf
from impruver_core.system import available_cpus

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaModel

BATCH_TOKENS = 128  # computed at once; llama.cpp holds the logits of as many
PAGE_TOKENS = 256  # contexts are multiples of it


class AnswerPrompt(NamedTuple):
    """A prompt to be answered, and the most tokens that its answer may have."""

    ids: list[int]
    max_tokens: int


class Answer(NamedTuple):
    """The tokens of an answer, and whether the last of them ended it."""

    ids: list[int]
    ended: bool


def load_gguf_on_cpu(path: Path) -> LlamaModel:
    """Load a model with its values checked, on the CPU: the file is verified, not a device."""
    return load_gguf(path, check_tensors=True, n_gpu_layers=0)


class LlamaRuntime:
    """A model with a context on the CPU for several sequences of `room` tokens altogether."""

    def __init__(self, model: LlamaModel, room: int, sequences: int = 1, workers: int | None = None):
        from cyllama.llama import llama_cpp

        self._batch = llama_cpp.LlamaBatch(n_tokens=BATCH_TOKENS, embd=0, n_seq_max=1)
        settings = llama_cpp.LlamaContextParams()
        settings.n_ctx, settings.n_seq_max = -(-room // PAGE_TOKENS) * PAGE_TOKENS, sequences
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = workers or available_cpus()
        settings.kv_unified = True  # the room belongs to all sequences together
        self._context = llama_cpp.LlamaContext(model=model, params=settings)
        self._floats = Struct(f"{model.n_vocab}f")
        self._sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
        self._sampler.add_greedy()

    def decode(self, ids: Sequence[int], positions: Collection[int]) -> Iterator[int]:
        """Decode a sequence; yield the number in its batch of each of `positions`, whose logits can then be read."""
        self._context.kv_cache_clear()
        positions, tokens = set(positions), list(enumerate(ids))
        for start in range(0, len(tokens), BATCH_TOKENS):
            batch = tokens[start : start + BATCH_TOKENS]
            self._decode_batch((token, position, 0, position in positions) for position, token in batch)
            yield from (number for number, (position, _) in enumerate(batch) if position in positions)

    def compute_logits(self, ids: Sequence[int], positions: Collection[int]) -> Iterator[np.ndarray]:
        """Yield the logits (vocabulary,) at each of these positions of a sequence, in ascending order."""
        for number in self.decode(ids, positions):
            yield np.frombuffer(self._floats.pack(*self._context.get_logits_ith(number)), np.float32)

    def generate_answers(self, prompts: Sequence[AnswerPrompt], ends: Collection[int]) -> list[Answer]:
        """Generate the greedy answer to each prompt, all at once; one of `ends` ends it."""
        self._context.kv_cache_clear()
        answers = [Answer([], False) for _ in prompts]
        last_tokens: dict[int, int] = {}  # of the answers that have not ended
        for sequence, (prompt, _) in enumerate(prompts):
            tokens, last = list(enumerate(prompt)), len(prompt) - 1
            for start in range(0, len(tokens), BATCH_TOKENS):
                batch = tokens[start : start + BATCH_TOKENS]
                self._decode_batch((token, position, sequence, position == last) for position, token in batch)
            last_tokens[sequence] = self._sampler.sample(self._context, -1)
        while last_tokens:
            for sequence, token in list(last_tokens.items()):
                ids = answers[sequence].ids
                ids.append(token)
                if token in ends or len(ids) >= prompts[sequence].max_tokens:
                    answers[sequence] = Answer(ids, token in ends)
                    del last_tokens[sequence]
            running = list(last_tokens)
            if running:
                positions = [len(prompts[sequence].ids) + len(answers[sequence].ids) - 1 for sequence in running]
                tokens = zip(last_tokens.values(), positions, running, strict=True)
                self._decode_batch((*token, True) for token in tokens)
            last_tokens = {
                sequence: self._sampler.sample(self._context, number) for number, sequence in enumerate(running)
            }
        return answers

    def _decode_batch(self, tokens: Iterable[tuple[int, int, int, bool]]) -> None:
        """Decode (id, position, sequence, whether its logits are asked for) of tokens."""
        self._batch.reset()
        for token_id, position, sequence, has_logits in tokens:
            self._batch.add(token_id, position, [sequence], has_logits)
        self._context.decode(self._batch)
