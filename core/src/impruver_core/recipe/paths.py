"""Finds recipes by name or path, and the local paths and hub ids that a recipe names."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.suggestions import find_similar

MOST_ENTRIES = 200_000  # files that a glob looks at
DATA_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".xz", ".bz2", ".zip"),
    *(".jinja", ".jinja2", ".j2", ".yaml", ".yml", ".gguf", ".safetensors"),
)


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
    names = list_recipes()
    if wanted in names:
        return find_recipes_root() / f"{wanted}.yaml"
    if os.path.isdir(path):
        raise ImpruverError(f"{name} is a folder, not a recipe: name a YAML file in it")
    ends, last = {each.rpartition("/")[2]: each for each in names}, wanted.rpartition("/")[2]
    close = find_similar(wanted, names, 3) + [ends[end] for end in find_similar(last, ends, 3, 0.75)]
    near = list(dict.fromkeys(close))[:3]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file" if str(name).startswith(("/", ".", "~")) else "neither a file nor an installed recipe"
    raise ImpruverError(f"recipe {name}: {what}; {hint}`impruver ls` lists the installed recipes")


def is_local_path(value: str) -> bool:
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
    candidates = (Path(os.path.abspath(folder / path)) for folder in [*folders, Path.cwd(), find_recipes_root()])
    return next(filter(_is_there, candidates), None)


def resolve_model_path(name: str, recipe_dir: Path | None, key: str) -> str:
    """The folder that `name` is, else the name itself as a hub id; ImpruverError for a file, and for what is gone."""
    folder = find_local(name, recipe_dir)
    if folder is None:
        check_hub_id(name, key)
        return name
    check_model_folder(folder, key)
    return str(folder)


def find_or_download(name: str, recipe_dir: Path | None, files: Sequence[str], revision: str | None = None) -> Path:
    """The local folder `name`, else the cached one of a hub repository with those `files` (patterns) downloaded.

    FileNotFoundError for a local one that is not there, another OSError with why the hub's can't be had.
    """
    local = find_local(name, recipe_dir)
    if local is not None:
        return local
    if is_local_path(name) or name.count("/") > 1:
        raise FileNotFoundError(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:  # its HTTP errors are OSErrors
        raise OSError((str(error).strip() or type(error).__name__).splitlines()[0]) from None


def check_model_folder(path: Path, key: str) -> None:
    """ImpruverError, beginning with `key`, where a path is a file in place of a model's folder."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        raise ImpruverError(f"{key}: {path} is a GGUF file, which can't be trained: name the model it was made from")
    if path.is_file():
        raise ImpruverError(f"{key}: {path} is a file: name the folder that it stands in")


def check_hub_id(name: str, key: str) -> None:
    """ImpruverError, beginning with `key`, for a name of something local, which is not there."""
    if is_local_path(name):
        raise ImpruverError(f"{key}: {name} is not there (looked beside the recipe and in {Path.cwd()})")


def list_matches(pattern: Path, hidden: bool = False, links: bool = True) -> Iterator[Path]:
    """What a glob matches; `**` stands for any folders, of which each is visited once, whatever links lead to it.

    ImpruverError where there are more than MOST_ENTRIES files to look at. `hidden`: names that begin with a dot, too.
    `links`: folders that are links, too.
    """
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(str(pattern)))
        return
    at = parts.index("**")
    for root in glob.glob(str(Path(*parts[:at]))) if at else ["."]:
        yield from _walk(Path(root), parts[at:], hidden or parts[-1].startswith("."), links)


def _walk(root: Path, names: Sequence[str], hidden: bool, links: bool) -> Iterator[Path]:
    seen, count = set(), 0
    for folder, folders, files in os.walk(root, followlinks=links):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if hidden or not name.startswith("."))
        files = [] if real in seen else [name for name in files if hidden or not name.startswith(".")]
        seen.add(real)
        count += 1 + len(files)
        if count > MOST_ENTRIES:
            raise ImpruverError(
                f"{root}: holds more than {MOST_ENTRIES:,} files to look at: name a folder further down"
            )
        parts = Path(folder).relative_to(root).parts
        yield from (root.joinpath(*parts, name) for name in files if match_parts((*parts, name), names))


def match_parts(parts: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the parts of a path match the patterns of a glob, of which `**` stands for any number of folders."""
    if not names:
        return not parts
    if names[0] == "**":
        return match_parts(parts, names[1:]) or (len(parts) > 0 and match_parts(parts[1:], names))
    return len(parts) > 0 and fnmatch.fnmatchcase(parts[0], names[0]) and match_parts(parts[1:], names[1:])


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or (glob.has_magic(str(path)) and any(True for _ in list_matches(path)))
    except OSError:  # a name too long: a template, not a path
        return False
