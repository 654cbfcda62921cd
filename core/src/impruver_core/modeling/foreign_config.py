"""Checks config.json and adapter_config.json against the weights beside them, before anything is built by them.

A few numbers there decide how much is built: a stranger's may name more layers than any model has, or matrices that no
memory holds. Regular expressions there may take for ever on the names of modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import read_json
from impruver_core.io.model_files import TensorEntry, check_ordinary_files, read_safetensors_header
from impruver_core.time_limit import TimeLimitError, limit_cpu_time

if TYPE_CHECKING:
    from torch import nn

COUNT_KEY = re.compile(r"(^|_)(layers?|depths?|blocks|experts|labels)$")
# Not a layer's number, which may count from the end (vision_feature_layer).
SIZE_KEY = re.compile(r"(^|_)(size|dims?|n_layer|layers|heads?|window|ctx|embd|inner|blocks|experts)$")
LAYERS_KEY = re.compile(r"^(?!max).*(^|_)layers?$")
WEIGHTS_NAME = re.compile(r"[^/\\]+\.safetensors(\.index\.json)?")
MOST_PARTS = 10_000  # layers, experts, …
MOST_NAMES = 1000  # of modules in an adapter's configuration, where the model has fewer
NAMED_MODULES = (
    *("target_modules", "exclude_modules", "modules_to_save", "target_parameters"),
    *("rank_pattern", "alpha_pattern", "layers_pattern", "layers_to_transform"),
)
LONGEST_SHOWN = 80  # characters of a pattern in a message
MOST_REPLICATED = 1000  # layers that an adapter makes of its base's
MOST_ITERATIONS = 100  # of an initialization
ITERATIONS = re.compile(r"\d+$", re.ASCII)
SECONDS = 5  # of CPU time
SPARE_VALUES = 1 << 26  # that a model may have beyond its weights: of small ones, of buffers
SPARE_FACTOR = 2  # times its weights: tied ones, ones made anew
FEWEST_BITS = 2  # of a quantized value
COPY_BOTH = "they are not of one model; copy both again"


def check_config(folder: Path) -> None:
    """ImpruverError where config.json counts more layers than the weights beside it can have, or than any model has.

    Also where a file beside it is none that can be read. One that is broken passes: whoever loads it has the words for
    that.
    """
    check_ordinary_files(folder)
    content = _read_json(folder / "config.json")
    for key, name in _list_kernels(content):
        raise ImpruverError(
            f"{folder}/config.json: {key}: {name!r} is code of a repository, which would be downloaded; take it "
            "out (model.attn_implementation of a recipe may name a kernel)"
        )
    weights = content.get("transformers_weights")
    if weights is not None and not (isinstance(weights, str) and WEIGHTS_NAME.fullmatch(weights)):
        raise ImpruverError(
            f"{folder}/config.json: transformers_weights: {weights!r} is no safetensors file of its folder"
        )
    tensors = len(_read_tensors(folder.glob("*.safetensors"))) if content else 0
    check_counts(content, f"{folder}/config.json", "; copy it again")
    for key, value in _list_numbers(content):
        if value < 0 and SIZE_KEY.search(key):
            raise ImpruverError(f"{folder}/config.json: {key} is {value:,}, which no model has; copy it again")
        if LAYERS_KEY.search(key) and 0 < tensors < value:
            raise ImpruverError(
                f"{folder}/config.json: {key} is {value:,}, and the weights beside it are {tensors:,} tensors: "
                + COPY_BOTH
            )


def check_counts(content: Any, where: str, advice: str = "") -> None:
    """ImpruverError, which begins with `where`, for a configuration that counts more layers than any model has."""
    for key, value in _list_numbers(content):
        if COUNT_KEY.search(key) and value > MOST_PARTS:
            raise ImpruverError(f"{where}: {key} is {value:,}, more than any model has{advice}")


def check_size(model: nn.Module, folder: Path) -> None:
    """ImpruverError where `model`, built on torch's meta device by config.json, is far larger than the weights."""
    tensors = _read_tensors(folder.glob("*.safetensors"))
    if not tensors:
        return
    if _read_json(folder / "config.json").get("quantization_config"):
        stored = sum(entry.stop - entry.start for entry in tensors.values()) * 8 // FEWEST_BITS
    else:
        stored = sum(prod(entry.shape) for entry in tensors.values())
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if values > SPARE_FACTOR * stored + SPARE_VALUES:
        raise ImpruverError(
            f"{folder}/config.json: the model that it describes has {values:,} parameters, and the weights beside it "
            f"{stored:,}: {COPY_BOTH}"
        )


def check_adapter_config(folder: Path, modules: Iterable[str]) -> None:
    """ImpruverError for an adapter_config.json with what its weights can't have, or a pattern that takes for ever.

    `modules`: the names that peft matches its patterns with.
    """
    path = folder / "adapter_config.json"
    content = _read_json(path)
    tensors = _read_tensors([folder / "adapter_model.safetensors"])
    largest = max((size for entry in tensors.values() for size in entry.shape), default=0)
    ranks = content.get("rank_pattern")
    for key, value in (*_list_numbers(content, nested=False), *_list_numbers(ranks, nested=False)):
        if key != "lora_alpha" and value > max(MOST_PARTS, largest):
            raise ImpruverError(f"{path}: {key} is {value:,}, more than any of its weights has; copy it again")
    _check_replication(content.get("layer_replication"), path)
    start = ITERATIONS.search(str(content.get("init_lora_weights")))
    counts = [("init_lora_weights", int(start[0][:20]))] if start else []
    for key, value in (*counts, *((key, each) for key, each in _list_numbers(content) if "iter" in key)):
        if value > MOST_ITERATIONS:
            raise ImpruverError(f"{path}: {key} asks for {value:,} iterations, more than any needs; copy it again")
    names = list(modules)
    for key in NAMED_MODULES:
        value = content.get(key)
        if isinstance(value, (list, dict)) and len(value) > max(MOST_NAMES, len(names)):
            raise ImpruverError(f"{path}: {key} has {len(value):,} entries, more than there are modules; copy it again")
    check_patterns(content, names, str(path))


def _check_replication(replication: Any, path: Path) -> None:
    """ImpruverError where `layer_replication` is no list of (first, end) of layers, or makes too many of them."""
    if replication is None:
        return
    pairs = replication if isinstance(replication, list) else [replication]
    if not all(isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in pairs):
        raise ImpruverError(f"{path}: layer_replication is no list of pairs of layers, as in [[0, 4], [2, 5]]")
    if sum(end - first for first, end in pairs if end > first) > MOST_REPLICATED:
        raise ImpruverError(f"{path}: layer_replication names more layers than any model has; copy it again")


def check_patterns(content: Mapping[str, Any], names: list[str], where: str) -> None:
    """ImpruverError for a regular expression of LoRA's settings that is none, or all take for ever on these `names`."""
    tried = ""
    try:
        with limit_cpu_time(SECONDS, ""):
            for key, pattern in _list_patterns(content):
                shown = pattern if len(pattern) <= LONGEST_SHOWN else f"{pattern[:LONGEST_SHOWN]}…"
                tried = f"{where}: {key}: {shown!r}"
                compiled = re.compile(pattern)
                for name in names:
                    compiled.fullmatch(name)
    except TimeLimitError:
        message = f"{tried} takes more than {SECONDS} seconds to match; name the modules as a list"
        raise ImpruverError(message) from None
    except (re.error, OverflowError, RecursionError) as error:
        raise ImpruverError(f"{tried} is no regular expression: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(ImpruverError, OSError):
        return read_json(path)
    return {}


def _read_tensors(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """The tensors of safetensors files, less those that can't be read."""
    tensors = {}
    for path in files:
        with suppress(ImpruverError, OSError):
            tensors |= read_safetensors_header(path)
    return tensors


def _list_kernels(content: Any) -> Iterator[tuple[str, str]]:
    """(key, value) of kernels that a configuration, or a part of it, names as `owner/repository`."""
    left = [content]
    while left:
        value = left.pop()
        for key, item in value.items() if isinstance(value, Mapping) else ():
            names = item.values() if isinstance(item, Mapping) else [item]
            if key.endswith("_implementation"):
                yield from ((key, name) for name in names if isinstance(name, str) and "/" in name)
            left.append(item)
        left += value if isinstance(value, list) else ()


def _list_numbers(value: Any, nested: bool = True) -> Iterator[tuple[str, int]]:
    """(key, whole number) of a mapping, and of those in it if `nested`."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            yield from ((key, item) for key, item in value.items() if type(item) is int)
            left += value.values() if nested else ()
        elif isinstance(value, list) and nested:
            left += value


def _list_patterns(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, regular expression) of an adapter's configuration, as peft matches them."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(content.get(key), str):
            yield key, content[key]
    for key in ("rank_pattern", "alpha_pattern"):
        names = content.get(key)
        yield from ((key, rf"(.*\.)?({name})$") for name in (names if isinstance(names, Mapping) else ()))
    saved = content.get("modules_to_save")
    yield from (("modules_to_save", rf"(^|.*\.){name}($|\..*)") for name in _list_texts(saved))
    layers = content.get("layers_pattern")
    yield from (("layers_pattern", rf".*\.{name}\.(\d+)\.") for name in _list_texts(layers))


def _list_texts(value: Any) -> list[str]:
    """The texts that a value is, or holds."""
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]
