"""What of a finished output_dir may be published, without a path of this machine in it.

Weights, tokenizer, template and rows go as they are. Texts that training wrote of the run (recipe, manifest, report,
configurations) and a README.md go as copies, in which a path within the recipe's folder is relative to it, and any
other one is its bare name. The manifest's copy describes the copies.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_cache_dir
from impruver_core.io.integrity import describe_content
from impruver_core.io.manifest import read_manifest
from impruver_core.recipe.paths import find_recipes_root
from impruver_core.recipe.yaml_document import dump, read_document

from impruver_train.checkpointing.output_dir import MANIFEST, RECIPE, TEMPLATES, list_outputs

README = "README.md"
AS_THEY_ARE = ("tokenizer.json",)  # its texts are the vocabulary's
REST = r"(?:/[^\s\"'`<>|,;:)\]}]*)?"  # of a path that begins with a known folder, in a running text

HidePaths = Callable[[str], str]


def build_public_copies(output_dir: Path, recipe_dir: Path | None, folder: Path) -> dict[str, Path]:
    """The files to publish, by their names in the repository; copies that had to be changed are written into `folder`.

    Without a model card: `README.md` is there only where the user put one into `output_dir`.
    """
    manifest = read_manifest(output_dir / MANIFEST)
    if manifest is None:
        raise ImpruverError(f"{output_dir}: holds no {MANIFEST}: it is no finished model, and is not uploaded")
    files = _list_published(output_dir)
    private = _list_private_paths(output_dir, recipe_dir, manifest)
    hide = make_path_hider(private, recipe_dir)
    changed = {name: _copy_without_paths(path, folder / name, hide) for name, path in files.items()}
    files |= {name: folder / name for name, differs in changed.items() if differs}
    manifest = hide_paths(manifest, hide)
    for entry in manifest.get("outputs") or []:
        if changed.get(entry["path"]):
            entry |= describe_content(folder / entry["path"])
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, ensure_ascii=False, indent=1)
        file.write("\n")
    return files | {MANIFEST: folder / MANIFEST}


def make_path_hider(private: Iterable[Path], recipe_dir: Path | None) -> HidePaths:
    """A function that takes the paths below `private` out of a text: relative to `recipe_dir` if within, else names."""
    roots = sorted({str(path) for path in private if len(path.parts) > 1}, key=len, reverse=True)
    escaped = dict.fromkeys(re.escape(form) for root in roots for form in (root, html.escape(root)))
    pattern = re.compile(rf"(?<![\w.])(?:file://)?(?:{'|'.join(escaped)})(?![\w-]|\.\w){REST}")
    bases = [Path(os.path.abspath(recipe_dir)), Path(recipe_dir).resolve()] if recipe_dir is not None else []

    def shorten(text: str) -> str:
        path = Path(os.path.normpath(html.unescape(text).removeprefix("file://")))
        within = next((path.relative_to(base) for base in bases if path.is_relative_to(base)), None)
        return within.as_posix() if within is not None else path.name

    def hide(text: str) -> str:
        full = os.path.expanduser(text) if text.startswith("~/") else text
        if "\n" not in full and os.path.isabs(full) and any(Path(full).is_relative_to(root) for root in roots):
            return shorten(full)
        return pattern.sub(lambda found: shorten(found[0]), text)

    return hide


def hide_paths(value: Any, hide: HidePaths) -> Any:
    """`value`, as of JSON or YAML, with `hide` done to each text in it."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide_paths(name, hide): hide_paths(item, hide) for name, item in value.items()}
    return [hide_paths(item, hide) for item in value] if isinstance(value, list) else value


def _list_published(output_dir: Path) -> dict[str, Path]:
    """The outputs of a finished run and a README.md of the user's: no checkpoints, nothing that is being written."""
    outputs = [path for path in list_outputs(output_dir) if path.is_file() and not path.name.startswith(MANIFEST)]
    outputs += (output_dir / TEMPLATES).glob("*.jinja")
    outputs += [output_dir / README] if (output_dir / README).is_file() else []
    return {path.relative_to(output_dir).as_posix(): path for path in sorted(outputs) if not path.is_symlink()}


def _copy_without_paths(path: Path, target: Path, hide: HidePaths) -> bool:
    """Writes `path` without paths to `target`, if it has any; whether it has."""
    if path.name in AS_THEY_ARE or path.suffix not in (".json", ".yaml", ".html", ".md"):
        return False
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if path.name == RECIPE:
        data = read_document(path).data
        changed = dump(without) if (without := hide_paths(data, hide)) != data else text
    elif path.suffix == ".json":
        data = json.loads(text)
        without = hide_paths(data, hide)
        changed = json.dumps(without, indent=2, ensure_ascii=False) + "\n" if without != data else text
    else:
        changed = hide(text)
    if changed == text:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(changed, encoding="utf-8", errors="surrogateescape", newline="\n")
    return True


def _list_private_paths(output_dir: Path, recipe_dir: Path | None, manifest: dict[str, Any]) -> Iterator[Path]:
    """Folders and files of this machine that a text of the run may name, as they were written and without links."""
    hub = [os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")]
    paths = [output_dir, recipe_dir, Path.cwd(), find_recipes_root(), tempfile.gettempdir(), sys.prefix, *hub]
    with suppress(RuntimeError):  # nobody's home
        paths.append(Path.home())
    with suppress(ImpruverError):
        paths.append(get_cache_dir())
    for text in _list_texts([manifest.get("recipe"), manifest.get("inputs")]):
        paths += _find_local_path(text)
    for path in filter(None, paths):
        yield Path(os.path.abspath(path))
        with suppress(OSError, RuntimeError):
            yield Path(path).resolve()


def _find_local_path(text: str) -> list[Path]:
    """The path that a text is, and its folder; [] for a text that is none, or is within no folder here."""
    path = Path(text)
    with suppress(OSError, ValueError, RuntimeError):  # a name too long, a NUL
        path = path.expanduser() if text.startswith("~/") else path
        if path.is_absolute() and len(path.parts) > 2 and (path.exists() or path.parent.exists()):
            return [path, path.parent]
    return []


def _list_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _list_texts(item)
