"""Recipes by name or path, and the files and folders that a recipe names."""

from __future__ import annotations

import difflib
import glob
import os
from functools import cache
from pathlib import Path

from impruver_core.errors import ImpruverError

DATA_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".xz", ".bz2", ".zip"),
    *(".jinja", ".jinja2", ".j2", ".yaml", ".yml", ".gguf", ".safetensors"),
)


@cache
def recipes_root() -> Path:
    """The folder of the installed recipes."""
    from importlib.resources import files

    return Path(str(files("impruver_configs")))


def recipe_names() -> list[str]:
    """All installed recipes as `family/name`, without `.yaml`, sorted."""
    paths = sorted(recipes_root().glob("*/*.yaml"), key=lambda path: str(path).lower())
    return [f"{path.parent.name}/{path.stem}" for path in paths]


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: an existing file, else an installed recipe; ImpruverError with the nearest names."""
    path = Path(name).expanduser()
    if os.path.isfile(path):  # Path.is_file raises on a name too long
        return path
    wanted = str(name).removesuffix(".yaml")
    if wanted in recipe_names():
        return recipes_root() / f"{wanted}.yaml"
    if os.path.isdir(path):
        raise ImpruverError(f"{name} is a folder, not a recipe: name a YAML file in it")
    near = _near(wanted)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file" if str(name).startswith(("/", ".", "~")) else "neither a file nor an installed recipe"
    raise ImpruverError(f"recipe {name}: {what}; {hint}`impruver ls` lists the installed recipes")


def _near(wanted: str) -> list[str]:
    """Up to three names like the wanted one, or with its last part."""
    names = {name.lower(): name for name in recipe_names()}
    lower = wanted.lower()
    ends = {full.rpartition("/")[2]: full for full in names}
    close = difflib.get_close_matches(lower, names, 3, 0.6)
    close += [ends[end] for end in difflib.get_close_matches(lower.rpartition("/")[2], ends, 3, 0.75)]
    return [names[full] for full in dict.fromkeys(close)][:3]


def looks_local(value: str) -> bool:
    """True for what is never sent to a hub: `./x`, `/x`, `~/x`, a glob, or a name with a data suffix."""
    return (
        value in (".", "..")
        or value.startswith(("./", "../", "/", "~"))
        or value.lower().endswith(DATA_SUFFIXES)
        or glob.has_magic(value)
    )


def find_local(value: str, recipe_dir: Path | None) -> Path | None:
    """The absolute path of a file, folder or glob that a recipe names, or None.

    Looked for beside the recipe, in the working folder, then among the installed recipes.
    """
    if not value or "\n" in value or "\0" in value:
        return None
    path = Path(value).expanduser()
    folders = [Path(recipe_dir)] if recipe_dir is not None else []
    candidates = (Path(os.path.abspath(folder / path)) for folder in [*folders, Path.cwd(), recipes_root()])
    return next(filter(_exists, candidates), None)


def local_or_hub(name: str, recipe_dir: Path | None, key: str) -> str:
    """The folder that `name` is, else the name itself as a hub id; ImpruverError for a file, and for what is gone."""
    found = find_local(name, recipe_dir)
    if found is None:
        require_hub_id(name, key)
        return name
    require_folder(found, key)
    return str(found)


def require_folder(path: Path, key: str) -> None:
    """ImpruverError, beginning with `key`, where a file stands in place of a model's folder."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        raise ImpruverError(f"{key}: {path} is a GGUF file, which can't be trained: name the model it was made from")
    if path.is_file():
        raise ImpruverError(f"{key}: {path} is a file: name the folder that it stands in")


def require_hub_id(name: str, key: str) -> None:
    """ImpruverError, beginning with `key`, for a name of something local, which is not there."""
    if looks_local(name):
        raise ImpruverError(f"{key}: {name} is not there (looked beside the recipe and in {Path.cwd()})")


def _exists(path: Path) -> bool:
    try:
        return path.exists() or (
            glob.has_magic(str(path)) and next(glob.iglob(str(path), recursive=True), None) is not None
        )
    except OSError:  # a name too long: a template, not a path
        return False
