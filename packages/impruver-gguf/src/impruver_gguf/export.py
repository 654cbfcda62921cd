"""The steps of `impruver-gguf`: inspect, plan, convert, quantize, publish, verify."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_free_space, format_size, make_folder
from impruver_core.io.integrity import checking_unchanged, read_file_states
from impruver_core.io.locks import lock_folder_alone, lock_output_alone, share_folder
from impruver_core.io.manifest import (
    build_manifest,
    check_as_written,
    check_maker,
    check_replaceable,
    describe_file,
    normalize_path,
    publish,
    read_manifest,
    recover,
)
from impruver_core.io.model_files import check_ordinary_files
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_gguf.conversion import artifacts, plan
from impruver_gguf.conversion.llama_cpp_tools import LlamaCppPaths, find_quantizer, find_server
from impruver_gguf.conversion.merged_model import check_target, plan_merged_model, put_in_place, write_merged_model
from impruver_gguf.ollama.modelfile import (
    ModelDefaults,
    find_model_defaults,
    format_modelfile,
    get_turn_ends,
    read_training_manifest,
)
from impruver_gguf.quantization.imatrix_choice import plan_matrix
from impruver_gguf.quantization.quant_types import check_not_quantized, check_rows_fit
from impruver_gguf.verification.heldout import TrainedModelInfo, VerificationInputs, read_inputs
from impruver_gguf.verification.measure import measure_divergences
from impruver_gguf.verification.verify import print_verification, publish_quality, verify
from impruver_gguf.weights.checkpoint import SourceCheckpoint, check_mergeable, has_model, read_checkpoint

MANIFEST = "impruver.json"
CARRIED = ("tokenizer", "template", "end_of_turn")  # from training's manifest
RESERVED_BYTES = 32 << 20  # left free on the disk, since sizes are estimates


@dataclass(frozen=True)
class ExportSource:
    """The trained model, and the files to be made of it."""

    model: TrainedModelInfo
    training: Mapping[str, Any]  # the manifest that training left
    manifest_path: Path
    files: Mapping[str, Path]  # level → file, the unquantized one first
    modelfiles: Mapping[Path, str]  # Modelfile → its text
    defaults: ModelDefaults  # what these say


def export(
    recipe: Recipe, paths: LlamaCppPaths, *, dry_run: bool, overwrite: bool, only_quantize: bool, verified: bool
) -> None:
    """Make output_dir/gguf of the model in output_dir; the keywords are the command's flags."""
    output_dir = _find_output_dir(recipe)
    _check_gguf_folder(output_dir / "gguf")
    with nullcontext() if dry_run else _locking_folders(output_dir):
        _export(recipe, paths, dry_run, overwrite, only_quantize, verified)


def export_merged(recipe: Recipe, folder: str, *, dry_run: bool, overwrite: bool) -> None:
    """Write the model in output_dir, its adapter merged, to `folder` as 16-bit safetensors files."""
    output_dir, target = _find_output_dir(recipe), normalize_path(Path(folder).expanduser())
    check_ordinary_files(output_dir)
    try:
        checkpoint, model_dir = _find_checkpoint(recipe, output_dir, dry_run)
    except plan.UnknownModelError as error:
        print_result(f"how large the merged model will be can't be told yet: {error}")
        return
    check_target(target, checkpoint, output_dir, overwrite)
    if not checkpoint.tensors:
        if checkpoint.adapter:
            check_mergeable(checkpoint.adapter)
        print_result("how large the merged model will be is told once the base's weights are on this disk")
        return
    model = plan_merged_model(checkpoint, model_dir)
    needed = model.size + RESERVED_BYTES
    check_free_space(target.parent, needed)
    dtypes = ", ".join(sorted(set(model.dtypes.values())))
    what = f"{len(model.tensors)} tensors ({dtypes}) in {len(model.shards)} files, {format_size(model.size)}"
    if dry_run:
        print_result(f"{what}; nothing was written; without --dry_run they come into {target}")
        return
    check_as_written(checkpoint.states, output_dir / MANIFEST)
    make_folder(target.parent)
    with (
        _share_output_dir(output_dir),
        lock_output_alone(target, f"another impruver-gguf writes to {target}; wait until it is done"),
    ):
        with checking_unchanged(checkpoint.states):
            written = write_merged_model(model, target)
        training = read_training_manifest(output_dir / MANIFEST)
        manifest = build_manifest("impruver-gguf", resolve_recipe(recipe, absolute=True))
        manifest |= {name: training[name] for name in (*CARRIED, "counts") if name in training}
        manifest["inputs"] = [describe_file(path) for path in checkpoint.states if path.suffix == ".safetensors"]
        paths = sorted(path for path in written.iterdir() if path.is_file())
        manifest["outputs"] = [describe_file(path, beside=written, checksum=True) for path in paths]
        publish(written / MANIFEST, {}, manifest)
        put_in_place(written, target)
    print_result(f"wrote {what} to {target}")


def _share_output_dir(output_dir: Path) -> AbstractContextManager[None]:
    """Keeps a training from its weights."""
    return share_folder(output_dir, f"output_dir: impruver-train is at work in {output_dir}; wait until it is done")


def _check_gguf_folder(folder: Path) -> None:
    """ImpruverError where what is to be written, and removed, in `folder` would be in another one, or another tool's.

    A model's folder may be a stranger's: a link in it may lead anywhere. One to an empty folder, or to one that was
    written here before, may be the user's own, to another disk.
    """
    if folder.is_symlink() and not _is_free(folder):
        raise ImpruverError(
            f"{folder}: is a link to {folder.readlink()}, no empty folder and not one that impruver-gguf wrote: "
            "remove the link"
        )
    if folder.exists() and not folder.is_dir():
        raise ImpruverError(f"{folder}: is a file; a folder is written here: move it away")
    check_maker(folder / MANIFEST, "impruver-gguf")


def _is_free(folder: Path) -> bool:
    """Whether a folder holds nothing, hidden remains of a run aside, or what impruver-gguf wrote."""
    if not folder.is_dir():
        return False
    if all(path.name.startswith(".") for path in folder.iterdir()):
        return True
    with suppress(ImpruverError):
        return (read_manifest(folder / MANIFEST) or {}).get("tool") == "impruver-gguf"
    return False


@contextmanager
def _locking_folders(output_dir: Path) -> Iterator[None]:
    """Keeps other exports from the folder, and a training from its weights."""
    if not output_dir.is_dir():  # there is nothing to export, as will be said
        yield
        return
    folder = output_dir / "gguf"
    with (
        _share_output_dir(output_dir),
        lock_folder_alone(folder, f"another impruver-gguf is at work in {folder}; wait until it is done"),
    ):
        yield


def _export(
    recipe: Recipe, paths: LlamaCppPaths, dry_run: bool, overwrite: bool, only_quantize: bool, verified: bool
) -> None:
    source = _inspect(recipe, dry_run)
    try:
        planned = _plan(recipe, source, paths, dry_run, overwrite, only_quantize, verified)
    except plan.UnknownModelError as error:
        print_result(f"whether it will convert can't be told yet: {error}")
        return
    defaults = source.defaults
    log_info(f"num_ctx of the Modelfiles: {defaults.num_ctx} tokens ({defaults.num_ctx_reason})")
    if not dry_run:
        check_as_written(planned.conversion.inputs, source.model.output_dir / MANIFEST)
    inputs = read_inputs(source.model) if verified and (has_model(source.model.output_dir) or not dry_run) else None
    if dry_run:
        _print_plan(planned)
        return
    log_info(planned.conversion.description)
    planned = planned if overwrite else artifacts.reuse_outputs(planned)
    _check_free_space(planned)
    manifest = _build_manifest(recipe, source, planned.conversion)
    compare = partial(measure_divergences, inputs) if inputs else None
    with artifacts.staged_outputs(planned) as staged, checking_unchanged(planned.conversion.inputs):
        artifacts.convert(planned, staged)
        entries = artifacts.quantize_levels(planned, staged, compare)
        artifacts.write_modelfiles(planned, staged)
        manifest["outputs"] = artifacts.describe_outputs(planned, staged, entries)
    # An earlier proof is of none of these files.
    source.manifest_path.with_name(artifacts.QUALITY_FILE).unlink(missing_ok=True)
    publish(source.manifest_path, staged, manifest)
    _print_sizes({path: path.stat().st_size for path in source.files.values()}, "MB")
    recommended = _verify(recipe, source, inputs, paths, manifest) if inputs else None
    level = recommended or next(iter([*source.files][1:]), next(iter(source.files)))
    modelfile = source.files[level].with_name(f"Modelfile.{level}")
    print_result(
        f"wrote {len(source.files)} GGUF files and their Modelfiles to {modelfile.parent}; next: "
        f"ollama create NAME -f {modelfile}"
    )


def _verify(
    recipe: Recipe, source: ExportSource, inputs: VerificationInputs, paths: LlamaCppPaths, manifest: dict[str, Any]
) -> str | None:
    """Verify the files, write what was found, and say which level is recommended."""
    report = verify(source.files, inputs, recipe.gguf.limits, find_server(paths))
    outputs = {entry["path"]: entry for entry in manifest["outputs"]}
    for row in report.rows:
        row["imatrix"] = outputs.get(source.files[row["level"]].name, {}).get("with_imatrix", False)
    publish_quality(report, source.manifest_path, manifest)
    print_verification(report, recipe.gguf.limits)
    return report.recommended


def _inspect(recipe: Recipe, dry_run: bool) -> ExportSource:
    """Find out about the model and its chat; a `publish` that was cut off is finished first."""
    output_dir = _find_output_dir(recipe)
    manifest_path = output_dir / "gguf" / MANIFEST
    check_ordinary_files(output_dir)
    if not dry_run:
        artifacts.remove_leftovers(manifest_path)
        recover(manifest_path, artifacts.list_possible_outputs(manifest_path.parent))
    levels = [recipe.gguf.outtype, *(level.lower() for level in recipe.gguf.quantization_levels)]
    files = {level: manifest_path.with_name(f"model-{level}.gguf") for level in levels}
    training = read_training_manifest(output_dir / MANIFEST)
    kwargs, ends = recipe.tokenizer.chat_template_kwargs or {}, get_turn_ends(output_dir, training)
    model = TrainedModelInfo(output_dir, ends, kwargs, recipe.model, recipe.base_dir)
    # The chat section is impruver-chat's, or a mapping where that is not installed.
    chat = recipe.chat if isinstance(recipe.chat, dict) else vars(recipe.chat) if recipe.chat is not None else {}
    defaults = find_model_defaults(output_dir, ends, training, recipe.gguf, chat)
    modelfiles = {
        path.with_name(f"Modelfile.{level}"): format_modelfile(path.name, defaults) for level, path in files.items()
    }
    return ExportSource(model, training, manifest_path, files, modelfiles, defaults)


def _find_output_dir(recipe: Recipe) -> Path:
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    if output_dir.exists() and not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is a file; name the folder that training wrote")
    return output_dir


def _plan(
    recipe: Recipe,
    source: ExportSource,
    paths: LlamaCppPaths,
    dry_run: bool,
    overwrite: bool,
    only_quantize: bool,
    verified: bool,
) -> artifacts.ArtifactPlan:
    """Plan the files, and check what can be checked before they are made."""
    (_, unquantized), *levels = source.files.items()
    if only_quantize:
        conversion = plan.plan_existing_file(unquantized)
    else:
        conversion = _plan_conversion(recipe, source.model.output_dir, paths, dry_run)
    for level, _ in levels:
        check_rows_fit(level, conversion.shapes)
        check_not_quantized(level, conversion.encodings)
    # A llama-quantize that a flag names, or that goes with llama.cpp's script; None: cyllama's library.
    quantizer = find_quantizer(paths) if paths.quantizer or conversion.by_script else None
    previous = artifacts.read_previous_outputs(source.manifest_path, overwrite)
    replaced = [*source.files.values()][1 if conversion.exists else 0 :]
    quality = source.manifest_path.with_name(artifacts.QUALITY_FILE)
    names, folder, matrix = [level for level, _ in levels], source.model.output_dir, None
    if has_model(folder) or not dry_run:  # before training there is no matrix yet
        matrix = plan_matrix(recipe.gguf.imatrix, recipe.base_dir, folder, names, quantizer, verified)
    if matrix is not None:
        conversion = replace(conversion, inputs={**conversion.inputs, **read_file_states([matrix.source])})
        replaced.append(matrix.target)
    check_replaceable([*replaced, *source.modelfiles, quality], source.manifest_path, overwrite)
    return artifacts.ArtifactPlan(source.files, source.modelfiles, conversion, quantizer, previous, matrix)


def _plan_conversion(recipe: Recipe, output_dir: Path, paths: LlamaCppPaths, dry_run: bool) -> plan.ConversionPlan:
    """Plan the conversion of the model in output_dir, or in a dry run before training of the one to be."""
    checkpoint, folder = _find_checkpoint(recipe, output_dir, dry_run)
    return plan.plan_conversion(checkpoint, folder, paths, recipe.gguf.outtype)


def _find_checkpoint(recipe: Recipe, output_dir: Path, dry_run: bool) -> tuple[SourceCheckpoint, Path]:
    """The model in output_dir, or in a dry run before training the one to be; and the folder of its tokenizer."""
    section = recipe.model
    if dry_run and not has_model(output_dir):
        print_result(f"{output_dir} holds no model yet: impruver-train makes it")
        return plan.plan_checkpoint(section, recipe.tokenizer.name, recipe.lora, recipe.base_dir)
    return read_checkpoint(output_dir, section.name, recipe.base_dir, dry_run), output_dir


def _check_free_space(planned: artifacts.ArtifactPlan) -> None:
    needed = planned.conversion.scratch_bytes + sum(planned.estimate_sizes().values()) + planned.estimate_candidates()
    check_free_space(planned.source.parent, needed + RESERVED_BYTES)


def _build_manifest(recipe: Recipe, source: ExportSource, conversion: plan.ConversionPlan) -> dict[str, Any]:
    """Describe what is made, from what; the outputs come later."""
    manifest, training = build_manifest("impruver-gguf", resolve_recipe(recipe, absolute=True)), source.training
    manifest |= {name: training[name] for name in CARRIED if name in training}
    weights = sorted(path for path in source.model.output_dir.glob("*.safetensors") if path.is_file())
    manifest["inputs"] = [describe_file(path) for path in weights]
    manifest["counts"] = {"tensors": len(conversion.shapes)}
    manifest["num_ctx"] = source.defaults.num_ctx
    return manifest


def _print_plan(planned: artifacts.ArtifactPlan) -> None:
    print_result(planned.conversion.description)
    _check_free_space(planned)
    sizes = planned.estimate_sizes()
    if not any(sizes.values()):
        print_result("how large its files will be is told once its weights are on this disk")
        return
    _print_sizes(sizes, "MB, ABOUT")
    folder = planned.source.parent
    print_result(f"nothing was written; without --dry_run these files and their Modelfiles come into {folder}")


def _print_sizes(sizes: Mapping[Path, int], unit: str) -> None:
    print_result(format_table(("FILE", unit), [(path.name, f"{size / 1e6:,.1f}") for path, size in sizes.items()]))
