"""What sets an architecture apart: one row of a table, whose functions stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from impruver_gguf.jsonfile import Keys
from impruver_gguf.tensors import Tensor

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """`name` is llama.cpp's; `defaults` are what transformers takes for keys that config.json leaves out."""

    name: str
    blocks: str  # config keys: number of layers, longest context
    context: str
    tied: tuple[str, str]  # modules of input and output embeddings, as transformers names them
    keys: Keys  # what config.json's keys may hold, where they are there
    defaults: Config
    contradiction: Callable[[Config], str | None]  # what no such model can be
    sizes: Callable[[Config], dict[str, int]]  # what the names in `shapes` are for a configuration
    shapes: dict[str, tuple[str, ...]]  # GGUF name, a layer's without its number → sizes, in the order of the file
    optional: Callable[[Config], Collection[str]]  # those of `shapes` that a model may be without
    check: Callable[[Config], str | None]  # what llama.cpp would silently compute otherwise
    parameters: Callable[[Any, Config, int], None]  # writes the hyperparameters and the type of the file
    extra: Callable[[Config], dict[str, Tensor]]  # tensors that no file holds, by GGUF name
    changed: Callable[[str, Tensor, Config], Tensor]  # a tensor as GGUF wants it, by its name in the file
    conv1d: Callable[[str], bool]  # modules with transposed weights
    vocabulary_before: Callable[[Any, Config, Config], None]  # writer, config, tokenizer_config
    vocabulary_after: Callable[[Any, Config], None]


def nothing(*_: Any) -> None:
    """Where an architecture has nothing of its own to write."""


def no_tensors(config: Config) -> dict[str, Tensor]:
    """Where every tensor stands in a file."""
    return {}


def none_of_them(config: Config) -> tuple[str, ...]:
    """Where every tensor must be there."""
    return ()


def no_conv1d(module: str) -> bool:
    """Where every layer holds its weights as rows of outputs."""
    return False
