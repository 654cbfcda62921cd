"""What sets an architecture apart: one row of a table, whose functions stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from impruver_core.io.json_schema import Keys

from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import Tensor

Config = dict[str, Any]


def nothing(*_: Any) -> None:
    """Where an architecture has nothing of its own to write, or nothing to object to."""


@dataclass(frozen=True)
class Architecture:
    """`name` is llama.cpp's; `defaults` are what transformers takes for keys that config.json leaves out."""

    name: str
    blocks: str  # config's key for the number of layers
    tied: tuple[str, str]  # modules of input and output embeddings, as transformers names them
    keys: Keys  # what config.json's keys may hold, where they are there
    defaults: Config
    contradiction: Callable[[Config], str | None]  # what no such model can be
    sizes: Callable[[Config], dict[str, int]]  # what the names in `shapes` are for a configuration
    shapes: dict[str, tuple[str, ...]]  # GGUF name, a layer's without its number → sizes, in the order of the file
    parameters: Callable[[Any, Config, int], None]  # writes the hyperparameters and the type of the file
    optional: Callable[[Config], Collection[str]] = lambda config: ()  # those of `shapes` that a model may be without
    check: Callable[[Config], str | None] = nothing  # what llama.cpp would silently compute otherwise
    first: Callable[[Any, Config], None] = nothing  # writes what stands before everything else
    extra: Callable[[Config], dict[str, Tensor]] = lambda config: {}  # tensors that no file holds, by GGUF name
    changed: Callable[[str, Tensor, Config], Tensor] = lambda name, tensor, config: tensor  # as GGUF wants it
    conv1d: tuple[str, ...] = ()  # how modules with transposed weights end, all matrices of a layer
    plain_added: bool = False  # added tokens stand in a SentencePiece vocabulary as they are
    vocabulary_before: Callable[[Any, Config, Vocabulary], None] = nothing
    vocabulary_after: Callable[[Any, Config, Vocabulary], None] = nothing
