"""Loads a recipe: its file, the overrides, one check, and a Recipe whose values are typed.

defaults < recipe file < `--set a.b=value` < named flags
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impruver_core.errors import RecipeError
from impruver_core.io.atomic import atomic_write
from impruver_core.recipe.paths import find_local, find_recipe
from impruver_core.recipe.registry import load_installed_sections, suggest_key
from impruver_core.recipe.schema import RecipeFlag, get_fields
from impruver_core.recipe.sections import OWNERS, SECTIONS, ModelSection, TokenizerSection
from impruver_core.recipe.validation import (
    REMOVED,
    describe_value,
    list_credentials,
    names_credential,
    remove_unset,
    validate_value,
)
from impruver_core.recipe.yaml_document import DEEPEST, Document, dump, parse_text, read_document
from impruver_core.suggestions import suggest

SEEDS = range(2**32)  # numpy takes no others
NO_CREDENTIALS = "a recipe is copied into output_dir; keep the token in the environment variable HF_TOKEN"
OTHER_CREDENTIALS = "a recipe is copied into output_dir; keep it in the environment variable of the service"
ALSO = {"seed": ("trainer.seed",)}  # a named flag for the first sets the others, too


@dataclass(frozen=True)
class Recipe:
    """A recipe with its overrides. A section whose owner is not installed is as in the file, or None.

    `path` is the file it came from (None: the defaults alone), `base_dir` its folder, else the working one; neither
    counts when recipes are compared.
    `tokenizer.name`, `tokenizer.chat_template` and `model.name` are absolute where they name something local.
    """

    output_dir: str | None
    train_path: str | None
    val_path: str | list[str] | dict[str, str] | None
    seed: int
    tokenizer: TokenizerSection
    model: ModelSection
    datasets: Any
    dedup: Any
    split: Any
    decontaminate: Any
    compose: Any
    lora: dict | None
    trainer: Any
    ddp: Any
    gguf: Any
    chat: Any
    path: Path | None = field(compare=False)
    document: Document = field(compare=False, repr=False)

    @property
    def base_dir(self) -> Path:
        """The folder of the recipe's file: what it names is looked for there first."""
        return Path.cwd() if self.path is None else Path(self.path).absolute().parent

    @property
    def val_paths(self) -> dict[str, str]:
        """The files of validation rows by name; one alone is named val, those of a list as their files."""
        if isinstance(self.val_path, str):
            return {"val": self.val_path} if self.val_path else {}
        return name_val_paths(self.val_path or {})

    def locate(self, key_path: str) -> str:
        """`file:line: trainer.optim`, to begin a message about that key; an override is named as such."""
        return f"{self.document.locate(_split_path(key_path))}: {key_path}"


def load_recipe(
    path_or_name: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    named: Sequence[RecipeFlag] = (),
    sections: Mapping[str, Any] | None = None,
) -> Recipe:
    """Loads and checks the recipe of a file or an installed name (None: the defaults), with what is set beside it.

    It needs neither network nor tokenizer nor weights.
    `overrides` are the texts `a.b=value` of --set; `named`, the named flags that were given, win over them; `sections`
    stand in for those of the installed tools. Raises RecipeError with all faults, ImpruverError for no such recipe.
    """
    path = None if path_or_name is None else find_recipe(path_or_name)
    document = Document("without a recipe") if path is None else read_document(path)
    if document.faults and document.data is None:
        raise RecipeError(document.faults)
    if document.data is not None and not isinstance(document.data, dict):
        raise RecipeError([f"{path}: a recipe is a mapping of keys, as in `output_dir: ./out`"])
    document.data = document.data or {}
    _apply_overrides(document, overrides)
    _apply_flags(document, named)
    values = _validate(document, load_installed_sections() if sections is None else {**SECTIONS, **sections})
    if document.faults:
        raise RecipeError(document.faults)
    recipe = Recipe(**values, path=path, document=document)
    inputs = {name: _make_absolute(getattr(recipe, name), recipe.base_dir) for name in ("tokenizer", "model")}
    return dataclasses.replace(recipe, **inputs)


def resolve_recipe(recipe: Recipe, absolute: bool = False) -> dict[str, Any]:
    """The recipe as a plain mapping, defaults included; `absolute`: every local input by its absolute path."""
    mapping = {}
    for name in OWNERS:
        value = getattr(recipe, name)
        value = _to_plain(_make_absolute(value, recipe.base_dir) if absolute else value)
        if value is not None and (value or name == "lora" or not isinstance(value, (dict, list))):
            mapping[name] = value
    return mapping


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Writes the resolved recipe, local inputs absolute; the file is whole or not there at all."""
    with atomic_write(Path(path)) as file:
        file.write(dump(resolve_recipe(recipe, absolute=True)))


def name_val_paths(paths: list[str] | dict[str, str]) -> dict[str, str]:
    """`val_path` by names that metrics can carry: a mapping as it is, a list's files without folder and suffix."""
    if isinstance(paths, dict):
        return paths
    return {re.sub(r"[^\w.-]", "_", Path(path).name.split(".")[0]): path for path in paths}


def _check_val_paths(document: Document, paths: Any) -> None:
    """Reports names of validation files that are no names of metrics, or that two files have."""
    if not isinstance(paths, (list, dict)):
        return
    named = name_val_paths(paths)
    if len(named) < len(paths):
        document.add_fault(("val_path",), "two files have the same name: write a mapping, as in `{mine: a.jsonl}`")
    for name, path in named.items():
        if not re.fullmatch(r"[\w.-]+", str(name)) or not path:
            document.add_fault(("val_path",), f"{name!r}: {path!r} is no name of letters, digits, _ - . with a file")


def _apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Sets each `a.b=value` in the document: the value is YAML, list items go by number, null removes."""
    for override in overrides:
        name, equals, text = override.partition("=")
        source = f"--set {name}=…" if names_credential(override) else f"--set {override}"
        path = _split_path(name)
        if not equals or not all(part != "" for part in path) or len(path) > DEEPEST:
            document.faults.append(f"{source}: expected KEY=VALUE, as in --set trainer.learning_rate=2e-4")
            continue
        parsed = Document(source)
        parse_text(text, parsed, place=lambda line, source=source: source, path=path)
        if parsed.faults:
            document.faults += parsed.faults
        else:
            document.locations.update(parsed.locations)
            _set_value(document, path, REMOVED if parsed.data is None else parsed.data, source)


def _apply_flags(document: Document, flags: Sequence[RecipeFlag]) -> None:
    """Sets the values of named flags in the document."""
    for key_path, value, flag in flags:
        for target in (key_path, *ALSO.get(key_path, ())):
            _set_value(document, _split_path(target), value, flag)


def _set_value(document: Document, path: tuple, value: Any, source: str) -> None:
    """Sets `value` at a key path; mappings that are missing are made, list items must exist or be the next."""
    if not isinstance(document.data, dict):
        document.data = {}
    target = document.data
    for depth, part in enumerate(path):
        document.locations.setdefault(path[: depth + 1], source)
        problem = _find_problem(target, part)
        if problem:
            document.faults.append(f"{source}: {'.'.join(map(str, path[:depth]))}: {problem}")
            return
        if isinstance(target, list) and part == len(target):
            target.append(None)
        if depth + 1 == len(path):
            target[part] = value
            document.locations[path] = source
            return
        inner = target[part] if isinstance(target, list) else target.get(part)
        if inner is None or inner is REMOVED:
            inner = target[part] = [] if isinstance(path[depth + 1], int) else {}
        target = inner


def _split_path(name: str) -> tuple:
    """`datasets.0.name` as its parts, numbers as such."""
    parts = name.strip().split(".")
    return tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in parts)


def _find_problem(target: Any, part: Any) -> str | None:
    """Why `part` of a key path can't be set in what stands above it; None where it can."""
    if isinstance(target, dict):
        return None
    if not isinstance(target, list):
        return f"holds no keys, it is {describe_value(target)}"
    if not isinstance(part, int):
        return f"is a list; its items go by number, as in datasets.0.{part}"
    return f"has {len(target)} items, numbered from 0" if part > len(target) else None


def _validate(document: Document, sections: Mapping[str, Any]) -> dict[str, Any]:
    for name in document.data:
        if name not in OWNERS:
            key = suggest_key(name, sections)
            hint = f"; did you mean {key}?" if key else suggest(name, OWNERS)
            document.add_fault((name,), f"no such key{hint}")
    for path in list_credentials(document.data):
        document.add_fault(path, NO_CREDENTIALS if "token" in path[-1] else OTHER_CREDENTIALS)
    values = {}
    for name in OWNERS:
        value = document.data.get(name)
        if name in sections:
            values[name] = validate_value(sections[name], value, (name,), document.add_fault)
        else:
            values[name] = remove_unset(value)
    if values["seed"] is not None and values["seed"] not in SEEDS:
        document.add_fault(("seed",), f"expected 0 to {SEEDS[-1]}, found {values['seed']}")
    _check_val_paths(document, values["val_path"])
    if isinstance(values["trainer"], dict):
        values["trainer"].setdefault("seed", values["seed"])
    return values


def _make_absolute(value: Any, base_dir: Path) -> Any:
    """The section with the absolute path in each key that names something local."""
    if isinstance(value, list):
        return [_make_absolute(item, base_dir) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    absolute = {}
    for each in dataclasses.fields(value):
        name = getattr(value, each.name)
        if each.metadata.get("local") and isinstance(name, str) and "{" not in name:  # no inline template
            local = find_local(name, base_dir)
            absolute |= {} if local is None else {each.name: str(local)}
    return dataclasses.replace(value, **absolute) if absolute else value


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    items = {name: getattr(value, each.name) for name, each in get_fields(type(value)).items()}
    return {name: _to_plain(item) for name, item in items.items() if item is not None and item != {}}
