"""impruver-gguf, step by step: look, check, convert, quantize, describe, put in place, prove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.disk_space import check_free_space
from impruver_core.io.manifest import build_manifest, check_replaceable, describe_file, publish, recover
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_gguf.conversion.artifacts import earlier, kept, make
from impruver_gguf.conversion.llama_cpp_tools import Places, find_quantizer, find_server
from impruver_gguf.conversion.plan import Conversion, existing, plan_conversion
from impruver_gguf.conversion.planned_checkpoint import NotSeenError, model_to_be
from impruver_gguf.ollama import modelfile
from impruver_gguf.ollama.model_defaults import (
    chat_system_prompt,
    context_length,
    ollama_template,
    read_trained,
    sampling,
    turn_ends,
)
from impruver_gguf.quantization import quantize
from impruver_gguf.quantization.quant_types import check_fits
from impruver_gguf.verification.quality_report import QUALITY
from impruver_gguf.verification.types import Trained
from impruver_gguf.verification.verify import prove, read_ground
from impruver_gguf.weights.checkpoint import has_model, read_model

MANIFEST = "impruver.json"


RESERVE = 32 << 20  # bytes left free on the disk, since sizes are estimates


def export(recipe: Recipe, places: Places, flags: Any) -> None:
    """Makes output_dir/gguf as `recipe` and the command's `flags` say, and proves it."""
    output_dir = _output_dir(recipe)
    manifest_path = output_dir / "gguf" / MANIFEST
    if not flags.dry_run:
        recover(manifest_path)
    files = _files(recipe, manifest_path.parent)
    training = read_trained(output_dir / MANIFEST)
    modelfiles = _modelfiles(recipe, output_dir, files, training)
    source = next(iter(files.values()))
    try:
        conversion = existing(source) if flags.only_quantize else _planned(recipe, output_dir, places, flags)
    except NotSeenError as error:
        print_result(f"whether it will convert can't be told yet: {error}")
        return
    for level in [*files][1:]:
        check_fits(level, conversion.shapes)
    # A llama-quantize that a flag names, or that goes with llama.cpp's script; None: cyllama's library.
    program = find_quantizer(places) if places.quantizer or conversion.by_script else None
    before = earlier(manifest_path, flags.overwrite)
    replaced = [*files.values()][conversion.there :]
    check_replaceable([*replaced, *modelfiles, manifest_path.with_name(QUALITY)], manifest_path, flags.overwrite)
    trained = _trained(recipe, output_dir, training)
    ground = read_ground(trained) if flags.verify and (has_model(output_dir) or not flags.dry_run) else None
    (print_result if flags.dry_run else log_info)(conversion.words)
    done: set[Path] = set()
    if not flags.dry_run and not flags.overwrite:
        conversion, done = kept(conversion, files, program, before)
    sizes = {path: size for path, size in _sizes(files, conversion).items() if path not in done}
    check_free_space(manifest_path.parent, conversion.scratch + sum(sizes.values()) + RESERVE)
    if flags.dry_run:
        _tell_plan(manifest_path.parent, sizes)
        return
    manifest = _manifest(recipe, output_dir, conversion, training)
    made, manifest["outputs"] = make(conversion, files, modelfiles, program, done, before)
    manifest_path.with_name(QUALITY).unlink(missing_ok=True)  # an earlier proof is of none of these files
    publish(manifest_path, made, manifest)
    _tell(files)
    server, limits = find_server(places), recipe.gguf.limits
    _tell_next(files, prove(trained, ground, files, limits, manifest_path, manifest, server) if ground else None)


def _output_dir(recipe: Recipe) -> Path:
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    if output_dir.exists() and not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is a file; name the folder that training wrote")
    return output_dir


def _files(recipe: Recipe, folder: Path) -> dict[str, Path]:
    """Outtype and levels → their files, the unquantized one first."""
    levels = [recipe.gguf.outtype, *(level.lower() for level in recipe.gguf.quantization_levels)]
    return {level: folder / f"model-{level}.gguf" for level in levels}


def _sizes(files: dict[str, Path], conversion: Conversion) -> dict[Path, int]:
    """About the bytes of each file that is to be made."""
    (_, source), *targets = files.items()
    sizes = {path: conversion.header + quantize.size_of(level, conversion.shapes) for level, path in targets}
    return sizes if conversion.there else {source: conversion.bytes, **sizes}


def _trained(recipe: Recipe, output_dir: Path, training: dict[str, Any]) -> Trained:
    ends = turn_ends(output_dir, training)
    return Trained(output_dir, ends, recipe.tokenizer.chat_template_kwargs or {}, recipe.model, recipe.base_dir)


def _planned(recipe: Recipe, output_dir: Path, places: Places, flags: Any) -> Conversion:
    """Of the model in output_dir, or in a dry run before training of the one to be."""
    section, folder = recipe.model, output_dir
    if flags.dry_run and not has_model(output_dir):
        print_result(f"{output_dir} holds no model yet: impruver-train makes it")
        model, folder = model_to_be(section, recipe.tokenizer.name, recipe.lora, recipe.base_dir)
    else:
        model = read_model(output_dir, section.name, recipe.base_dir, flags.dry_run)
    return plan_conversion(model, folder, places, recipe.gguf.outtype)


def _modelfiles(recipe: Recipe, output_dir: Path, files: dict[str, Path], training: dict[str, Any]) -> dict[Path, str]:
    """Modelfile path → its text."""
    section = recipe.gguf
    system = section.system_prompt or chat_system_prompt(recipe.chat, training)
    modelfile.warn_about_dropped(system)
    stops = turn_ends(output_dir, training)
    num_ctx = section.num_ctx or context_length(output_dir, training)
    parameters, template = sampling(output_dir, recipe.chat) | section.parameters, ollama_template(output_dir)
    return {
        path.with_name(f"Modelfile.{level}"): modelfile.modelfile(
            path.name, stops, num_ctx, parameters, system, template
        )
        for level, path in files.items()
    }


def _manifest(recipe: Recipe, output_dir: Path, conversion: Conversion, training: dict[str, Any]) -> dict[str, Any]:
    """What is made, from what; its outputs come later."""
    manifest = build_manifest("impruver-gguf", resolve_recipe(recipe, absolute=True))
    manifest |= {name: training[name] for name in ("tokenizer", "template", "end_of_turn") if name in training}
    weights = sorted(path for path in output_dir.glob("*.safetensors") if path.is_file())
    manifest["inputs"] = [describe_file(path) for path in weights]
    manifest["counts"] = {"tensors": len(conversion.shapes)}
    return manifest


def _tell_plan(folder: Path, sizes: dict[Path, int]) -> None:
    if not any(sizes.values()):
        print_result("how large its files will be is told once its weights are on this disk")
        return
    rows = [(path.name, f"{size / 1e6:,.1f}") for path, size in sizes.items()]
    print_result(format_table(("FILE", "MB, ABOUT"), rows))
    print_result(f"nothing was written; without --dry_run these files and their Modelfiles come into {folder}")


def _tell(files: dict[str, Path]) -> None:
    print_result(
        format_table(("FILE", "MB"), [(path.name, f"{path.stat().st_size / 1e6:,.1f}") for path in files.values()])
    )


def _tell_next(files: dict[str, Path], best: str | None) -> None:
    """The last line; without a recommended level the first one is named."""
    level = best or next(iter([*files][1:]), next(iter(files)))
    folder = files[level].parent
    print_result(
        f"wrote {len(files)} GGUF files and their Modelfiles to {folder}; next: "
        f"ollama create NAME -f {folder / f'Modelfile.{level}'}"
    )
