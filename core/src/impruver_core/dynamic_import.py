"""Imports the classes and functions that a recipe names by dotted path; decides which recipes may run code.

A recipe that the user names may run code, as a script would. A recipe.yaml that lies in a model's folder may come from
a stranger: it gets transformers' own classes, and no code of a model's repository, unless the user allows it by a flag.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

TRUSTED = "transformers"  # the package whose classes any recipe may name
_ours: set[str] = set()  # top-level names that came from beside a recipe
_state: dict[str, Path | None] = {"foreign": None}


def set_foreign_recipe(path: Path | None) -> None:
    """From now on the recipe at `path`, which the user did not name, names what is loaded; None: one that they did."""
    _state["foreign"] = path


def get_foreign_recipe() -> Path | None:
    """The recipe that the user did not name, for a process that loads what it names; None: one that they did."""
    return _state["foreign"]


def is_foreign_recipe() -> bool:
    """Whether the user did not name the recipe."""
    return _state["foreign"] is not None


def allow_remote_code(wanted: bool, key: str) -> bool:
    """`wanted`, a recipe's `trust_remote_code`; ImpruverError, with the key, where its recipe may not decide that."""
    if wanted and _state["foreign"]:
        raise ImpruverError(_describe_foreign(f"{key}: true"))
    return bool(wanted)


def check_class_allowed(path: str, what: str) -> None:
    """ImpruverError where the recipe may not name this class; nothing is imported."""
    if _state["foreign"] and path.partition(".")[0] != TRUSTED:
        raise ImpruverError(_describe_foreign(f"{what}: {path}"))


def check_kernel_allowed(name: str | None, key: str) -> None:
    """ImpruverError where the recipe may not name this attention kernel: one of a repository is code from there."""
    if name and "/" in name and _state["foreign"]:
        raise ImpruverError(_describe_foreign(f"{key}: {name}"))


def list_modules_beside_recipe() -> list[ModuleType]:
    """The modules that were imported from beside a recipe, those that these import from there too."""
    return [module for name, module in sys.modules.items() if name.partition(".")[0] in _ours]


def load_object(path: str, what: str, search_dir: Path | None = None) -> Any:
    """The object behind `package.module.Name`: beside the recipe (in `search_dir`), then in installed packages.

    Classes of transformers, which recipes name without having to, are never looked for beside the recipe.
    `what` is the key that named it, for the message. ImpruverError where it isn't there or can't be imported, for one
    of Python's own library, and for one that the recipe may not name.
    """
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ImpruverError(f"{what}: {path!r} is no dotted path, such as transformers.AutoModelForCausalLM")
    check_class_allowed(path, what)
    if _state["foreign"]:
        found = _load_installed(parts, path, what)
        if not isinstance(found, type) or found.__module__.partition(".")[0] != TRUSTED:
            raise ImpruverError(_describe_foreign(f"{what}: {path}"))
        return found
    for length in range(len(parts) - 1, 0, -1) if search_dir and parts[0] != TRUSTED else ():
        stem = Path(search_dir).joinpath(*parts[:length])
        if stem.with_name(stem.name + ".py").is_file() or (stem / "__init__.py").is_file():
            with _importing_from(Path(search_dir), parts[0], what):
                return _get_member(_import_module(parts[:length], path, what), parts[length:], path, what)
    if parts[0] in sys.stdlib_module_names:
        raise ImpruverError(_describe_standard(path, what))
    return _load_installed(parts, path, what)


def _load_installed(parts: list[str], path: str, what: str) -> Any:
    for length in range(len(parts) - 1, 0, -1):
        module = _import_module(parts[:length], path, what, missing_is_none=length > 1)
        if module is not None:
            return _get_member(module, parts[length:], path, what)
    raise AssertionError("the last turn returns or raises")


def _describe_foreign(setting: str) -> str:
    return (
        f"{_state['foreign']}: {setting} would run code that came with this folder; read it, then allow it with "
        "--trust_remote_code, or name a recipe of yours with --config"
    )


def _describe_standard(path: str, what: str) -> str:
    return f"{what}: {path} is of Python's own library, and was not written for this; name a function or class of yours"


def _import_module(parts: list[str], path: str, what: str, missing_is_none: bool = False) -> ModuleType | None:
    name = ".".join(parts)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ImpruverError(f"{what}: {path} needs the module {error.name}, which is not installed") from error
        if missing_is_none:
            return None
        raise ImpruverError(f"{what}: {path}: there is no module {parts[0]} beside the recipe or installed") from error
    except Exception as error:
        where = f" ({error.filename}:{error.lineno})" if isinstance(error, SyntaxError) else ""
        raise ImpruverError(f"{what}: {name} can't be imported: {type(error).__name__}: {error}{where}") from error


def _get_member(module: ModuleType, names: list[str], path: str, what: str) -> Any:
    value: Any = module
    for name in names:
        try:
            value = getattr(value, name)
        except AttributeError:
            owner = getattr(value, "__name__", "it")
            hint = suggest(name, dir(value), form=f"; did you mean {owner}.{{}}?", list_valid=False)
            raise ImpruverError(f"{what}: {path}: {owner} has no {name}{hint}") from None
        except Exception as error:  # a lazy package imports at this moment
            raise ImpruverError(f"{what}: {path} can't be imported: {type(error).__name__}: {error}") from error
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] in sys.stdlib_module_names:
            raise ImpruverError(_describe_standard(path, what))
    return value


@contextmanager
def _importing_from(folder: Path, top: str, what: str) -> Iterator[None]:
    """Makes `folder` the first to import from, then the last, so that it can't hide a package later on.

    A module `top` that an earlier recipe brought is dropped; one of a package is never replaced.
    """
    root, loaded = str(folder.absolute()), sys.modules.get(top)
    files = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", [])]
    below = any(file is not None and Path(root) in Path(file).absolute().parents for file in files)
    if loaded is not None and not below:
        if top not in _ours:
            raise ImpruverError(f"{what}: {root}/{top} has the name of a package that is in use; give it another name")
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]
    _ours.add(top)
    sys.path.insert(0, root)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(root)
        if root not in sys.path:
            sys.path.append(root)
