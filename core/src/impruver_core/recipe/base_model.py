"""The model that `model.name` stands for where it names an adapter whose training goes on."""

from pathlib import Path
from typing import Any

from impruver_core.io.json_schema import TEXT, read_json
from impruver_core.recipe.paths import find_local


def read_adapter_config(folder: Path | None) -> dict[str, Any] | None:
    """adapter_config.json of a folder that holds an adapter and no model; None for any other folder."""
    path = folder / "adapter_config.json" if folder is not None else None
    if path is None or not path.is_file() or any(folder.glob("model*.safetensors")):
        return None
    return read_json(path, {"base_model_name_or_path": TEXT, "peft_type": TEXT})


def find_base_name(name: str | None, recipe_dir: Path | None) -> str | None:
    """The base that an adapter named `name` was trained on; `name` itself where it is no folder of an adapter."""
    settings = read_adapter_config(find_local(name, recipe_dir)) if name else None
    return name if settings is None else settings.get("base_model_name_or_path")
