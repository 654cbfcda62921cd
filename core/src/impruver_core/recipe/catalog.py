"""Recipes by name or path, and the files and folders that a recipe names."""

from __future__ import annotations

import difflib
import os
from functools import cache
from pathlib import Path

from impruver_core.errors import ImpruverError


@cache
def find_recipes_root() -> Path:
    """The folder of the installed recipes."""
    from importlib.resources import files

    return Path(str(files("impruver_configs")))


def list_recipes() -> list[str]:
    """All installed recipes as `family/name`, without `.yaml`, sorted."""
    paths = sorted(find_recipes_root().glob("*/*.yaml"), key=lambda path: str(path).lower())
    return [f"{path.parent.name}/{path.stem}" for path in paths]


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: an existing file, else an installed recipe; ImpruverError with the nearest names."""
    path = Path(name).expanduser()
    if os.path.isfile(path):  # Path.is_file raises on a name too long
        return path
    wanted = str(name).removesuffix(".yaml")
    if wanted in list_recipes():
        return find_recipes_root() / f"{wanted}.yaml"
    if os.path.isdir(path):
        raise ImpruverError(f"{name} is a folder, not a recipe: name a YAML file in it")
    near = _near(wanted)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file" if str(name).startswith(("/", ".", "~")) else "neither a file nor an installed recipe"
    raise ImpruverError(f"recipe {name}: {what}; {hint}`impruver ls` lists the installed recipes")


def _near(wanted: str) -> list[str]:
    """Up to three names like the wanted one, or with its last part."""
    names = {name.lower(): name for name in list_recipes()}
    lower = wanted.lower()
    ends = {full.rpartition("/")[2]: full for full in names}
    close = difflib.get_close_matches(lower, names, 3, 0.6)
    close += [ends[end] for end in difflib.get_close_matches(lower.rpartition("/")[2], ends, 3, 0.75)]
    return [names[full] for full in dict.fromkeys(close)][:3]
