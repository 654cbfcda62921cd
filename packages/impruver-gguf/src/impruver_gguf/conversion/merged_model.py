"""Write the merged model as transformers, vLLM and another training read it: safetensors shards in 16 bits, no torch.

Tensors have the names and types of the base's files, config.json and the tokenizer come along, nothing of the adapter.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_staged_path, make_folder, open_synced, remove_path, sync_file, sync_folder

from impruver_gguf.architectures.registry import complete_config, find_architecture
from impruver_gguf.conversion.gguf_writer import TENSOR_TYPES, encode_tensors
from impruver_gguf.merging.merge import TiedModules, merge_adapter
from impruver_gguf.weights.checkpoint import SourceCheckpoint
from impruver_gguf.weights.lazy_tensor import DTYPE_BYTES, LazyTensor
from impruver_gguf.weights.text_model import get_text_config, get_text_name

SHARD_BYTES = 5_000_000_000  # of tensors in a file, as save_pretrained's
INDEX = "model.safetensors.index.json"
TYPES = {"F32": TENSOR_TYPES["f32"], "F16": TENSOR_TYPES["f16"], "BF16": TENSOR_TYPES["bf16"]}
TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16"}
DTYPE_KEYS = ("dtype", "torch_dtype")  # of config.json, in transformers 5 and 4
EMBEDDINGS, OUTPUT = (".embed_tokens.weight", ".wte.weight", ".embed_in.weight"), "lm_head"
TOKENIZER_FILES = (
    *("tokenizer*", "*.model", "tekken.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
)
OTHER_FILES = ("generation_config.json", "*processor_config.json")
WRITTEN = (*TOKENIZER_FILES, *OTHER_FILES, "config.json", "model*.safetensors", INDEX, "*.py", "impruver.json")


@dataclass(frozen=True)
class MergedModel:
    """The merged model before it is written."""

    tensors: Mapping[str, LazyTensor]
    dtypes: Mapping[str, str]  # of each tensor, as safetensors names it
    config: Mapping[str, Any]  # config.json
    files: Mapping[str, Path] = field(default_factory=dict)  # what is copied: path within the folder → file

    @property
    def shards(self) -> dict[str, list[str]]:
        """The names of tensors in each file."""
        shards, room = [[]], SHARD_BYTES
        for name in self.tensors:
            size = self.get_bytes(name)
            if shards[-1] and size > room:
                shards.append([])
                room = SHARD_BYTES
            shards[-1].append(name)
            room -= size
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        names = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1))
        return dict(zip(names, shards, strict=True))

    def get_bytes(self, name: str) -> int:
        """The bytes of a tensor's values."""
        return prod(self.tensors[name].shape) * DTYPE_BYTES[self.dtypes[name]]

    @property
    def size(self) -> int:
        """The bytes of all values."""
        return sum(map(self.get_bytes, self.tensors))


def plan_merged_model(checkpoint: SourceCheckpoint, model_dir: Path) -> MergedModel:
    """Plan the merge of a checkpoint; `model_dir` has the tokenizer, or else its base has. Nothing is computed yet."""
    packed = next((name for name, tensor in checkpoint.tensors.items() if tensor.encoding), None)
    if packed:
        raise ImpruverError(
            f"--merged: {packed} holds packed values, of which no 16 bits are made here: load the model with "
            "transformers, which unpacks them, save it again, and name that with --set model.name=FOLDER"
        )
    tied = find_tied_modules(checkpoint)
    tensors: Mapping[str, LazyTensor] = checkpoint.tensors
    if checkpoint.adapter:
        architecture = find_architecture(checkpoint.class_name, checkpoint.config)
        conv1d = architecture.conv1d if architecture else None
        tensors = merge_adapter(tensors, checkpoint.adapter, conv1d=conv1d, tied=tied)
    dtypes = choose_dtypes(tensors, checkpoint)
    config = build_config(tensors, dtypes, checkpoint, tied)
    return MergedModel(tensors, dtypes, config, find_files(checkpoint, model_dir))


def find_tied_modules(checkpoint: SourceCheckpoint) -> TiedModules | None:
    """The modules of embeddings where a configuration ties them, or where the weights have no output of their own."""
    architecture = find_architecture(checkpoint.class_name, checkpoint.config)
    if architecture:
        config = complete_config(architecture, get_text_config(checkpoint.config), checkpoint.config_path)
        return architecture.tied if config["tie_word_embeddings"] else None
    tensors, text = checkpoint.tensors, checkpoint.config.get("text_config") or {}
    embedding = next((name.removesuffix(".weight") for name in tensors if name.endswith(EMBEDDINGS)), None)
    is_tied = text.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings"))
    if embedding is None or not (is_tied or f"{OUTPUT}.weight" not in tensors):
        return None
    return TiedModules(embedding, OUTPUT)


def choose_dtypes(tensors: Mapping[str, LazyTensor], checkpoint: SourceCheckpoint) -> dict[str, str]:
    """Choose the type of each tensor: the base's own; bfloat16 where all of that has 32 bits, or what config.json says.

    A tensor in 32 bits among others in 16 is so on purpose, and stays.
    """
    stored = {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}
    halves = [stored[name] for name, tensor in checkpoint.tensors.items() if len(tensor.shape) > 1]
    halves = [dtype for dtype in halves if dtype in TORCH_NAMES]
    named = [checkpoint.config.get(key) for key in DTYPE_KEYS]
    by_config = next((dtype for dtype, name in TORCH_NAMES.items() if name in named), "BF16")
    usual = max(sorted(set(halves)), key=halves.count) if halves else by_config
    known = stored if halves else {}
    return {name: known.get(name) or usual for name in tensors}


def build_config(
    tensors: Mapping[str, LazyTensor],
    dtypes: Mapping[str, str],
    checkpoint: SourceCheckpoint,
    tied: TiedModules | None,
) -> dict[str, Any]:
    """Build config.json: the type that most matrices have, no quantization, ends and sizes as the tensors have them."""
    matrices = [dtype for name, dtype in dtypes.items() if dtype in TORCH_NAMES and len(tensors[name].shape) > 1]
    changes: dict[str, Any] = {}
    if matrices:
        changes = dict.fromkeys(DTYPE_KEYS, TORCH_NAMES[max(sorted(set(matrices)), key=matrices.count)])
    rows = next((tensor.shape[0] for name, tensor in tensors.items() if f".{name}".endswith(EMBEDDINGS)), None)
    if rows is not None:
        changes["vocab_size"] = rows
    untied = tied is not None and _is_untied(tensors, checkpoint.tensors, tied)
    if untied:
        changes["tie_word_embeddings"] = False
    config = deepcopy(dict(checkpoint.config))
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)  # the adapter's base had 4 or 8 bits in training, the merge has 16
        part.update({name: value for name, value in changes.items() if name in part})
    needed = {"tie_word_embeddings": False} if untied else {}
    if matrices and not any(key in config for key in DTYPE_KEYS):
        needed[DTYPE_KEYS[0]] = changes[DTYPE_KEYS[0]]
    return config | needed


def _is_untied(tensors: Mapping[str, LazyTensor], base: Mapping[str, LazyTensor], tied: TiedModules) -> bool:
    """Whether one of tied ends was changed by itself; a file may hold both ends of a base alike, which stay tied."""
    names = [f"{module}.weight" for module in (tied.embedding, tied.embedding.partition(".")[2], tied.output)]
    merged, before = ({get_text_name(name): tensor for name, tensor in part.items()} for part in (tensors, base))
    changed = any(merged.get(name) is not before.get(name) for name in names)
    return names[-1] in merged and changed


def find_files(checkpoint: SourceCheckpoint, model_dir: Path) -> dict[str, Path]:
    """Find what goes into the folder beside weights and config.json: tokenizer, templates, sampling, code it names."""
    folders = [folder for folder in (model_dir, checkpoint.config_path.parent, checkpoint.base) if folder.is_dir()]
    found = dict(_match_files(next(filter(_has_tokenizer, folders), model_dir), TOKENIZER_FILES))
    for folder in folders:
        found = dict(_match_files(folder, OTHER_FILES)) | found
    if checkpoint.config.get("auto_map"):
        found |= _match_files(checkpoint.config_path.parent, ("*.py",))
    return found


def _has_tokenizer(folder: Path) -> bool:
    return any(_match_files(folder, ("tokenizer.json", "*.model", "vocab.json", "tokenizer_config.json")))


def _match_files(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def check_target(target: Path, checkpoint: SourceCheckpoint, output_dir: Path, overwrite: bool) -> None:
    """ImpruverError where the merged model can't be written to a folder, or something else would be lost with it."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ImpruverError(f"--merged: {target} is a {'link' if target.is_symlink() else 'file'}: name a folder")
    read_from = [path.resolve() for path in (output_dir, checkpoint.base) if path.is_dir()]
    place = target.resolve()
    if any(place in (folder, *folder.parents) for folder in read_from):
        raise ImpruverError(f"--merged: {target} holds the model that is merged: name another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ImpruverError(f"--merged: {target} is not empty: name another folder, or use --overwrite")
    known = {path.absolute() for pattern in WRITTEN for path in target.glob(pattern)}
    known |= {path.parent for path in known}
    other = next((path for path in sorted(target.rglob("*")) if path.absolute() not in known), None)
    if other:
        raise ImpruverError(
            f"--merged: {other} is no file of a merged model, and --overwrite replaces the whole folder: move it away"
        )


def write_merged_model(model: MergedModel, target: Path) -> Path:
    """Write a merged model beside its place, and return that folder; `put_in_place` renames it."""
    folder = get_staged_path(target)
    make_folder(target.parent)
    remove_path(folder)  # a killed run's
    folder.mkdir()
    try:
        for name, path in model.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
            sync_file(folder / name)
        shards = model.shards
        for file, names in shards.items():
            _write_shard(model, names, folder / file)
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in sorted(names)}
            _write_json(folder / INDEX, {"metadata": {"total_size": model.size}, "weight_map": weight_map})
        _write_json(folder / "config.json", model.config)
    except BaseException:
        remove_path(folder)
        raise
    return folder


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a folder that was written to its place; what stands there goes only when the new one is there."""
    sync_folder(folder)
    before = target.with_name(f".{target.name}.replaced")
    remove_path(before)
    if target.exists():
        target.rename(before)
    folder.rename(target)
    sync_folder(target.parent)
    remove_path(before)


def _write_shard(model: MergedModel, names: list[str], path: Path) -> None:
    """Write some tensors as a safetensors file, those of 32 bits first: each begins at a multiple of its size."""
    names = sorted(names, key=lambda name: (-DTYPE_BYTES[model.dtypes[name]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + model.get_bytes(name)
        shape = list(model.tensors[name].shape)
        header[name] = {"dtype": model.dtypes[name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    types = {name: TYPES[model.dtypes[name]] for name in names}
    with open_synced(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in encode_tensors({name: model.tensors[name] for name in names}, types):
            file.write(values.data)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with open_synced(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")
