"""The steps of `impruver-gguf`: inspect, plan, convert, quantize, publish, verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.disk_space import check_free_space
from impruver_core.io.manifest import build_manifest, check_replaceable, describe_file, publish, recover
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_gguf.conversion.artifacts import (
    ArtifactPlan,
    convert,
    describe_outputs,
    quantize_levels,
    read_previous_outputs,
    reuse_outputs,
    staged_outputs,
    write_modelfiles,
)
from impruver_gguf.conversion.llama_cpp_tools import LlamaCppPaths, find_quantizer, find_server
from impruver_gguf.conversion.plan import ConversionPlan, plan_conversion, plan_existing_file
from impruver_gguf.conversion.planned_checkpoint import UnknownModelError, plan_checkpoint
from impruver_gguf.ollama.model_defaults import (
    build_ollama_template,
    get_num_ctx,
    get_sampling_parameters,
    get_system_prompt,
    get_turn_ends,
    read_training_manifest,
)
from impruver_gguf.ollama.modelfile import ModelDefaults, format_modelfile, warn_about_dropped_characters
from impruver_gguf.quantization.quant_types import check_rows_fit
from impruver_gguf.verification.heldout import TrainedModelInfo, read_inputs
from impruver_gguf.verification.quality_report import QUALITY_FILE
from impruver_gguf.verification.verify import print_verification, publish_quality, verify
from impruver_gguf.weights.checkpoint import has_model, read_checkpoint

MANIFEST = "impruver.json"
RESERVED_BYTES = 32 << 20  # left free on the disk, since sizes are estimates


@dataclass(frozen=True)
class ExportSource:
    """The trained model and the files to be made of it.

    `training` is the manifest that training left, `files` level → file with the unquantized one first, `modelfiles`
    Modelfile → its text.
    """

    model: TrainedModelInfo
    training: dict[str, Any]
    manifest_path: Path
    files: dict[str, Path]
    modelfiles: dict[Path, str]


def export(
    recipe: Recipe,
    paths: LlamaCppPaths,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    only_quantize: bool = False,
    verified: bool = True,
) -> None:
    """Make output_dir/gguf of the model in output_dir.

    Args:
        recipe: The recipe.
        paths: llama.cpp's own programs.
        dry_run: Print the plan and write nothing.
        overwrite: Replace files that are not as an earlier run left them, and make all of them anew.
        only_quantize: Take the unquantized file that is there.
        verified: Verify the files.
    """
    source = _inspect(recipe, dry_run)
    try:
        plan = _plan(recipe, source, paths, dry_run, overwrite, only_quantize)
    except UnknownModelError as error:
        print_result(f"whether it will convert can't be told yet: {error}")
        return
    inputs = read_inputs(source.model) if verified and (has_model(source.model.output_dir) or not dry_run) else None
    if dry_run:
        _print_plan(plan)
        return
    log_info(plan.conversion.description)
    plan = plan if overwrite else reuse_outputs(plan)
    _check_free_space(plan)
    manifest = _build_manifest(recipe, source, plan.conversion)
    with staged_outputs(plan) as staged:
        convert(plan, staged)
        quantize_levels(plan, staged)
        write_modelfiles(plan, staged)
        manifest["outputs"] = describe_outputs(plan, staged)
    source.manifest_path.with_name(QUALITY_FILE).unlink(missing_ok=True)  # an earlier proof is of none of these files
    publish(source.manifest_path, staged, manifest)
    _print_files(source.files)
    server, recommended = find_server(paths), None
    if inputs:
        report = verify(source.files, inputs, recipe.gguf.limits, server)
        publish_quality(report, source.manifest_path, manifest)
        print_verification(report, recipe.gguf.limits)
        recommended = report.recommended
    _print_next_step(source.files, recommended)


def _inspect(recipe: Recipe, dry_run: bool) -> ExportSource:
    """Find out about the model and its chat; a `publish` that was cut off is finished first."""
    output_dir = _get_output_dir(recipe)
    manifest_path = output_dir / "gguf" / MANIFEST
    if not dry_run:
        recover(manifest_path)
    levels = [recipe.gguf.outtype, *(level.lower() for level in recipe.gguf.quantization_levels)]
    files = {level: manifest_path.with_name(f"model-{level}.gguf") for level in levels}
    training = read_training_manifest(output_dir / MANIFEST)
    kwargs, ends = recipe.tokenizer.chat_template_kwargs or {}, get_turn_ends(output_dir, training)
    model = TrainedModelInfo(output_dir, ends, kwargs, recipe.model, recipe.base_dir)
    defaults = _get_model_defaults(recipe, model, training)
    modelfiles = {
        path.with_name(f"Modelfile.{level}"): format_modelfile(path.name, defaults) for level, path in files.items()
    }
    return ExportSource(model, training, manifest_path, files, modelfiles)


def _get_output_dir(recipe: Recipe) -> Path:
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    if output_dir.exists() and not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is a file; name the folder that training wrote")
    return output_dir


def _get_model_defaults(recipe: Recipe, model: TrainedModelInfo, training: dict[str, Any]) -> ModelDefaults:
    """What the Modelfiles say: the recipe's values, else what is known of the trained chat."""
    section, output_dir = recipe.gguf, model.output_dir
    # impruver-chat's section, or a mapping where that is not installed.
    chat = recipe.chat if isinstance(recipe.chat, dict) else vars(recipe.chat) if recipe.chat is not None else {}
    system = section.system_prompt or get_system_prompt(chat, training)
    warn_about_dropped_characters(system)
    num_ctx = section.num_ctx or get_num_ctx(output_dir, training)
    parameters = get_sampling_parameters(output_dir, chat) | section.parameters
    return ModelDefaults(model.turn_ends, num_ctx, parameters, system, build_ollama_template(output_dir))


def _plan(
    recipe: Recipe, source: ExportSource, paths: LlamaCppPaths, dry_run: bool, overwrite: bool, only_quantize: bool
) -> ArtifactPlan:
    """Plan the files, and check what can be checked before they are made."""
    (_, unquantized), *levels = source.files.items()
    if only_quantize:
        conversion = plan_existing_file(unquantized)
    else:
        conversion = _plan_conversion(recipe, source.model.output_dir, paths, dry_run)
    for level, _ in levels:
        check_rows_fit(level, conversion.shapes)
    # A llama-quantize that a flag names, or that goes with llama.cpp's script; None: cyllama's library.
    quantizer = find_quantizer(paths) if paths.quantizer or conversion.by_script else None
    previous = read_previous_outputs(source.manifest_path, overwrite)
    replaced = [*source.files.values()][1 if conversion.exists else 0 :]
    quality = source.manifest_path.with_name(QUALITY_FILE)
    check_replaceable([*replaced, *source.modelfiles, quality], source.manifest_path, overwrite)
    return ArtifactPlan(source.files, source.modelfiles, conversion, quantizer, previous)


def _plan_conversion(recipe: Recipe, output_dir: Path, paths: LlamaCppPaths, dry_run: bool) -> ConversionPlan:
    """Plan the conversion of the model in output_dir, or in a dry run before training of the one to be."""
    section, model_dir = recipe.model, output_dir
    if dry_run and not has_model(output_dir):
        print_result(f"{output_dir} holds no model yet: impruver-train makes it")
        checkpoint, model_dir = plan_checkpoint(section, recipe.tokenizer.name, recipe.lora, recipe.base_dir)
    else:
        checkpoint = read_checkpoint(output_dir, section.name, recipe.base_dir, dry_run)
    return plan_conversion(checkpoint, model_dir, paths, recipe.gguf.outtype)


def _check_free_space(plan: ArtifactPlan) -> None:
    needed = plan.conversion.scratch_bytes + sum(plan.estimate_sizes().values())
    check_free_space(plan.folder, needed + RESERVED_BYTES)


def _build_manifest(recipe: Recipe, source: ExportSource, conversion: ConversionPlan) -> dict[str, Any]:
    """Describe what is made, from what; the outputs come later."""
    manifest = build_manifest("impruver-gguf", resolve_recipe(recipe, absolute=True))
    training = source.training
    manifest |= {name: training[name] for name in ("tokenizer", "template", "end_of_turn") if name in training}
    weights = sorted(path for path in source.model.output_dir.glob("*.safetensors") if path.is_file())
    manifest["inputs"] = [describe_file(path) for path in weights]
    manifest["counts"] = {"tensors": len(conversion.shapes)}
    return manifest


def _print_plan(plan: ArtifactPlan) -> None:
    print_result(plan.conversion.description)
    _check_free_space(plan)
    sizes = plan.estimate_sizes()
    if not any(sizes.values()):
        print_result("how large its files will be is told once its weights are on this disk")
        return
    rows = [(path.name, f"{size / 1e6:,.1f}") for path, size in sizes.items()]
    print_result(format_table(("FILE", "MB, ABOUT"), rows))
    print_result(f"nothing was written; without --dry_run these files and their Modelfiles come into {plan.folder}")


def _print_files(files: dict[str, Path]) -> None:
    rows = [(path.name, f"{path.stat().st_size / 1e6:,.1f}") for path in files.values()]
    print_result(format_table(("FILE", "MB"), rows))


def _print_next_step(files: dict[str, Path], recommended: str | None) -> None:
    """Print the last line; without a recommended level the first one is named."""
    level = recommended or next(iter([*files][1:]), next(iter(files)))
    folder = files[level].parent
    print_result(
        f"wrote {len(files)} GGUF files and their Modelfiles to {folder}; next: "
        f"ollama create NAME -f {folder / f'Modelfile.{level}'}"
    )
