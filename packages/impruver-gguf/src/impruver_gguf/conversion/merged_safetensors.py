"""The merge as a folder that llama.cpp's script takes: safetensors in 16 bits, with all else that the model's has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from impruver_core.io.atomic import open_synced

from impruver_gguf.conversion.gguf_writer import encoded
from impruver_gguf.conversion.tensor_types import ENCODINGS, Encoding
from impruver_gguf.weights.lazy_tensor import Tensor

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "impruver.json", "recipe.yaml")


SHARD_BYTES = 2 << 30


NAMES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}  # safetensors'


def kinds_of(tensors: Mapping[str, Tensor], outtype: str) -> dict[str, str]:
    """16 bits for matrices, 32 for vectors, as GGUF keeps them; 32 for all where the GGUF has them."""
    matrix = outtype if outtype in NAMES else "f16"
    return {name: matrix if len(tensor.shape) > 1 else "f32" for name, tensor in tensors.items()}


def bytes_of(tensors: Mapping[str, Tensor], outtype: str) -> int:
    """What the shards take."""
    kinds = kinds_of(tensors, outtype)
    return sum(ENCODINGS[kinds[name]].bytes_of(tensor.shape) for name, tensor in tensors.items())


def write_shards(tensors: Mapping[str, Tensor], source: Path, folder: Path, outtype: str) -> None:
    """`tensors` as safetensors, with all else that is in `source`; config.json tells no quantization any more."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    config = folder / "config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("quantization_config", None)  # the adapter's base had 4 or 8 bits in training, the merge has 16
        config.write_text(json.dumps(content), encoding="utf-8")
    kinds, mapped = kinds_of(tensors, outtype), {}
    for number, names in enumerate(_shards(tensors, kinds), 1):
        file = f"model-{number:05d}.safetensors"
        mapped.update(dict.fromkeys(names, file))
        _write(folder / file, {name: tensors[name] for name in names}, kinds)
    with open_synced(folder / "model.safetensors.index.json") as file:
        json.dump({"metadata": {}, "weight_map": mapped}, file)


def _shards(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> Iterator[list[str]]:
    names, size = [], 0
    for name, tensor in tensors.items():
        names.append(name)
        size += ENCODINGS[kinds[name]].bytes_of(tensor.shape)
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def _write(path: Path, tensors: dict[str, Tensor], kinds: Mapping[str, str]) -> None:
    types: dict[str, Encoding] = {name: ENCODINGS[kinds[name]] for name in tensors}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + types[name].bytes_of(tensor.shape)
        header[name] = {"dtype": NAMES[kinds[name]], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in encoded(tensors, types):
            file.write(data.data)
