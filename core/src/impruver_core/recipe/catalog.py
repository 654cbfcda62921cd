"""The installed recipes by name."""

import os
from functools import cache
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.suggestions import find_similar


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
    near = _find_similar_recipes(wanted)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file" if str(name).startswith(("/", ".", "~")) else "neither a file nor an installed recipe"
    raise ImpruverError(f"recipe {name}: {what}; {hint}`impruver ls` lists the installed recipes")


def _find_similar_recipes(wanted: str) -> list[str]:
    """Up to three names like the wanted one, or with its last part."""
    names = list_recipes()
    ends = {name.rpartition("/")[2]: name for name in names}
    close = find_similar(wanted, names, 3) + [
        ends[end] for end in find_similar(wanted.rpartition("/")[2], ends, 3, 0.75)
    ]
    return list(dict.fromkeys(close))[:3]
