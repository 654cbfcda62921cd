"""How the unquantized file comes about: converted here, by llama.cpp's script, or there already. Checks come first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError

from impruver_gguf.architectures.registry import ARCHITECTURES, Architecture, converted, expected, with_defaults
from impruver_gguf.conversion import gguf_writer as write
from impruver_gguf.conversion import llama_cpp_tools as llama_cpp
from impruver_gguf.conversion import merged_safetensors as shards
from impruver_gguf.conversion.gguf_writer import header_of
from impruver_gguf.conversion.metadata import write_metadata
from impruver_gguf.conversion.tensor_types import ENCODINGS
from impruver_gguf.merging.merge import merged
from impruver_gguf.vocab.vocabulary import read_vocabulary
from impruver_gguf.weights.checkpoint import Model
from impruver_gguf.weights.lazy_tensor import Tensor
from impruver_gguf.weights.peft_adapter import check_method

EMBEDDINGS, HEAD = (".embed_tokens.weight", ".wte.weight"), "lm_head.weight"


@dataclass(frozen=True)
class Conversion:
    """What is to come, in words; its tensors' shapes; bytes of its header, of it all, and of what is written before.

    `same` tells whether a file is what `write` would write; `there` that nothing is to be written, `digest` its sha256.
    """

    words: str
    shapes: dict[str, tuple[int, ...]]
    header: int
    bytes: int
    write: Callable[[Path], None]
    same: Callable[[Path], bool] = lambda path: False
    scratch: int = 0
    by_script: bool = False
    there: bool = False
    digest: str | None = None


def plan_conversion(model: Model, output_dir: Path, places: llama_cpp.Places, outtype: str) -> Conversion:
    """The way for this model's architecture; ImpruverError with what works where there is none."""
    architecture = ARCHITECTURES.get(model.kind)
    reason = None
    if architecture:
        config = with_defaults(architecture, model.config, model.config_path)
        reason = architecture.check(config)
        if not reason:
            return _own(architecture, config, model, output_dir, outtype)
    script = llama_cpp.find_script(places)
    if script is None:
        told = f"{model.kind} with {reason}" if reason else model.kind
        raise ImpruverError(
            f"{told} is not converted here ({', '.join(ARCHITECTURES)} are); llama.cpp's own script may know it: "
            f"{llama_cpp.HOW_TO_GET}"
        )
    return _by_script(script, model, output_dir, outtype)


def existing(path: Path) -> Conversion:
    """A GGUF file that is there already, for --only_quantize."""
    from gguf import GGUFReader

    if not path.is_file():
        raise ImpruverError(f"{path} is not there: leave out --only_quantize, which quantizes a file that is there")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise ImpruverError(f"{path}: cut off, or no GGUF file: {error}") from None
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    return Conversion(f"{path.name}, which is there", shapes, reader.data_offset, 0, lambda target: None, there=True)


def _own(
    architecture: Architecture, config: dict[str, Any], model: Model, output_dir: Path, outtype: str
) -> Conversion:
    tensors = _tensors(architecture, config, model)
    vocabulary = read_vocabulary(output_dir, config["vocab_size"], architecture.plain_added)
    types = write.encodings(tensors, outtype)
    count = sum(prod(tensor.shape) for tensor in tensors.values())
    about = (architecture, config, vocabulary, output_dir, ENCODINGS[outtype].file)
    header = header_of(architecture.name, tensors, types, lambda writer: write_metadata(writer, *about))
    kind = "SentencePiece" if vocabulary.sentencepiece else f"pre-tokenizer {vocabulary.pre}"
    adapted = f", the adapter merged into {model.base}" if model.adapter else ""
    unseen = "" if model.tensors else "; by its configuration alone, since its weights are not on this disk"
    return Conversion(
        f"{architecture.name}, {count:,} parameters, {config['vocab_size']:,} tokens, {kind}{adapted}{unseen}",
        {name: tensor.shape for name, tensor in tensors.items()},
        len(header),
        write.size_of(header, tensors, types),
        partial(write.write_gguf, header=header, tensors=tensors, types=types),
        partial(write.is_gguf, header=header, tensors=tensors, types=types),
    )


def _tensors(architecture: Architecture, config: dict[str, Any], model: Model) -> dict[str, Tensor]:
    """By GGUF name, with the adapter in them; of shapes alone where there are no weights."""
    if not model.tensors:
        if model.adapter:
            check_method(model.adapter)
        return expected(architecture, config)
    tensors = model.tensors
    if model.adapter:
        tied = architecture.tied if config["tie_word_embeddings"] else None
        tensors = merged(tensors, model.adapter, conv1d=architecture.conv1d, tied=tied)
    return converted(architecture, tensors, config, model.config_path)


def _by_script(script: str, model: Model, output_dir: Path, outtype: str) -> Conversion:
    tensors = model.tensors
    if model.adapter:
        tensors = merged(tensors, model.adapter, tied=_tied_ends(tensors))
    types = write.encodings(tensors, outtype)
    size = sum(types[name].bytes_of(tensor.shape) for name, tensor in tensors.items())

    def convert(target: Path) -> None:
        if not model.adapter:
            return llama_cpp.convert(script, output_dir, target, outtype)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merged.") as scratch:
            folder = Path(scratch) / output_dir.absolute().name  # llama.cpp takes the model's name from it
            shards.write_shards(tensors, output_dir, folder, outtype)
            return llama_cpp.convert(script, folder, target, outtype)

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    words = f"{model.kind}, converted by {script}"
    scratch = shards.bytes_of(tensors, outtype) if model.adapter else 0
    return Conversion(words, shapes, 0, size, convert, scratch=scratch, by_script=True)


def _tied_ends(tensors: Collection[str]) -> tuple[str, str] | None:
    """The modules of both ends, where the weights have no head of their own."""
    embedding = next((name for name in tensors if name.endswith(EMBEDDINGS)), None)
    if embedding is None or HEAD in tensors:
        return None
    return embedding.removesuffix(".weight"), HEAD.removesuffix(".weight")
