"""What answers, by its files alone: an adapter with its base or a whole model in output_dir, or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.dynamic_import import is_foreign_recipe
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import TEXT, WHOLE, either, list_of, read_json
from impruver_core.io.manifest import check_as_written, read_manifest
from impruver_core.io.model_files import (
    check_shards,
    check_weight_links,
    read_safetensors_header,
    read_weight_map,
    refuse_pickled_weights,
)
from impruver_core.llama_cpp import check_cyllama_installed
from impruver_core.recipe.base_model import find_base_name
from impruver_core.recipe.paths import find_local, is_local_path
from impruver_core.recipe.sections import ModelSection

VOCAB_SIZE = {"vocab_size": WHOLE}
CONFIG = {"model_type": TEXT, "architectures": list_of(TEXT), **VOCAB_SIZE, "text_config": VOCAB_SIZE}
TOKEN_IDS = either(WHOLE, list_of(WHOLE))
TOKENIZER, MANIFEST = "tokenizer.json", "impruver.json"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")
GGUF_MAGIC = b"GGUF"


class ModelNotFoundError(ImpruverError):
    """No model yet: training would have to make it first."""


@dataclass(frozen=True)
class ModelDirectory:
    """A model in `output_dir`; `base` is a folder or hub id for an adapter, None for a whole model."""

    output_dir: Path
    base: str | None
    vocab_size: int | None

    @property
    def files(self) -> list[Path]:
        """The folders that its answers depend on."""
        return [self.output_dir, Path(self.base)] if self.base else [self.output_dir]

    @property
    def no_comparison_reason(self) -> str | None:
        """Why there is nothing to compare its answers with; None for an adapter on its base."""
        if self.base is not None:
            return None
        return f"nothing to compare with: {self.output_dir} holds a whole model, not an adapter on its base"

    def describe(self, model: ModelSection) -> str:
        """Describe it for a person, with the precision that the recipe's section has it loaded in."""
        what = f"adapter in {self.output_dir} on its base {self.base}" if self.base else f"model in {self.output_dir}"
        bits = f"{model.bits} bit, " if model.bits else ""
        return f"the {what} ({bits}dtype {model.dtype})"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, and the folder of the model that it was made from, if known: it may hold the tokenizer."""

    path: Path
    output_dir: Path | None
    no_comparison_reason = (
        "nothing to compare with: in a GGUF file the adapter is part of the weights; without --gguf the adapter in "
        "output_dir is compared with its base"
    )

    @property
    def files(self) -> list[Path]:
        """The files that its answers depend on."""
        return [self.path] if self.output_dir is None else [self.output_dir, self.path]

    def describe(self, model: ModelSection) -> str:
        """Describe it for a person."""
        return f"{self.path} (llama.cpp)"


def list_model_files(source: ModelDirectory | GgufFile) -> list[Path]:
    """List the files on this disk that the answers of `source` depend on."""
    folders = [path for path in source.files if path.is_dir()]
    inside = [file for folder in folders for pattern in MODEL_FILES for file in sorted(folder.glob(pattern))]
    return [file for file in (*source.files, *inside) if file.is_file()]


def check_as_made(source: ModelDirectory | GgufFile) -> None:
    """Raise ImpruverError for weights that are not as the manifest of the tool that made them describes them."""
    own = [source.path] if isinstance(source, GgufFile) else list_model_files(source)
    for folder in {path.parent for path in own}:
        check_as_written([path for path in own if path.parent == folder], folder / MANIFEST)


def find_source(
    output_dir: Path | None, gguf: str | None, base: str | None, recipe_dir: Path, missing_ok: bool
) -> ModelDirectory | GgufFile | None:
    """Find the GGUF file or else the model in output_dir; with `missing_ok` none yet is a note and None.

    Args:
        base: the recipe's `model.name`, which goes before the base that an adapter names.
    """
    if gguf is not None:
        check_cyllama_installed("--gguf", "impruver-chat")
        return find_gguf(Path(gguf).expanduser(), output_dir)
    try:
        directory = find_model(output_dir, base, recipe_dir)
    except ModelNotFoundError as absent:
        if not missing_ok:
            raise
        log_info(f"note: {absent}")
        return None
    if (output_dir / "recipe.yaml").exists() and not (output_dir / "impruver.json").exists():
        warn(f"{output_dir} holds no impruver.json: its training has not finished")
    return directory


def find_model(output_dir: Path, base: str | None, recipe_dir: Path) -> ModelDirectory:
    """Find the model in `output_dir`; ModelNotFoundError where there is none, ImpruverError for broken files."""
    if output_dir.is_file():
        raise ImpruverError(f"output_dir: {output_dir} is a file; the folder of a model is wanted")
    if not output_dir.is_dir():
        raise ModelNotFoundError(f"output_dir: {output_dir} is not there; impruver-train makes it")
    if (output_dir / "adapter_config.json").is_file():
        check_weights(output_dir, "adapter_model")
        settings = read_json(output_dir / "adapter_config.json", {"base_model_name_or_path": TEXT})
        named = settings.get("base_model_name_or_path")
        by_user = base is not None and not is_foreign_recipe()
        base = find_base_model(find_base_name(base, recipe_dir) or named, output_dir, recipe_dir)
        if not by_user:
            check_weight_links(Path(base))
    elif adapter := next(output_dir.glob("adapter_model*"), None):
        raise ImpruverError(
            f"{adapter} is an adapter's weights without their adapter_config.json: copy that from where it was trained"
        )
    elif (output_dir / "config.json").is_file():
        check_weights(output_dir, "model")
        base = None
    else:
        raise ModelNotFoundError(
            f"output_dir: {output_dir} holds no model (neither config.json nor adapter_config.json); "
            "impruver-train makes one"
        )
    if not (output_dir / TOKENIZER).is_file():
        raise ImpruverError(f"output_dir: {output_dir} holds no {TOKENIZER}; copy the base's tokenizer files into it")
    config = read_config(output_dir)
    vocab_size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return ModelDirectory(output_dir, base, vocab_size)


def find_base_model(name: str | None, output_dir: Path, recipe_dir: Path) -> str:
    """Find an adapter's base: a local folder, which is checked, or a hub id."""
    if not name:
        raise ImpruverError(f"{output_dir} holds an adapter, and nothing names its base: set model.name")
    local = find_local(name, recipe_dir)
    if local is None:
        if is_local_path(name):
            raise ImpruverError(
                f"model.name: {name}, the base of the adapter in {output_dir}, is not there; where it is now is set by "
                "--set model.name=FOLDER"
            )
        return name
    if not (local / "config.json").is_file():
        raise ImpruverError(f"model.name: {local}, the base of the adapter in {output_dir}, holds no config.json")
    check_weights(local, "model")
    read_config(local)
    return str(local)


def check_weights(folder: Path, stem: str) -> None:
    """Raise ImpruverError unless `folder` holds complete safetensors of that name."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        paths = [folder / name for name in sorted(set(read_weight_map(index).values()))]
    else:
        paths = [folder / f"{stem}.safetensors"]
    for path in paths:
        if not path.is_file():
            refuse_pickled_weights(folder)
            raise ModelNotFoundError(f"{path} is not there: {folder} holds no weights")
        tensors, size = read_safetensors_header(path, "copy or train it again"), path.stat().st_size
        if tensors and size != (needed := max(entry.stop for entry in tensors.values())):
            raise ImpruverError(f"{path}: too long: {size:,} bytes of {needed:,}; copy or train it again")
    if index.is_file():
        check_shards(index)


def find_gguf(path: Path, output_dir: Path | None) -> GgufFile:
    """Find a GGUF file; ImpruverError where there is none at `path`."""
    if path.is_dir():
        names = ", ".join(sorted(file.name for file in path.glob("*.gguf"))) or "there is none"
        raise ImpruverError(f"--gguf: {path} is a folder: name a GGUF file in it ({names})")
    if not path.is_file():
        raise ImpruverError(f"--gguf: {path} is not there; impruver-gguf makes such files")
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise ImpruverError(
                f"--gguf: {path} is no GGUF file; impruver-gguf makes such files, without --gguf output_dir answers"
            )
    return GgufFile(path, output_dir)


def read_end_of_turn(output_dir: Path) -> list[str] | None:
    """Read the ends of turn that training wrote into its manifest; None without one."""
    path = output_dir / "impruver.json"
    if path.is_file() and not isinstance(read_json(path).get("impruver"), int):
        raise ImpruverError(f"{path}: not a manifest of Impruver; copy it from the trained model, or remove it")
    return (read_manifest(path) or {}).get("end_of_turn")


def read_eos_token_ids(output_dir: Path) -> list[int]:
    """Read the tokens that end an answer by generation_config.json."""
    path = output_dir / "generation_config.json"
    ids = read_json(path, {"eos_token_id": TOKEN_IDS}, missing_ok=True).get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json, {} where there is none; ImpruverError where it is no model's."""
    path = folder / "config.json"
    config = read_json(path, CONFIG, missing_ok=True)
    if path.is_file() and not (config.get("model_type") or config.get("architectures")):
        raise ImpruverError(f"{path}: no model's: it has no model_type; copy it from where the model was saved")
    return config
