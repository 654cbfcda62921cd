"""What output_dir holds and what it was made from: configuration, weights, and for an adapter those of its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.lookup import find_local, looks_local

from impruver_gguf.adapter import ADAPTER_CONFIG, Adapter, read_adapter
from impruver_gguf.jsonfile import TEXT, list_of, read_json
from impruver_gguf.tensors import Tensor, read_weights

WANTED = ("config.json", "model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Model:
    """A model's configuration and weights, with the adapter that goes onto it if there is one."""

    config_path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    adapter: Adapter | None
    base: Path  # the folder of the weights

    @property
    def kind(self) -> str:
        """The class that transformers loads it with: `LlamaForCausalLM`."""
        return self.config["architectures"][0]


def has_model(output_dir: Path) -> bool:
    """Whether training left an adapter or a model in `output_dir`."""
    return any(output_dir.glob("adapter_*")) or any(_weights_of(output_dir))


def read_model(output_dir: Path, base_name: str | None, recipe_dir: Path | None) -> Model:
    """The model in `output_dir`: whole, or an adapter with its base; `base_name` is the recipe's model.name."""
    if not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is not there; impruver-train makes it")
    if not (output_dir / ADAPTER_CONFIG).is_file():
        tensors = read_weights(output_dir)
        if not tensors:
            raise ImpruverError(f"output_dir: {output_dir} holds neither a model nor an adapter; train one first")
        return _model(output_dir, tensors, None, output_dir)
    adapter = read_adapter(output_dir)
    base = find_base(base_name or adapter.config.get("base_model_name_or_path"), adapter, recipe_dir)
    tensors = read_weights(base)
    if not tensors:
        raise ImpruverError(f"{base}: the adapter's base has no safetensors files")
    if (base / ADAPTER_CONFIG).is_file():
        raise ImpruverError(f"{base}: the adapter's base is an adapter itself: export that one's merge first")
    return _model(output_dir if (output_dir / "config.json").is_file() else base, tensors, adapter, base)


def _model(folder: Path, tensors: dict[str, Tensor], adapter: Adapter | None, base: Path) -> Model:
    path = folder / "config.json"
    config = read_json(path, {"architectures": list_of(TEXT), "_name_or_path": TEXT})
    if not config.get("architectures"):
        raise ImpruverError(f"{path}: architectures is not set: name the class there, such as LlamaForCausalLM")
    return Model(path, config, tensors, adapter, base)


def find_base(name: str | None, adapter: Adapter, recipe_dir: Path | None) -> Path:
    """The folder of the adapter's base: a local one, else the hub's files in its cache, downloaded if need be."""
    if not name:
        raise ImpruverError(f"{adapter.folder}: nothing names the adapter's base; set model.name")
    local = find_local(name, recipe_dir)
    if local is not None:
        return local
    if looks_local(name) or name.count("/") > 1:
        raise ImpruverError(
            f"the adapter's base {name} is not there; say where it is with --set model.name=FOLDER (or a hub id)"
        )
    return _downloaded(name, adapter.config.get("revision"))


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WANTED)))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:  # its HTTP errors are OSErrors
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImpruverError(
            f"the adapter's base {name} is neither a folder nor to be had from the hub ({first}); say where it is with "
            "--set model.name=FOLDER"
        ) from None


def _weights_of(folder: Path) -> list[Path]:
    found = [path for pattern in ("model*.safetensors", "*.bin") for path in folder.glob(pattern)]
    return [path for path in found if path.name != "training_args.bin"]
