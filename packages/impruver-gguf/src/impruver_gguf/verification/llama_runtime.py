"""Run a GGUF file with llama.cpp: logits where they are asked for, greedy answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from impruver_core.llama_bindings import make_batch, make_context, make_greedy_sampler
from impruver_core.llama_cpp import load_gguf
from impruver_core.system import available_cpus

if TYPE_CHECKING:
    from impruver_core.llama_bindings import LlamaModel

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
        tokens, threads = -(-room // PAGE_TOKENS) * PAGE_TOKENS, workers or available_cpus()
        # The room belongs to all sequences together.
        self._context = make_context(model, tokens, BATCH_TOKENS, threads, n_seq_max=sequences, kv_unified=True)
        self._batch, self._sampler = make_batch(BATCH_TOKENS), make_greedy_sampler()
        self._floats = Struct(f"{model.n_vocab}f")

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
