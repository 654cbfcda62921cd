"""`Architecture`: what a model family needs to be converted, one entry of the registry.

The hooks are named as those of llama.cpp's converter: `prepare_tensors`, `modify_tensors`,
`set_gguf_parameters`, `set_vocab`, `generate_extra_tensors`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter
from impruver_core.io.json_schema import Keys

from impruver_gguf.merging.merge import TiedModules
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import VocabBuilder, write_vocab
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

Config = dict[str, Any]  # config.json, completed by `defaults`


def do_nothing(*_: object) -> None:
    """Stand in for a hook where an architecture writes nothing of its own, or has nothing to object to."""


@dataclass(frozen=True)
class Architecture:
    """How config.json and the tensors of a model family become those of a GGUF; `name` is llama.cpp's."""

    name: str
    blocks: str  # config.json's key for the number of layers
    tied: TiedModules  # the modules of input and output embeddings, as transformers names them
    keys: Keys  # what config.json's keys may hold, where they are there
    defaults: Config  # what transformers takes for keys that config.json leaves out, or that are null there
    find_contradiction: Callable[[Config], str | None]  # what no such model can have
    get_sizes: Callable[[Config], dict[str, int]]  # what the names of sizes in `shapes` are for a configuration
    shapes: dict[str, tuple[str, ...]]  # GGUF name, a layer's without its number → sizes, in the order of the file
    set_gguf_parameters: Callable[[GGUFWriter, Config, int], None]  # writes hyperparameters and the file type
    set_vocab: Callable[[GGUFWriter, Config, Vocabulary], None] = lambda writer, _, vocab: write_vocab(writer, vocab)
    set_leading_parameters: Callable[[GGUFWriter, Config], None] = do_nothing  # writes what stands before all else
    # Tensors that no checkpoint holds, by GGUF name; and a tensor with its name in transformers → as GGUF holds it.
    generate_extra_tensors: Callable[[Config], dict[str, LazyTensor]] = lambda config: {}
    # The tensors without what a checkpoint may have and transformers does not load, before an adapter is merged.
    drop_unused: Callable[[Tensors, Config], Tensors] = lambda tensors, config: tensors
    # All tensors under names that gguf-py knows, experts stacked or split, in the order in which llama.cpp writes them.
    prepare_tensors: Callable[[Tensors, Config], Tensors] = lambda tensors, config: tensors
    modify_tensors: Callable[[str, LazyTensor, Config], LazyTensor] = lambda name, tensor, config: tensor
    adapt_config: Callable[[Config, Collection[str]], Config] = lambda config, names: config  # to the tensors' names
    get_encoding: Callable[[str, Config], str | None] = do_nothing  # ggml's type of what is encoded in files already
    get_optional: Callable[[Config], Collection[str]] = lambda config: ()  # which of `shapes` a model may be without
    get_absent: Callable[[Config, int], Collection[str]] = lambda config, layer: ()  # which of them a layer never has
    get_unused: Callable[[Config, int], Collection[str]] = lambda config, layer: ()  # which absent ones files may hold
    get_layer_sizes: Callable[[Config, int], dict[str, int]] = lambda config, layer: {}  # sizes of a layer's own
    reshaped: dict[str, tuple[str, ...]] = field(default_factory=dict)  # those that GGUF holds in another shape
    find_unsupported: Callable[[Config], str | None] = do_nothing  # what llama.cpp would silently compute otherwise
    choose_variant: Callable[[Config], "Architecture | None"] = do_nothing  # another one, as which llama.cpp takes it
    find_inexact: Callable[[Config], str | None] = do_nothing  # what it computes a little otherwise: a warning
    nullable: tuple[str, ...] = ()  # keys for which null is a value of its own: none
    conv1d: tuple[str, ...] = ()  # how modules with transposed weights end: all matrices of a layer
    build_vocab: VocabBuilder | None = None  # builds a vocabulary of another kind than the usual two
    plain_added: bool = False  # added tokens stand in a SentencePiece vocabulary as they are
