"""Write the merged model as a folder that llama.cpp's script takes: safetensors, with all else that the model's has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from impruver_core.io.atomic import open_synced

from impruver_gguf.conversion.gguf_writer import encode_tensors
from impruver_gguf.conversion.tensor_types import TENSOR_TYPES
from impruver_gguf.weights.lazy_tensor import LazyTensor

LEFT_OUT = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "impruver.json", "recipe.yaml")
SHARD_BYTES = 2 << 30
DTYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}  # safetensors' names


def choose_outtypes(tensors: Mapping[str, LazyTensor], outtype: str) -> dict[str, str]:
    """Choose 16 bits for matrices, 32 for vectors, as GGUF has them; 32 for all where the GGUF has them."""
    matrix = outtype if outtype in DTYPES else "f16"
    return {name: matrix if len(tensor.shape) > 1 else "f32" for name, tensor in tensors.items()}


def compute_merged_bytes(tensors: Mapping[str, LazyTensor], outtype: str) -> int:
    """The bytes of the tensors that `write_merged_checkpoint` writes."""
    outtypes = choose_outtypes(tensors, outtype)
    return sum(TENSOR_TYPES[outtypes[name]].compute_bytes(tensor.shape) for name, tensor in tensors.items())


def write_merged_checkpoint(tensors: Mapping[str, LazyTensor], source: Path, folder: Path, outtype: str) -> None:
    """Write `tensors` to the new `folder`, and what else is in `source`, whose config.json loses its quantization."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
    config = folder / "config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("quantization_config", None)  # the adapter's base had 4 or 8 bits in training, the merge has 16
        config.write_text(json.dumps(content), encoding="utf-8")
    outtypes, weight_map = choose_outtypes(tensors, outtype), {}
    for number, names in enumerate(_split_into_shards(tensors, outtypes), 1):
        file = f"model-{number:05d}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        _write_shard(folder / file, {name: tensors[name] for name in names}, outtypes)
    with open_synced(folder / "model.safetensors.index.json") as file:
        json.dump({"metadata": {}, "weight_map": weight_map}, file)


def _split_into_shards(tensors: Mapping[str, LazyTensor], outtypes: Mapping[str, str]) -> Iterator[list[str]]:
    names, size = [], 0
    for name, tensor in tensors.items():
        names.append(name)
        size += TENSOR_TYPES[outtypes[name]].compute_bytes(tensor.shape)
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def _write_shard(path: Path, tensors: Mapping[str, LazyTensor], outtypes: Mapping[str, str]) -> None:
    types = {name: TENSOR_TYPES[outtypes[name]] for name in tensors}
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + types[name].compute_bytes(tensor.shape)
        header[name] = {"dtype": DTYPES[outtypes[name]], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in encode_tensors(tensors, types):
            file.write(data.data)
