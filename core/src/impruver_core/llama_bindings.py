"""llama.cpp's Python bindings, cyllama: the one module that imports them and knows how their versions differ.

Python 3.11 gets 0.2, later ones 0.7; its `add_penalties` also wants the size of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaBatch, LlamaContext, LlamaModel, LlamaSampler, LlamaVocab

    __all__ = ["LlamaBatch", "LlamaContext", "LlamaModel", "LlamaSampler", "LlamaVocab"]

OLDEST, BEYOND = "0.2.18", "0.8"  # the versions that are known, and the first that is not; as in pyproject.toml


def is_supported(version: str) -> bool:
    """Whether the calls in this module are those of a version of cyllama."""
    lowest, number, beyond = (
        tuple(int(part) for part in text.split(".") if part.isdecimal()) for text in (OLDEST, version, BEYOND)
    )
    return lowest <= number < beyond


def open_model(path: Path, **settings: object) -> LlamaModel:
    """Open a GGUF file without llama.cpp's log; `settings` are its model parameters. cyllama's own errors pass."""
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """With the size that cyllama's contexts ask their model for."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    parameters = llama_cpp.LlamaModelParams()
    for name, value in settings.items():
        setattr(parameters, name, value)
    return Model(path_model=str(path), params=parameters)


def make_context(model: LlamaModel, tokens: int, batch_tokens: int, threads: int, **settings: object) -> LlamaContext:
    """Make an empty context of `tokens`, `batch_tokens` computed at once; `settings` are further parameters of it."""
    from cyllama.llama import llama_cpp

    parameters = llama_cpp.LlamaContextParams()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = tokens, batch_tokens, batch_tokens
    parameters.n_threads = parameters.n_threads_batch = threads
    for name, value in settings.items():
        setattr(parameters, name, value)
    return llama_cpp.LlamaContext(model, parameters)


def make_batch(tokens: int) -> LlamaBatch:
    """Make a batch for so many tokens, each of one sequence."""
    from cyllama.llama.llama_cpp import LlamaBatch

    return LlamaBatch(n_tokens=tokens, embd=0, n_seq_max=1)


def decode_tokens(context: LlamaContext, ids: Sequence[int], position: int) -> None:
    """Compute further tokens of a context's only sequence, the first of them at `position`."""
    from cyllama.llama import llama_cpp

    context.decode(llama_cpp.llama_batch_get_one(list(ids), position))


def make_sampler() -> LlamaSampler:
    """Make an empty chain of samplers."""
    from cyllama.llama import llama_cpp

    return llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())


def make_greedy_sampler() -> LlamaSampler:
    """Make a sampler that takes the likeliest token each time."""
    sampler = make_sampler()
    sampler.add_greedy()
    return sampler


def add_repetition_penalty(sampler: LlamaSampler, penalty: float, last_tokens: int, vocabulary_size: int) -> None:
    """Add a penalty for the tokens among the last ones to a chain."""
    values = {
        "n_vocab": vocabulary_size,
        "penalty_last_n": last_tokens,
        "penalty_repeat": penalty,
        "penalty_freq": 0.0,
        "penalty_present": 0.0,
    }
    wanted = inspect.signature(sampler.add_penalties).parameters
    sampler.add_penalties(*(value for name, value in values.items() if name in wanted))


def quantize_file(source: str, target: str, ftype: int, threads: int) -> None:
    """Quantize a GGUF file to llama.cpp's file type `ftype`; RuntimeError, which knows no reason, where that fails."""
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype, parameters.nthread = ftype, threads
    llama_cpp.model_quantize(source, target, parameters)
