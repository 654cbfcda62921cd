"""Plan how the unquantized file comes about: converted here, by llama.cpp's script, or there already.

All that can be checked before anything is written is checked here; before training also of the model to be.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.io.integrity import FileState, read_file_states
from impruver_core.io.json_schema import check_keys
from impruver_core.recipe.paths import find_or_download
from impruver_core.recipe.sections import ModelSection

from impruver_gguf.architectures.base.architecture import Architecture
from impruver_gguf.architectures.registry import (
    ARCHITECTURES,
    complete_config,
    convert_tensors,
    find_architecture,
    make_expected_tensors,
)
from impruver_gguf.conversion import llama_cpp_tools
from impruver_gguf.conversion.gguf_writer import (
    ENCODED_TYPES,
    TENSOR_TYPES,
    GgufContent,
    build_header,
    choose_tensor_types,
)
from impruver_gguf.conversion.merged_model import find_tied_modules
from impruver_gguf.merging.merge import merge_adapter
from impruver_gguf.vocab.saved_tokenizer import FILES, get_largest_token_id
from impruver_gguf.vocab.vocabulary import read_vocabulary
from impruver_gguf.weights.checkpoint import (
    CONFIG_KEYS,
    SourceCheckpoint,
    check_mergeable,
    describe_unmergeable,
    has_model,
    make_checkpoint,
    read_checkpoint,
)
from impruver_gguf.weights.lazy_tensor import LazyTensor
from impruver_gguf.weights.text_model import extract_text_model, get_text_config

SCRATCH = ".merged."  # how the name of a folder begins that holds a merged model for a while


@dataclass(frozen=True)
class ConversionPlan:
    """How the unquantized GGUF file comes about."""

    description: str  # what is converted, for people
    shapes: dict[str, tuple[int, ...]]  # of tensors, by the names that are known before conversion
    header_bytes: int  # before the tensors' data; 0 where unknown
    file_bytes: int  # of the file that is to be written
    write: Callable[[Path], None]
    is_same: Callable[[Path], bool] = lambda path: False  # whether a file is what `write` would write
    scratch_bytes: int = 0  # what is written for a while beside it
    by_script: bool = False  # llama.cpp's script converts
    exists: bool = False  # the file is there, nothing is to be written
    digest: str | None = None  # its sha256, where it is known already
    inputs: Mapping[Path, FileState] = field(default_factory=dict)  # the files that it is made of, as they were found
    encodings: Mapping[str, str] = field(default_factory=dict)  # of tensors that are quantized already: ggml's types


def plan_conversion(
    checkpoint: SourceCheckpoint, model_dir: Path, paths: llama_cpp_tools.LlamaCppPaths, outtype: str
) -> ConversionPlan:
    """Plan the conversion of a model, here or by llama.cpp's script; ImpruverError where neither can do it.

    `model_dir` has the tokenizer's files and all else that goes into the metadata.
    """
    architecture, reason = find_architecture(checkpoint.class_name, checkpoint.config), None
    if architecture:
        config = complete_config(architecture, get_text_config(checkpoint.config), checkpoint.config_path)
        architecture = architecture.choose_variant(config) or architecture
        reason = architecture.find_unsupported(config)
        if not reason:
            return _plan_own_conversion(architecture, config, extract_text_model(checkpoint), model_dir, outtype)
    script = llama_cpp_tools.find_script(paths)
    if script is None:
        model = f"{checkpoint.class_name} with {reason}" if reason else checkpoint.class_name
        raise ImpruverError(
            f"{model} is not converted here ({', '.join(ARCHITECTURES)} are); llama.cpp's own script may know it; "
            f"{llama_cpp_tools.HOW_TO_GET}"
        )
    return _plan_script_conversion(script, checkpoint, model_dir, outtype)


def plan_existing_file(path: Path) -> ConversionPlan:
    """Plan to take a GGUF file that is there already, for --only_quantize."""
    if not path.is_file():
        raise ImpruverError(f"{path} is not there: leave out --only_quantize, which quantizes a file that is there")
    states, header = read_file_states([path]), read_gguf_header(path)
    shapes = {tensor.name: tensor.shape[::-1] for tensor in header.tensors}
    encodings = {tensor.name: tensor.type.lower() for tensor in header.tensors if tensor.type.lower() in ENCODED_TYPES}
    description = f"{path.name}, which is there"
    return ConversionPlan(
        description,
        shapes,
        header.data_start,
        0,
        lambda target: None,
        exists=True,
        inputs=states,
        encodings=encodings,
    )


def _plan_own_conversion(
    architecture: Architecture, config: dict[str, Any], checkpoint: SourceCheckpoint, model_dir: Path, outtype: str
) -> ConversionPlan:
    config = architecture.adapt_config(config, checkpoint.tensors)
    inexact = architecture.find_inexact(config)
    if inexact:
        warn(f"{checkpoint.config_path}: {inexact}")
    tensors = _build_tensors(architecture, config, checkpoint)
    vocab = read_vocabulary(model_dir, config["vocab_size"], architecture.plain_added, architecture.build_vocab)
    types = choose_tensor_types(tensors, outtype)
    header = build_header(architecture, config, vocab, model_dir, tensors, types, TENSOR_TYPES[outtype].file)
    content = GgufContent(header, tensors, types)
    count = sum(prod(tensor.shape) for tensor in tensors.values())
    kind = "SentencePiece" if vocab.pre == "default" else f"pre-tokenizer {vocab.pre}"
    adapted = f", the adapter merged into {checkpoint.base}" if checkpoint.adapter else ""
    unseen = "" if checkpoint.tensors else "; by its configuration alone, since its weights are not on this disk"
    return ConversionPlan(
        f"{architecture.name}, {count:,} parameters, {config['vocab_size']:,} tokens, {kind}{adapted}{unseen}",
        {name: tensor.shape for name, tensor in tensors.items()},
        len(header),
        content.size,
        content.write,
        content.is_same,
        inputs=checkpoint.states,
        encodings={name: tensor.encoding for name, tensor in tensors.items() if tensor.encoding},
    )


def _build_tensors(
    architecture: Architecture, config: dict[str, Any], checkpoint: SourceCheckpoint
) -> dict[str, LazyTensor]:
    """The GGUF's tensors by name, the adapter merged; of shapes alone where there are no weights."""
    tensors, adapter = checkpoint.tensors, checkpoint.adapter
    if not tensors:
        if adapter:
            check_mergeable(adapter)
        return make_expected_tensors(architecture, config)
    tensors = architecture.drop_unused(tensors, config)
    if adapter:
        tied = architecture.tied if config["tie_word_embeddings"] else None
        tensors = merge_adapter(tensors, adapter, conv1d=architecture.conv1d, tied=tied)
    return convert_tensors(architecture, tensors, config, checkpoint.config_path)


def _plan_script_conversion(script: str, checkpoint: SourceCheckpoint, model_dir: Path, outtype: str) -> ConversionPlan:
    tensors = checkpoint.tensors
    if checkpoint.adapter:
        tensors = merge_adapter(tensors, checkpoint.adapter, tied=find_tied_modules(checkpoint))
    all_types = choose_tensor_types(tensors, outtype), llama_cpp_tools.choose_merged_types(tensors, outtype)
    file_bytes, scratch_bytes = (
        sum(types[name].compute_bytes(tensor.shape) for name, tensor in tensors.items()) for types in all_types
    )

    def write(target: Path) -> None:
        other_template = llama_cpp_tools.needs_template_set(model_dir)
        if not checkpoint.adapter and not other_template:
            return llama_cpp_tools.run_convert_script(script, model_dir, target, outtype)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH) as scratch:
            folder = Path(scratch) / model_dir.absolute().name  # llama.cpp takes the model's name from it
            if checkpoint.adapter:
                llama_cpp_tools.write_merged_checkpoint(tensors, model_dir, folder, outtype)
            else:
                llama_cpp_tools.link_checkpoint(model_dir, folder)
            if other_template:
                llama_cpp_tools.set_chat_template(folder)
            return llama_cpp_tools.run_convert_script(script, folder, target, outtype)

    return ConversionPlan(
        f"{checkpoint.class_name}, converted by {script}",
        {name: tensor.shape for name, tensor in tensors.items()},
        0,
        file_bytes,
        write,
        scratch_bytes=scratch_bytes if checkpoint.adapter else 0,
        by_script=True,
        inputs=checkpoint.states,
    )


class UnknownModelError(ImpruverError):
    """What keeps a dry run from knowing the model that will be trained."""


def plan_checkpoint(
    section: ModelSection, tokenizer: str | None, lora: dict[str, Any] | None, recipe_dir: Path | None
) -> tuple[SourceCheckpoint, Path]:
    """Derive the model that training will leave, and its tokenizer's folder; UnknownModelError where that can't be.

    It has no tensors where there are no weights yet. `tokenizer` is the recipe's tokenizer.name.
    """
    method = describe_unmergeable(lora or {})
    if method:
        raise ImpruverError(
            f"lora: {method} can't be merged exactly, and impruver-gguf will refuse such an adapter: leave it out, or "
            "merge it with peft after training"
        )
    if section.name:
        base = _find_folder(section.name, recipe_dir)
        if not (base / "config.json").is_file():
            raise UnknownModelError(f"{base} has no config.json")
        weights = has_model(base)
        checkpoint = read_checkpoint(base, None, recipe_dir) if weights else make_checkpoint(base, {}, None, base)
    elif section.config_class:
        # As train builds it, without a vocabulary of its own: the recipe's config, the class's defaults.
        class_name = section.class_.rpartition(".")[2]
        if class_name.startswith("Auto"):
            class_name = section.config_class.rpartition(".")[2].removesuffix("Config") + "ForCausalLM"
        config = {"vocab_size": 1, **section.config, "architectures": [class_name]}
        check_keys(config, CONFIG_KEYS, "model.config")
        checkpoint = SourceCheckpoint(Path("model.config"), config, {}, None, Path())
    else:
        raise UnknownModelError("neither model.name nor model.config_class is set")
    tokenizer_dir = _find_folder(tokenizer, recipe_dir) if tokenizer else checkpoint.base
    return _grow_embeddings(checkpoint, get_largest_token_id(tokenizer_dir)), tokenizer_dir


def _find_folder(name: str, recipe_dir: Path | None) -> Path:
    """A local folder, or the hub's with configuration and tokenizer, from its cache or the network."""
    try:
        return find_or_download(name, recipe_dir, ("config.json", *FILES))
    except FileNotFoundError:
        raise UnknownModelError(f"{name} is not there") from None
    except OSError as error:
        raise UnknownModelError(f"{name} is neither in the hub's cache nor to be had from the hub ({error})") from None


def _grow_embeddings(checkpoint: SourceCheckpoint, largest_id: int) -> SourceCheckpoint:
    """With a row for each id of the tokenizer, as training adds them."""
    architecture = find_architecture(checkpoint.class_name, checkpoint.config)
    nested = checkpoint.config.get("text_config")
    size = (nested or checkpoint.config).get("vocab_size")
    if architecture is None or not isinstance(size, int) or largest_id < size:
        return checkpoint
    grown = {"vocab_size": largest_id + 1}
    ends = tuple(f"{module.partition('.')[2] or module}.weight" for module in architecture.tied)
    tensors = {
        name: LazyTensor((largest_id + 1, *tensor.shape[1:]), tensor.read) if name.endswith(ends) else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    grown = {"text_config": nested | grown} if nested else grown
    return replace(checkpoint, config=checkpoint.config | grown, tensors=tensors)
