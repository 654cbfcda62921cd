"""impruver-gguf, step by step: look, check, convert, quantize, describe, put in place, prove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core.cli.console import result, say, table
from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import check_replaceable, describe, new_manifest, publish, recover
from impruver_core.files.safe import need_room
from impruver_core.recipe.load import Recipe, resolved

from impruver_gguf import modelfile, quantize
from impruver_gguf.base import has_model, read_model
from impruver_gguf.convert import Conversion, existing, plan_conversion
from impruver_gguf.llama_cpp import Places, find_quantizer, find_server
from impruver_gguf.make import discard, earlier, make, outputs, quantizer
from impruver_gguf.sampling import sampling
from impruver_gguf.turns import chat_system_prompt, context_length, ollama_template, read_trained, turn_ends

MANIFEST, QUALITY = "impruver.json", "quality.jsonl"
RESERVE = 32 << 20  # bytes left free on the disk, since sizes are estimates


def export(
    recipe: Recipe,
    places: Places,
    only_quantize: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    verify: bool = True,
) -> None:
    """Makes output_dir/gguf as `recipe` says and proves it; `dry_run` tells what would be made."""
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    if output_dir.exists() and not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is a file; name the folder that training wrote")
    folder = output_dir / "gguf"
    source = folder / f"model-{recipe.gguf.outtype}.gguf"
    if dry_run and not only_quantize and not has_model(output_dir):
        result(f"{output_dir} holds no model yet: impruver-train makes it")
        return
    if not dry_run:
        recover(folder / MANIFEST)
    targets = _targets(folder, recipe.gguf.quantization_levels)
    modelfiles = _modelfiles(recipe, output_dir, {recipe.gguf.outtype: source, **targets})
    conversion = existing(source) if only_quantize else _planned(recipe, output_dir, places)
    program = _program(places, conversion)
    before = earlier(folder / MANIFEST, overwrite)
    finals = [*([] if only_quantize else [source]), *targets.values(), *modelfiles, folder / QUALITY]
    check_replaceable(finals, folder / MANIFEST, overwrite)
    sizes = {path: conversion.header + quantize.size_of(level, conversion.shapes) for level, path in targets.items()}
    need_room(folder, conversion.bytes + conversion.scratch + sum(sizes.values()) + RESERVE)
    (result if dry_run else say)(conversion.words)
    if dry_run:
        _tell_plan(folder, ({} if only_quantize else {source: conversion.bytes}) | sizes)
        return
    made, origin = make(conversion, source, targets, modelfiles, program, [] if overwrite else before)
    manifest = _put_in_place(recipe, output_dir, made, origin, targets, program, conversion, before)
    files = {recipe.gguf.outtype: source, **targets}
    _tell(folder, list(files.values()))
    best = _proven(recipe, output_dir, files, manifest, find_server(places)) if verify else None
    _tell_next(folder, len(files), best or next(iter(targets), recipe.gguf.outtype))


def _put_in_place(recipe, output_dir, made, origin, targets, program, conversion, before) -> dict[str, Any]:
    """Gives what was made its names, and the manifest after it; an earlier proof is none of these files."""
    folder = output_dir / "gguf"
    how = {"source": origin, "quantizer": quantizer(program)}
    try:
        before = [entry for entry in before if entry["path"] != QUALITY]
        there = outputs(folder, made, list(targets.values()), how, before, conversion.there)
        manifest = _manifest(recipe, output_dir, there, conversion)
    except BaseException:
        discard(made)
        raise
    (folder / QUALITY).unlink(missing_ok=True)
    publish(folder / MANIFEST, made, manifest)
    return manifest


def _proven(recipe: Recipe, output_dir: Path, files: dict, manifest: dict, server: str | None) -> str | None:
    from impruver_gguf.proof import prove
    from impruver_gguf.verify import Trained

    ends = turn_ends(output_dir, read_trained(output_dir / MANIFEST))
    kwargs = recipe.tokenizer.chat_template_kwargs or {}
    trained = Trained(output_dir, ends, kwargs, recipe.model, recipe.base_dir)
    return prove(trained, files, recipe.gguf.limits, output_dir / "gguf" / MANIFEST, manifest, server)


def _planned(recipe: Recipe, output_dir: Path, places: Places) -> Conversion:
    model = read_model(output_dir, recipe.model.name, recipe.base_dir)
    return plan_conversion(model, output_dir, places)


def _targets(folder: Path, levels: list[str]) -> dict[str, Path]:
    names = dict.fromkeys(level.lower() for level in levels)
    return {level: folder / f"model-{level}.gguf" for level in names}


def _modelfiles(recipe: Recipe, output_dir: Path, files: dict[str, Path]) -> dict[Path, str]:
    """Modelfile path → its text."""
    section, trained = recipe.gguf, read_trained(output_dir / MANIFEST)
    system = section.system_prompt or chat_system_prompt(recipe.chat, trained)
    modelfile.warn_about_dropped(system)
    stops = turn_ends(output_dir, trained)
    num_ctx = section.num_ctx or context_length(output_dir, trained)
    parameters, template = sampling(output_dir, recipe.chat) | section.parameters, ollama_template(output_dir)
    return {
        path.with_name(f"Modelfile.{level}"): modelfile.modelfile(
            path.name, stops, num_ctx, parameters, system, template
        )
        for level, path in files.items()
    }


def _program(places: Places, conversion: Conversion) -> str | None:
    """A llama-quantize that a flag names, or that goes with llama.cpp's script; None: cyllama's library."""
    return find_quantizer(places) if places.quantizer or conversion.by_script else None


def _manifest(
    recipe: Recipe,
    output_dir: Path,
    outputs: list[dict[str, Any]],
    conversion: Conversion,
) -> dict[str, Any]:
    """What was made, from what."""
    trained = read_trained(output_dir / MANIFEST)
    manifest = new_manifest("impruver-gguf", resolved(recipe, absolute=True))
    manifest |= {name: trained[name] for name in ("tokenizer", "template", "end_of_turn") if name in trained}
    weights = sorted(path for path in output_dir.glob("*.safetensors") if path.is_file())
    manifest["inputs"] = [describe(path) for path in weights]
    manifest["outputs"] = outputs
    manifest["counts"] = {"tensors": len(conversion.shapes)}
    return manifest


def _tell_plan(folder: Path, sizes: dict[Path, int]) -> None:
    rows = [(path.name, f"{size / 1e6:,.1f}") for path, size in sizes.items()]
    result(table(("FILE", "MB, ABOUT"), rows))
    result(f"nothing was written; without --dry_run these files and their Modelfiles come into {folder}")


def _tell(folder: Path, files: list[Path]) -> None:
    result(table(("FILE", "MB"), [(path.name, f"{path.stat().st_size / 1e6:,.1f}") for path in files]))


def _tell_next(folder: Path, count: int, level: str) -> None:
    result(
        f"wrote {count} GGUF files and their Modelfiles to {folder}; next: "
        f"ollama create NAME -f {folder / f'Modelfile.{level}'}"
    )
