"""llama.cpp, through cyllama, on one GGUF file: token ids, logits where they are asked for, greedy answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from impruver_core.system import available_cpus

BATCH = 128  # tokens that are computed at once; llama.cpp holds the logits of as many


PAGE = 256  # contexts are multiples of it


def open_model(path: Path) -> Any:
    """llama.cpp's model, its values checked; RuntimeError or ValueError where it can't be loaded."""
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """With the size that cyllama's contexts ask their model for."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    settings = llama_cpp.LlamaModelParams()
    settings.check_tensors = True
    settings.n_gpu_layers = 0  # a proof of the file, not of a device
    return Model(path_model=str(path), params=settings)


class Engine:
    """A model with a context for several sequences of `room` tokens altogether, computed by so many `workers`."""

    def __init__(self, model: Any, room: int, sequences: int = 1, workers: int | None = None):
        from cyllama.llama import llama_cpp

        self._batch = llama_cpp.LlamaBatch(n_tokens=BATCH, embd=0, n_seq_max=1)
        settings = llama_cpp.LlamaContextParams()
        settings.n_ctx, settings.n_seq_max = -(-room // PAGE) * PAGE, sequences
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = workers or available_cpus()
        settings.kv_unified = True  # the room belongs to all sequences together
        self._context = llama_cpp.LlamaContext(model=model, params=settings)
        self._size = model.n_vocab
        self._floats = Struct(f"{self._size}f")
        self._sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
        self._sampler.add_greedy()

    def decode(self, ids: Sequence[int], wanted: Sequence[int]) -> Iterator[int]:
        """Decodes a sequence from the start; stops at each of the `wanted` positions, whose logits can then be read."""
        self._context.kv_cache_clear()
        positions = set(wanted)
        for start in range(0, len(ids), BATCH):
            part = range(start, min(start + BATCH, len(ids)))
            self._feed([(ids[at], at, 0, at in positions) for at in part])
            for at in part:
                if at in positions:
                    yield at - start

    def logits(self, ids: Sequence[int], wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """The logits at these positions (ascending) of a sequence, one after another."""
        for number in self.decode(ids, wanted):
            yield np.frombuffer(self._floats.pack(*self._context.get_logits_ith(number)), np.float32)

    def answers(self, asked: Sequence[tuple[Sequence[int], int]], ends: set[int]) -> list[tuple[list[int], bool]]:
        """The greedy answer to each (prompt, room), all at once: its tokens, and whether one of `ends` ended it."""
        self._context.kv_cache_clear()
        answers: list[tuple[list[int], bool]] = [([], False) for _ in asked]
        running: dict[int, int] = {}  # sequence → its last token
        for number, (prompt, _) in enumerate(asked):
            for start in range(0, len(prompt), BATCH):
                part = range(start, min(start + BATCH, len(prompt)))
                self._feed([(prompt[at], at, number, at == len(prompt) - 1) for at in part])
            running[number] = self._sampler.sample(self._context, -1)
        while running:
            for number, token in list(running.items()):
                said, _ = answers[number]
                said.append(token)
                if token in ends or len(said) >= asked[number][1]:
                    answers[number] = (said, token in ends)
                    del running[number]
            order = list(running)
            places = {number: len(asked[number][0]) + len(answers[number][0]) - 1 for number in order}
            if order:
                self._feed([(running[number], places[number], number, True) for number in order])
            running = {number: self._sampler.sample(self._context, at) for at, number in enumerate(order)}
        return answers

    def _feed(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        self._batch.reset()
        for token, place, sequence, wanted in tokens:
            self._batch.add(token, place, [sequence], wanted)
        self._context.decode(self._batch)
