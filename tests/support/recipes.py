"""Recipes that tests write. JSON is YAML."""

import json
from pathlib import Path


def write_recipe(path: Path, keys: dict) -> Path:
    """Writes a recipe of these keys but for those that are None; the path."""
    path.write_text(
        json.dumps({key: value for key, value in keys.items() if value is not None}, ensure_ascii=False),
        encoding="utf-8",
    )
    return path


def merge_keys(base: dict, changes: dict) -> dict:
    """`base` with changes: sections are merged one level deep, None removes a section or a key of it."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and key in base:
            value = {name: item for name, item in (base[key] | value).items() if item is not None}
        merged[key] = value
    return {key: value for key, value in merged.items() if value is not None}


def write_adapter_recipe(folder: Path, base: Path) -> Path:
    """The recipe of an adapter on `base`, without quantization levels."""
    return write_recipe(folder / "recipe.yaml", {"model": {"name": str(base)}, "gguf": {"quantization_levels": []}})
