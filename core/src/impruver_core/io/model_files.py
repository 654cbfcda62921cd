"""Files of a model's folder, read without torch: safetensors headers, config.json, pickled weights (refused)."""

import json
import os
from collections.abc import Mapping
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.errors import ImpruverError

LFS_POINTER = "version https://git-lfs"  # what Git LFS leaves in place of a large file that it did not fetch
LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
MOST_DIMENSIONS = 64  # torch's own limit
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
PICKLED = ("*.bin", "*.pth", "*.pt", "*.pkl")
CONVERT_PICKLED = (
    "if you trust them, convert them to safetensors once (from_pretrained, then save_pretrained) and name the new "
    "folder"
)


class TensorEntry(NamedTuple):
    """A tensor in a safetensors file: dtype as the file names it (`BF16`), and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors_header(path: Path, advice: str = "copy or download it again") -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name, sorted; ImpruverError for a file that is broken or cut off.

    The format: 8 bytes with the header's length N, N bytes of JSON, then the tensors' data, which offsets count from.
    Each byte of the data belongs to one tensor: what is stored twice, or hidden behind, is no such file.
    """
    check_ordinary_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            check_no_lfs_pointer(path)
            raise ImpruverError(f"{path}: cut off, or no safetensors file ({size:,} bytes); {advice}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_build_unique_dict)
            names = [name for name in sorted(header) if name != "__metadata__"]
            entries = {name: _parse_entry(header[name], 8 + length) for name in names}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ImpruverError(f"{path}: no safetensors file (its header can't be read); {advice}") from None
    for name, entry in entries.items():
        if entry.stop > size:
            raise ImpruverError(f"{path}: cut off within {name}, at {size:,} bytes; {advice}")
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end or entry.stop < end:
            what = "overlaps the tensor before it" if entry.start < end else "has bytes before it that are no tensor's"
            raise ImpruverError(f"{path}: no safetensors file: {name} {what}; {advice}")
        end = entry.stop
    if end != size:
        raise ImpruverError(f"{path}: no safetensors file: {size - end:,} bytes follow the last tensor; {advice}")
    return entries


def _build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a key that stands there twice: readers differ in which of the two counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _parse_entry(entry: dict, data: int) -> TensorEntry:
    start, stop = map(index, entry["data_offsets"])
    shape = tuple(map(index, entry["shape"]))
    if not 0 <= start <= stop or min(shape, default=0) < 0 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(entry)
    return TensorEntry(str(entry["dtype"]), shape, data + start, data + stop)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor → file name of a model in several files.

    ImpruverError for an index that leads out of its folder, or to files of another kind.
    """
    check_ordinary_file(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(tensor): Path(file).name for tensor, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ImpruverError(f"{index}: has no weight_map that can be read") from None
    other = next((file for tensor, file in weight_map.items() if names[tensor] != file or file in ("", "..")), None)
    if other is not None:
        raise ImpruverError(f"{index}: names {other!r}, but weights are read from its own folder alone; copy it again")
    other = next((file for file in names.values() if not file.endswith(".safetensors")), None)
    if other is not None:
        raise ImpruverError(f"{index}: names {other!r}, and weights are read from *.safetensors alone; copy it again")
    return names


def check_shards(index: Path) -> None:
    """ImpruverError where two of the files that an index names hold the same tensor: readers differ in which counts.

    Files that are not there pass: whoever loads them has the words for that.
    """
    holders: dict[str, str] = {}
    for name in sorted(set(read_weight_map(index).values())):
        path = index.with_name(name)
        for tensor in read_safetensors_header(path) if path.is_file() else ():
            if holders.setdefault(tensor, name) != name:
                raise ImpruverError(f"{path}: holds {tensor}, as {holders[tensor]} does; copy both again")


def check_weight_links(folder: Path) -> None:
    """ImpruverError where something in a folder that the user did not name is a link that leads out of it.

    Whatever it is called: weights may be read from it all the same. The hub's cache is made of links: those to the
    blobs of their own repository may be there.
    """
    inside = folder.resolve()
    for path in sorted(path for path in folder.glob("*") if path.is_symlink()):
        target = Path(os.path.realpath(path))  # a link to itself is no error of Python's
        if inside not in (target, *target.parents) and not _is_hub_blob(path.parent, target):
            raise ImpruverError(
                f"{path}: is a link to {target}, out of the folder, which this recipe does not name; set model.name to "
                "it where you trust it, or copy the file there"
            )


def _is_hub_blob(folder: Path, target: Path) -> bool:
    """Whether `target` is a blob of the repository in the hub's cache that `folder` is a snapshot of."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = folder.absolute().parent.parent
    in_cache = repository.parent.resolve() == Path(HF_HUB_CACHE).resolve()
    return in_cache and (repository / "blobs").resolve() in target.parents


def refuse_pickled_weights(folder: Path, advice: str = CONVERT_PICKLED, key: str = "") -> None:
    """ImpruverError, beginning with the recipe's `key`, where `folder` holds weights as pickles: those run code.

    To be called where there are no safetensors. The pickle of training arguments is not one of weights.
    """
    for path in (path for pattern in PICKLED for path in sorted(folder.glob(pattern))):
        if path.name != "training_args.bin":
            raise ImpruverError(
                f"{key and key + ': '}{path}: pickled weights run code when they are loaded and are refused; {advice}"
            )


def get_context_length(config: Any) -> int | None:
    """The longest sequence that a model is made for; None where its configuration has no such key.

    `config`: the object of config.json, whose `text_config` counts where it has no length of its own, or the
    configuration that transformers makes of it.
    """
    if not isinstance(config, Mapping):
        return getattr(config.get_text_config(), CONTEXT_KEYS[0], None)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    values = [part.get(key) for part in parts for key in CONTEXT_KEYS]
    return next((value for value in values if type(value) is int and value > 0), None)


def check_ordinary_files(folder: Path) -> None:
    """ImpruverError where something in a model's folder, or among its templates, is a pipe, device or socket."""
    for pattern in ("*", "additional_chat_templates/*"):  # no other folder in it is read
        for path in folder.glob(pattern):
            check_ordinary_file(path)


def check_ordinary_file(path: Path) -> None:
    """ImpruverError for a pipe, a device or a socket, at which a reader would wait for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ImpruverError(f"{path}: a pipe or device, not a file; copy or download it again")


def check_no_lfs_pointer(path: str | Path) -> None:
    """ImpruverError where `path` is a pointer of Git LFS, which a reader would take for a broken file."""
    check_ordinary_file(Path(path))
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER.encode():
            raise ImpruverError(f"{path} is a pointer of Git LFS, not the file: fetch that with git lfs pull")
