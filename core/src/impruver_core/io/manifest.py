"""The manifest of an output: what a tool made, from what, with which counts. It is written last."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_staged_path, hash_file, sync_folder
from impruver_core.io.integrity import describe_content, find_damage
from impruver_core.io.model_files import check_ordinary_file
from impruver_core.io.row_parts import PART

FORMAT = 1
MACHINE_MADE = (".safetensors", ".gguf", "tokenizer.json", "tokenizer.model")  # whose names end so
LARGEST_PENDING = 1 << 26  # bytes


def build_manifest(tool: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a manifest: format, tool (a distribution's name), its version, the resolved recipe."""
    return {"impruver": FORMAT, "tool": tool, "version": version(tool), "recipe": dict(recipe)}


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """The manifest at `path`, None where there is none; ImpruverError for a broken one or a higher format."""
    try:
        check_ordinary_file(Path(path))
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
        if manifest["impruver"] > FORMAT:
            raise ImpruverError(
                f"{path}: manifest format {manifest['impruver']} is newer than this version reads ({FORMAT}); update it"
            )
        wrong = _find_wrong_field(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ImpruverError(f"{path}: not a manifest of Impruver; move it away") from None
    if wrong:
        raise ImpruverError(f"{path}: not a manifest of Impruver: {wrong}; move it away")
    return manifest


def _find_wrong_field(manifest: dict) -> str | None:
    """The first field of a wrong type, of those that readers rely on; None where all are right."""
    ends, recipe = manifest.get("end_of_turn") or [], manifest.get("recipe") or {}
    if not (isinstance(ends, list) and all(isinstance(end, str) for end in ends)):
        return f"end_of_turn is {ends!r}, not a list of texts"
    if not isinstance(recipe, dict):
        return "recipe is no object"
    outputs = manifest.get("outputs") or []
    described = all(isinstance(entry["path"], str) and isinstance(entry["bytes"], int) for entry in outputs)
    return None if described else "outputs are not described"


def describe_file(
    path: str | Path,
    rows: int | None = None,
    digest: bool = False,
    beside: Path | None = None,
    checksum: bool = False,
) -> dict[str, Any]:
    """An entry for a manifest's inputs or outputs; the bare name of a file in the folder `beside`.

    `digest`: with its sha256. `checksum`: with the faster one by which `find_damage` finds damage.
    """
    path = Path(path)
    name = path.name if beside is not None and path.absolute().parent == Path(beside).absolute() else str(path)
    entry: dict[str, Any] = {"path": name, "bytes": path.stat().st_size}
    if rows is not None:
        entry["rows"] = rows
    if digest:
        entry["sha256"] = hash_file(path)
    return entry | describe_content(path) if checksum else entry


def check_as_written(paths: Iterable[Path], manifest_path: Path) -> None:
    """ImpruverError for weights or a tokenizer among `paths` that are not as the manifest beside them describes them.

    Templates and configurations are the user's to change. A manifest that can't be read is told by who needs it.
    """
    outputs: list[dict] = []
    with suppress(ImpruverError):
        outputs = (read_manifest(manifest_path) or {}).get("outputs") or []
    described = {entry["path"]: entry for entry in outputs if "xxh3" in entry}
    for path in paths:
        entry = described.get(path.name) if path.name.endswith(MACHINE_MADE) else None
        damage = (
            find_damage(path, entry) if entry and path.absolute().parent == manifest_path.absolute().parent else None
        )
        if damage:
            raise ImpruverError(
                f"{path} is not as {manifest_path.name} beside it describes it: {damage}; copy it again or make it "
                f"again, or if you changed it on purpose, remove {manifest_path}"
            )


def check_maker(manifest_path: Path, tool: str) -> None:
    """ImpruverError where another tool made the manifest at `manifest_path`; one that is broken passes."""
    made_by = tool
    with suppress(ImpruverError):  # told by who reads it, or replaced with --overwrite
        made_by = (read_manifest(manifest_path) or {}).get("tool", tool)
    if made_by != tool:
        raise ImpruverError(f"{manifest_path}: is a manifest of {made_by}, which {tool} does not replace; move it away")


def check_replaceable(paths: Iterable[Path], manifest_path: Path, overwrite: bool = False) -> None:
    """ImpruverError where a file at one of `paths` is not as the manifest at `manifest_path` describes it."""
    present = [path for path in map(Path, paths) if path.exists()]
    for path in present:
        if path.is_dir():
            raise ImpruverError(f"{path} is a folder: name another path")
        if not path.is_file():
            raise ImpruverError(f"{path} is no ordinary file: name another path")
    if overwrite or not present:
        return
    manifest = read_manifest(manifest_path)
    outputs = (manifest or {}).get("outputs") or []
    known = {locate_output(manifest_path, entry["path"]): entry for entry in outputs}
    for path in present:
        entry = known.get(normalize_path(path))
        if entry is None:
            raise ImpruverError(f"{path} is there and Impruver did not make it: name another path, or use --overwrite")
        if entry["bytes"] != path.stat().st_size or entry.get("sha256", "") not in ("", hash_file(path)):
            raise ImpruverError(f"{path} was changed since Impruver made it: move it away, or use --overwrite")


def normalize_path(path: Path) -> Path:
    """A path in full, without `..`."""
    return Path(os.path.abspath(path))


def locate_output(manifest_path: Path, path: str) -> Path:
    """Where an output is that a manifest describes: paths in it are relative to its folder, or absolute."""
    return normalize_path(manifest_path.parent / path)


def name_output(path: Path, manifest_path: Path) -> str:
    """The path of an output for its manifest: relative to its folder if both were given so, else in full."""
    if path.is_absolute() or manifest_path.is_absolute():
        beside = normalize_path(path).parent == normalize_path(manifest_path).parent
        return path.name if beside else str(path.absolute())
    return os.path.relpath(path, manifest_path.parent)


def get_manifest_path(path: Path) -> Path:
    """Where the manifest of the output at `path` is: beside it, `train.jsonl.manifest.json`."""
    return path.with_name(f"{path.name}.manifest.json")


def get_pending_path(manifest_path: Path) -> Path:
    """Where `publish` records what it is about to put in place."""
    return Path(f"{manifest_path}.pending")


def find_unchanged(paths: Iterable[Path], manifest_path: Path) -> list[Path]:
    """Those of `paths` that are as the manifest at `manifest_path` describes them."""
    described = _read_described(manifest_path)
    known = ((path, described.get(normalize_path(path))) for path in paths)
    return [path for path, digest in known if digest and _has_hash(path, digest)]


def publish(
    manifest_path: str | Path,
    staged: Iterable[Path],
    manifest: Mapping[str, Any],
    part_folders: Iterable[Path] = (),
    obsolete: Iterable[Path] = (),
) -> None:
    """Puts staged files in place, each given by its final path, and the manifest after them.

    A hash that the manifest has of a file is not computed again. What is about to happen is recorded before the first
    rename: `recover` finishes it after a kill at any point.
    `part_folders`: folders of parts that are written with this manifest; parts in them that the manifest before it
    names, and this one does not, are removed.
    `obsolete`: files that are as the manifest before describes them, and that this one knows no more; they are removed.
    """
    manifest_path = Path(manifest_path)
    folder = normalize_path(manifest_path).parent
    outputs = manifest.get("outputs") or []
    known = {locate_output(manifest_path, entry["path"]): entry.get("sha256") for entry in outputs}
    staged = map(normalize_path, staged)
    files = {path: known.get(path) or hash_file(get_staged_path(path)) for path in staged}
    before, folders = _read_described(manifest_path), {normalize_path(path) for path in part_folders}

    def name_recorded(path: Path) -> dict[str, Any]:
        of_folder = {"part_of": path.parent.name} if path.parent in folders else {}
        beside = (path.parent.parent if of_folder else path.parent) == folder
        return {"path": path.name} | of_folder | ({} if beside else {"elsewhere": True})

    entries = [
        name_recorded(path)
        | {"sha256": digest}
        | ({"replaces": old} if path.is_file() and (old := hash_file(path)) != before.get(path) else {})  # --overwrite
        for path, digest in files.items()
    ]
    surplus = [path for path in before if path.parent in folders and path not in files and PART.fullmatch(path.name)]
    surplus = [path for path in (*surplus, *map(normalize_path, obsolete)) if path.is_file()]
    removed = [name_recorded(path) | {"sha256": hash_file(path)} for path in surplus]
    if files:
        record = {"files": entries} | ({"removed": removed} if removed else {}) | {"manifest": manifest}
        with atomic_write(get_pending_path(manifest_path)) as file:
            json.dump(record, file, ensure_ascii=False)
    _move_staged(manifest_path, files, surplus, manifest)


def recover(manifest_path: str | Path, outputs: Iterable[Path], part_folders: Iterable[Path] = ()) -> None:
    """Finishes a `publish` that was interrupted; where its files are gone, removes what is left of it.

    Args:
        outputs: what the caller's tool writes with this manifest. The record of a `publish` may come from a stranger,
            within a folder that was downloaded, and says which files are replaced and removed: it names them by their
            bare names, and one that names any other than these is refused. So is one that would replace a file which
            neither the manifest before it describes nor `publish` has seen: its hash is not a stranger's to know. It
            removes no file but one that is as the manifest before describes it, or a part that this one names.
        part_folders: folders of parts among them, in which it may name parts by the names that `publish` gives them.

    Raises:
        ImpruverError: for a record that `publish` did not write; nothing is touched.
    """
    manifest_path = Path(manifest_path)
    pending = get_pending_path(manifest_path)
    if not os.path.lexists(pending):
        return
    try:
        if pending.is_symlink() or not pending.is_file() or pending.stat().st_size > LARGEST_PENDING:
            raise ValueError("it is no file of that kind")
        record = json.loads(pending.read_text(encoding="utf-8"))
        places = manifest_path, [*outputs], [*part_folders]
        files = _find_recorded_files(record["files"], *places)
        removed = _find_recorded_files(record.get("removed", []), *places)
        manifest = dict(record["manifest"])
        _check_recorded_manifest(manifest, manifest_path)
        _check_recorded_replaceable(record["files"], files, manifest_path)
        _check_recorded_removable(removed, files, manifest_path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        raise ImpruverError(f"{pending}: Impruver did not write this{why}; remove it") from None
    if all(_has_hash(get_staged_path(path), digest) or _has_hash(path, digest) for path, digest in files.items()):
        _move_staged(manifest_path, files, removed, manifest)
        return
    for path in files:
        get_staged_path(path).unlink(missing_ok=True)
    pending.unlink()


def _find_recorded_files(
    entries: list[dict], manifest_path: Path, outputs: Iterable[Path], part_folders: Iterable[Path]
) -> dict[Path, str]:
    """Final path → sha256 of what a `publish` recorded; ValueError for what is no output, and no part in a folder."""
    folder = normalize_path(manifest_path).parent
    known, folders = (
        {(path.parent == folder, path.name): path for path in map(normalize_path, paths)}
        for paths in (outputs, part_folders)
    )
    files = {}
    for entry in entries:
        beside = not entry.get("elsewhere")
        if "part_of" in entry:
            parts = folders.get((beside, entry["part_of"]))
            path = parts / entry["path"] if parts is not None and PART.fullmatch(entry["path"]) else None
        else:
            path = known.get((beside, entry["path"]))
        if path is None or "staged" in entry:
            raise ValueError(f"it names {entry['path']!r}, which is no output of this run")
        files[path] = str(entry["sha256"])
    return files


def _check_recorded_manifest(manifest: dict[str, Any], manifest_path: Path) -> None:
    """ValueError where `manifest` is none, or would replace what is no manifest of its tool."""
    json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate is no text
    if type(manifest["impruver"]) is not int or _find_wrong_field(manifest):
        raise ValueError("it holds no manifest")
    if not os.path.lexists(manifest_path):
        return
    try:
        before = read_manifest(manifest_path) or {}
    except ImpruverError:
        raise ValueError(f"it would replace {manifest_path.name}, which is no manifest") from None
    if before.get("tool") != manifest.get("tool"):
        raise ValueError(f"it would replace {manifest_path.name}, which is another tool's")


def _check_recorded_replaceable(entries: list[dict], files: Mapping[Path, str], manifest_path: Path) -> None:
    """ValueError where a file stands at one of `files` that Impruver did not make, nor saw when it recorded this."""
    described = _read_described(manifest_path)
    for entry, (path, digest) in zip(entries, files.items(), strict=True):
        known = {digest, described.get(path), entry.get("replaces")}
        if os.path.lexists(path) and not (path.is_file() and hash_file(path) in known):
            raise ValueError(f"it would replace {path.name}, which Impruver did not make")


def _check_recorded_removable(removed: Mapping[Path, str], files: Mapping[Path, str], manifest_path: Path) -> None:
    """ValueError where one of `removed` is none that the manifest describes, or was changed since."""
    described = _read_described(manifest_path)
    for path, digest in removed.items():
        is_part = PART.fullmatch(path.name) and path in described  # with --overwrite, also one that was changed
        known = _has_hash(path, digest) and (is_part or described.get(path) == digest)
        if path in files or (os.path.lexists(path) and not known):
            raise ValueError(f"it would remove {path.name}, which Impruver did not make")


def _read_described(manifest_path: Path) -> dict[Path, str | None]:
    """The sha256 of each output by the manifest at `manifest_path`; {} where there is none that can be read."""
    with suppress(ImpruverError):
        outputs = (read_manifest(manifest_path) or {}).get("outputs") or []
        return {locate_output(manifest_path, entry["path"]): entry.get("sha256") for entry in outputs}
    return {}


def _has_hash(path: Path, digest: str) -> bool:
    return not path.is_symlink() and path.is_file() and hash_file(path) == digest


def _move_staged(
    manifest_path: Path, files: Iterable[Path], removed: Iterable[Path], manifest: Mapping[str, Any]
) -> None:
    """Renames the files that are still staged, removes those that are no more, then writes the manifest."""
    for path in files:
        if get_staged_path(path).exists():
            get_staged_path(path).replace(path)
            sync_folder(path.parent)
    for path in removed:
        path.unlink(missing_ok=True)
    with atomic_write(manifest_path) as file:
        json.dump(manifest, file, ensure_ascii=False, indent=1)
        file.write("\n")
    get_pending_path(manifest_path).unlink(missing_ok=True)
