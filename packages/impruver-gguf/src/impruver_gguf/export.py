"""impruver-gguf, step by step: look, check, convert, quantize, describe, put in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core.cli.console import result, say, table, warn
from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import check_replaceable, describe, new_manifest, publish, read_manifest, recover
from impruver_core.files.safe import make_folder, need_room, staged, synced
from impruver_core.recipe.load import Recipe, resolved

from impruver_gguf import modelfile, quantize
from impruver_gguf.ahead import model_to_be
from impruver_gguf.base import has_model, read_model
from impruver_gguf.convert import Conversion, existing, plan_conversion, sync
from impruver_gguf.llama_cpp import Places, find_quantizer
from impruver_gguf.turns import chat_system_prompt, context_length, read_trained, turn_ends

MANIFEST = "impruver.json"
RESERVE = 32 << 20  # bytes left free on the disk, since sizes are estimates


def export(
    recipe: Recipe, places: Places, only_quantize: bool = False, dry_run: bool = False, overwrite: bool = False
) -> None:
    """Makes output_dir/gguf as `recipe` says; `dry_run` tells what would be made."""
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    if output_dir.exists() and not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is a file; name the folder that training wrote")
    folder = output_dir / "gguf"
    source = folder / f"model-{recipe.gguf.outtype}.gguf"
    untrained = dry_run and not only_quantize and not has_model(output_dir)
    if untrained:
        result(f"{output_dir} holds no model yet: impruver-train makes it")
    if not dry_run:
        recover(folder / MANIFEST)
    targets = _targets(folder, recipe.gguf.quantization_levels, recipe.gguf.outtype)
    modelfiles = _modelfiles(recipe, output_dir, {recipe.gguf.outtype: source, **targets})
    conversion = existing(source) if only_quantize else _planned(recipe, output_dir, places, untrained)
    if conversion is None:
        result(f"model.name {recipe.model.name} is no folder here: whether it converts is told when it is trained")
        return
    program = _program(places, conversion)
    before = _before(folder / MANIFEST, overwrite)
    finals = [*([] if only_quantize else [source]), *targets.values(), *modelfiles]
    check_replaceable(finals, folder / MANIFEST, overwrite)
    sizes = {path: conversion.header + quantize.size_of(level, conversion.shapes) for level, path in targets.items()}
    need_room(folder, conversion.bytes + conversion.scratch + sum(sizes.values()) + RESERVE)
    (result if dry_run else say)(conversion.words)
    if dry_run:
        _tell_plan(folder, ({} if only_quantize else {source: conversion.bytes}) | sizes)
        return
    made = _make(conversion, source, targets, modelfiles, program, convert=not only_quantize)
    try:
        manifest = _manifest(recipe, output_dir, made, conversion, before)
    except BaseException:
        _discard(made)
        raise
    publish(folder / MANIFEST, made, manifest)
    _tell(folder, [path for path in made if path.suffix == ".gguf"], next(iter(targets), recipe.gguf.outtype))


def _planned(recipe: Recipe, output_dir: Path, places: Places, untrained: bool) -> Conversion | None:
    """Of the model in output_dir, or before training of the one to be; None where that is not known."""
    folder = output_dir
    if untrained:
        found = model_to_be(recipe.model.name, recipe.tokenizer.name, recipe.lora, recipe.base_dir)
        if found is None:
            return None
        model, folder = found
    else:
        model = read_model(output_dir, recipe.model.name, recipe.base_dir)
    return plan_conversion(model, folder, places, recipe.gguf.outtype)


def _targets(folder: Path, levels: list[str], outtype: str) -> dict[str, Path]:
    names = dict.fromkeys(level.lower() for level in levels)
    return {level: folder / f"model-{level}.gguf" for level in names if level != outtype}


def _modelfiles(recipe: Recipe, output_dir: Path, files: dict[str, Path]) -> dict[Path, str]:
    """Modelfile path → its text."""
    section, trained = recipe.gguf, read_trained(output_dir / MANIFEST)
    system = section.system_prompt or chat_system_prompt(recipe.chat, trained)
    modelfile.warn_about_dropped(system)
    stops = turn_ends(output_dir, trained)
    num_ctx = section.num_ctx or context_length(output_dir, trained)
    return {
        path.with_name(f"Modelfile.{level}"): modelfile.modelfile(path.name, stops, num_ctx, section.parameters, system)
        for level, path in files.items()
    }


def _program(places: Places, conversion: Conversion) -> str | None:
    """A llama-quantize that a flag names, or that goes with llama.cpp's script; None: cyllama's library."""
    return find_quantizer(places) if places.quantizer or conversion.by_script else None


def _make(
    conversion: Conversion,
    source: Path,
    targets: dict[str, Path],
    modelfiles: dict[Path, str],
    program: str | None,
    convert: bool,
) -> dict[Path, Path]:
    """Final path → where the file is now, for all that is made; nothing is left where something goes wrong."""
    make_folder(source.parent)
    made = {path: staged(path) for path in [*([source] if convert else []), *targets.values(), *modelfiles]}
    try:
        if convert:
            conversion.write(made[source])
        quantize.quantize(made.get(source, source), {level: made[path] for level, path in targets.items()}, program)
        for path, text in modelfiles.items():
            with synced(made[path]) as file:
                file.write(text)
        for path in made.values():
            sync(path)
    except BaseException as error:
        _discard(made)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(source.parent)  # a write knows no name
        raise
    return made


def _discard(made: dict[Path, Path]) -> None:
    for path in made.values():
        path.unlink(missing_ok=True)


def _before(path: Path, overwrite: bool) -> list[dict[str, Any]]:
    """The files that an earlier run's manifest describes."""
    try:
        return (read_manifest(path) or {}).get("outputs") or []
    except ImpruverError:
        if not overwrite:
            raise
        warn(f"{path}: can't be read, and is replaced")
        return []


def _manifest(
    recipe: Recipe, output_dir: Path, made: dict[Path, Path], conversion: Conversion, before: list[dict[str, Any]]
) -> dict[str, Any]:
    """What was made, from what; files of earlier runs that still stand there stay described."""
    folder = output_dir / "gguf"
    trained = read_trained(output_dir / MANIFEST)
    names = {path.name for path in made}
    kept = [entry for entry in before if entry["path"] not in names and (folder / entry["path"]).is_file()]
    stale = [entry["path"] for entry in kept if entry["path"].endswith(".gguf")]
    if stale and not conversion.there:
        warn(f"{', '.join(stale)} in {folder}: of an earlier run, not made anew")
    manifest = new_manifest("impruver-gguf", resolved(recipe, absolute=True))
    manifest |= {name: trained[name] for name in ("tokenizer", "template", "end_of_turn") if name in trained}
    weights = sorted(path for path in output_dir.glob("*.safetensors") if path.is_file())
    manifest["inputs"] = [describe(path) for path in weights]
    made_now = [describe(now, digest=True) | {"path": final.name} for final, now in made.items()]
    manifest["outputs"] = [*kept, *made_now]
    manifest["counts"] = {"tensors": len(conversion.shapes)}
    return manifest


def _tell_plan(folder: Path, sizes: dict[Path, int]) -> None:
    rows = [(path.name, f"{size / 1e6:,.1f}") for path, size in sizes.items()]
    result(table(("FILE", "MB, ABOUT"), rows))
    result(f"nothing was written; without --dry_run these files and their Modelfiles come into {folder}")


def _tell(folder: Path, files: list[Path], level: str) -> None:
    result(table(("FILE", "MB"), [(path.name, f"{path.stat().st_size / 1e6:,.1f}") for path in files]))
    result(
        f"wrote {len(files)} GGUF files and their Modelfiles to {folder}; next: "
        f"ollama create NAME -f {folder / f'Modelfile.{level}'}"
    )
