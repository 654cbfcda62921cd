"""Lazy tensors from safetensors files."""

from __future__ import annotations

import json
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import check_no_lfs_pointer

from impruver_gguf.weights.lazy_tensor import Tensor

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


LARGEST_HEADER = 100_000_000  # safetensors' own limit


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, in the order of their names; ImpruverError for a broken or cut-off file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            check_no_lfs_pointer(path)
            raise ImpruverError(f"{path}: cut off, or no safetensors file; copy or download it again")
        try:
            header = json.loads(file.read(length))
            return {
                name: _tensor(path, name, header[name], 8 + length, size)
                for name in sorted(header)
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ImpruverError(f"{path}: no safetensors file (its header can't be read)") from None


def _tensor(path: Path, name: str, entry: dict, start: int, size: int) -> Tensor:
    kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if kind not in WIDTHS:
        raise ImpruverError(f"{path}: {name} holds {kind}, which is neither fp32, fp16 nor bf16: give the 16-bit model")
    if start + end > size:
        raise ImpruverError(f"{path}: cut off within {name}; copy or download it again")
    if begin < 0 or end - begin != prod(shape) * WIDTHS[kind]:
        raise ImpruverError(f"{path}: {name} does not hold what its shape {list(shape)} says")
    return Tensor(shape, partial(_values, path, kind, shape, start + begin))


def _values(path: Path, kind: str, shape: tuple[int, ...], offset: int, start: int, stop: int) -> np.ndarray:
    stored, width = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[kind], prod(shape[1:])
    offset += start * width * WIDTHS[kind]
    values = np.fromfile(path, dtype=stored, count=(stop - start) * width, offset=offset)
    values = values.reshape((stop - start, *shape[1:]) if shape else ())
    if kind != "BF16":
        return values
    wide = values.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, file by file; {} where it has none.

    ImpruverError where two files hold the same tensor, where the index names what is not there, and for pickles.
    """
    index = folder / "model.safetensors.index.json"
    mapped = _weight_map(index) if index.is_file() else {}
    there = {path.name for path in folder.glob("model*.safetensors") if path.is_file()}
    names = sorted(set(mapped.values()) or there)
    if not names:
        _refuse_pickles(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ImpruverError(f"{folder}: {', '.join(missing)} is not there, but {index.name} names it")
    if mapped and "model.safetensors" in there - set(names):
        raise ImpruverError(
            f"{folder}: model.safetensors and the files that {index.name} names are two models; move one away"
        )
    tensors: dict[str, Tensor] = {}
    for file in names:
        more = read_safetensors(folder / file)
        twice = sorted(tensors.keys() & more.keys())
        if twice:
            raise ImpruverError(f"{folder / file}: holds {twice[0]}, as another file does; move away what is too many")
        tensors |= more
    lost = sorted(mapped.keys() - tensors.keys())
    if lost:
        raise ImpruverError(f"{folder}: {lost[0]} is in none of the files, but {index.name} names it")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): Path(file).name for tensor, file in mapped.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ImpruverError(f"{index}: has no weight_map that can be read") from None


def _refuse_pickles(folder: Path) -> None:
    found = (path for pattern in ("*.bin", "*.pth", "*.pt", "*.pkl") for path in sorted(folder.glob(pattern)))
    pickle = next((path for path in found if path.name != "training_args.bin"), None)
    if pickle:
        raise ImpruverError(
            f"{pickle}: pickled weights are not read, they can run code; load the model with transformers where "
            "you trust it and save_pretrained it again, which writes safetensors"
        )
