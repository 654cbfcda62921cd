"""What training leaves in output_dir: weights, tokenizer, configurations, held-out rows, and the manifest last."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.chat_template.selection import get_template
from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, sync_file
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import build_manifest, describe_file, publish, read_manifest
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

from impruver_train.checkpointing.output_dir import ADAPTER, IMATRIX, MANIFEST, list_outputs, tidy_finished_run
from impruver_train.planning.plan import RunInputs, TrainingData, TrainingPlan
from impruver_train.planning.run_estimate import build_counts
from impruver_train.saving.html_report import write_report
from impruver_train.saving.imatrix import make_imatrix
from impruver_train.saving.transformers4_compat import widen_config, widen_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY_FILES = ("tokenizer.model", "tekken.json")  # transformers no longer saves them; GGUF needs them
SETS = ("target_modules", "exclude_modules")  # of an adapter's configuration
CARRIED = ("max_tokens_count",)  # of the data's manifest


def write_outputs(
    inputs: RunInputs,
    plan: TrainingPlan,
    data: TrainingData,
    model: PreTrainedModel,
    weights: dict[str, Any] | None,
    vocabulary_files: dict[str, bytes],
    steps: int,
) -> None:
    """Writes what a finished run leaves, the manifest last; what only an unfinished one needs goes.

    `weights`: the model's by name where it is spread over processes. `vocabulary_files`: the tokenizer's, read before
    training, as are the rows that are held out: hours later there may be others, or none.
    """
    output_dir = inputs.output_dir
    save_model(model, weights, output_dir, plan)
    save_tokenizer(plan.tokenizer, vocabulary_files, output_dir)
    with atomic_write(output_dir / "heldout.jsonl") as file:
        write_rows(file, data.held_out)
    if count := inputs.recipe["trainer"].get("imatrix_rows"):
        if weights is None:
            make_imatrix(output_dir / IMATRIX, model, count, plan, data, inputs.files["train"].path.name)
        else:
            warn("trainer.imatrix_rows: the weights are spread over processes; run impruver-train --imatrix_only")
    counts = build_counts(plan.size, data.stats["train"], steps)
    write_report(output_dir, inputs.recipe, counts)
    write_manifest(inputs, plan, data, {"counts": counts, "end_of_turn": data.end_of_turn})
    tidy_finished_run(output_dir)


def save_model(model: PreTrainedModel, weights: dict[str, Any] | None, output_dir: Path, plan: TrainingPlan) -> None:
    """Weights in safetensors with config.json and generation_config.json; beside an adapter those of its base."""
    config = plan.config
    if hasattr(model, "peft_config"):
        _save_adapter(model, weights, output_dir, plan.new_ids)
        config.get_text_config().vocab_size = plan.vocabulary
        config.save_pretrained(output_dir)
        model.get_base_model().generation_config.save_pretrained(output_dir)
    else:
        model.save_pretrained(output_dir, state_dict=weights)
    widen_config(output_dir / "config.json", type(config))
    for path in output_dir.glob("*.safetensors"):  # written for the owner alone, unlike all the rest
        shutil.copymode(output_dir / "config.json", path)


def _save_adapter(model: PreTrainedModel, weights: dict[str, Any] | None, output_dir: Path, new_ids: list[int]) -> None:
    """peft's files, by way of a folder of their own: peft would write a model card over a README.md."""
    with tempfile.TemporaryDirectory(prefix=ADAPTER, dir=output_dir) as folder:
        # The rows of new tokens are saved by themselves; peft would add both whole embedding matrices.
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False if new_ids else "auto")
        _sort_sets(Path(folder) / "adapter_config.json")
        for path in Path(folder).glob("adapter_*"):
            path.replace(output_dir / path.name)


def _sort_sets(path: Path) -> None:
    """Sorts what peft holds as sets, which it writes in another order each time: equal runs leave equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {name: sorted(config[name]) for name in SETS if isinstance(config.get(name), list)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, vocabulary_files: dict[str, bytes], output_dir: Path) -> None:
    """The tokenizer with the template it was trained with, and its vocabulary files."""
    with suppress(ImpruverError):  # text alone needs no template
        tokenizer.chat_template = tokenizer.chat_template or get_template(tokenizer)
    tokenizer.save_pretrained(output_dir)
    widen_tokenizer(output_dir / "tokenizer_config.json")
    for name, content in vocabulary_files.items():
        with atomic_write(output_dir / name, "wb") as file:
            file.write(content)


def read_vocabulary_files(source: str | None) -> dict[str, bytes]:
    """The vocabulary files of a tokenizer by name; `source`: its folder or hub id."""
    paths = {name: _find_base_file(source, name) for name in VOCABULARY_FILES if source}
    return {name: Path(path).read_bytes() for name, path in paths.items() if path is not None}


def _find_base_file(source: str, name: str) -> str | None:
    """The path of a file of the base, downloaded if need be; None if it has none."""
    from transformers.utils import cached_file

    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # not to be had offline: the base had to be in the cache, and with it its own files
        return None


def write_manifest(inputs: RunInputs, plan: TrainingPlan, data: TrainingData, more: dict[str, Any]) -> None:
    """impruver.json, last of all: its presence means that the rest is complete. `more`: further fields."""
    output_dir, tokenizer = inputs.output_dir, plan.tokenizer
    files = sorted(path for path in list_outputs(output_dir) if path.is_file())
    carried = {name: data.manifest[name] for name in CARRIED if name in data.manifest}
    manifest = build_manifest("impruver-train", inputs.recipe) | carried | more
    manifest["tokenizer"] = {"fingerprint": compute_fingerprint(tokenizer), "vocab_size": len(tokenizer)}
    manifest["template"] = {"fingerprint": compute_template_fingerprint(tokenizer)}
    manifest["inputs"] = _describe_inputs(inputs, data, plan.model.name)
    for path in files:  # the manifest declares them complete
        sync_file(path)
    manifest["outputs"] = [
        describe_file(path, beside=output_dir, checksum=True) for path in files if not path.name.startswith(MANIFEST)
    ]
    publish(output_dir / MANIFEST, {}, manifest)


def add_imatrix_to_outputs(
    inputs: RunInputs, plan: TrainingPlan, data: TrainingData, model: PreTrainedModel, count: int
) -> bool:
    """Collects the importance matrix of a finished run, an output of it from then on; False where it can't be."""
    path, manifest_path = inputs.output_dir / IMATRIX, inputs.output_dir / MANIFEST
    manifest = read_manifest(manifest_path)
    others = [entry for entry in manifest["outputs"] if entry["path"] != IMATRIX]
    publish(manifest_path, {}, manifest | {"outputs": others})  # should this be cut off, the run is whole without it
    if not make_imatrix(path, model, count, plan, data, inputs.files["train"].path.name):
        return False
    entry = describe_file(path, beside=inputs.output_dir, checksum=True)
    publish(manifest_path, {}, manifest | {"outputs": [*others, entry]})
    return True


def _describe_inputs(inputs: RunInputs, data: TrainingData, base: str | None) -> list[dict[str, Any]]:
    """The manifest's inputs as they were hashed: token files and a local base, each with that hash."""
    described = [
        {"path": str(path), "bytes": inputs.sizes[name], "rows": data.stats[name].rows, "role": name}
        for name, path in inputs.files.items()
    ]
    for role, path in (("base", base), ("adapter", str(inputs.adapter.folder) if inputs.adapter else None)):
        if role in inputs.digests:
            described.append({"path": path, "role": role})
    return [entry | {"sha256": inputs.digests[entry["role"]]} for entry in described]


def format_next_commands(output_dir: Path, adapter: bool) -> str:
    """What was written, and the commands that come next."""
    flag = f"--output_dir {shlex.quote(str(output_dir))}"
    return (
        f"wrote {'the adapter' if adapter else 'the model'} to {output_dir}; next: impruver-chat {flag}, "
        f"impruver-gguf {flag}"
    )
