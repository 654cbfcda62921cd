"""Imports the classes and functions that a recipe names by dotted path."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

_ours: set[str] = set()  # top-level names that came from beside a recipe or the working folder


def load_object(path: str, what: str, search_dir: Path | None = None) -> Any:
    """The object behind `package.module.Name`: beside the recipe, in the working folder, then in installed packages.

    `what` is the key that named it, for the message. ImpruverError where it isn't there or can't be imported.
    """
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ImpruverError(f"{what}: {path!r} is no dotted path, such as transformers.AutoModelForCausalLM")
    folders = [Path(folder) for folder in dict.fromkeys([search_dir or Path.cwd(), Path.cwd()])]
    for folder in folders:
        for length in range(len(parts) - 1, 0, -1):
            stem = folder.joinpath(*parts[:length])
            if not stem.with_name(stem.name + ".py").is_file() and not (stem / "__init__.py").is_file():
                continue
            with _importing_from(folder, parts[0], what):
                return _get_member(_import_module(parts[:length], path, what), parts[length:], path, what)
    for length in range(len(parts) - 1, 0, -1):
        module = _import_module(parts[:length], path, what, missing_is_none=length > 1)
        if module is not None:
            return _get_member(module, parts[length:], path, what)
    raise AssertionError("the last turn returns or raises")


def _import_module(parts: list[str], path: str, what: str, missing_is_none: bool = False) -> ModuleType | None:
    name = ".".join(parts)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ImpruverError(f"{what}: {path} needs the module {error.name}, which is not installed") from error
        if missing_is_none:
            return None
        raise ImpruverError(
            f"{what}: {path}: there is no module {parts[0]} beside the recipe, in the working folder or installed"
        ) from error
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
