"""What training leaves in output_dir: weights, tokenizer, configurations, held-out rows, and the manifest last."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.chat_template.selection import get_template
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.jsonl import read_rows, write_rows
from impruver_core.io.manifest import build_manifest, describe_file, publish
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

from impruver_train.checkpointing.checkpoints import remove_stopped_checkpoints
from impruver_train.checkpointing.output_dir import MANIFEST, UNFINISHED, list_outputs
from impruver_train.planning.plan import RunInputs, TrainingData, TrainingPlan
from impruver_train.planning.run_estimate import build_counts
from impruver_train.saving.html_report import write_report
from impruver_train.saving.transformers4_compat import widen_config, widen_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT = 64
VOCABULARY_FILES = ("tokenizer.model", "tekken.json")  # transformers no longer saves them; GGUF needs them
CARRIED = ("max_tokens_count",)  # of the data's manifest


def write_outputs(
    inputs: RunInputs,
    plan: TrainingPlan,
    data: TrainingData,
    model: PreTrainedModel,
    weights: dict[str, Any] | None,
    tokenizer_source: str | None,
    steps: int,
) -> None:
    """Writes what a finished run leaves, the manifest last; what only an unfinished one needs goes.

    Args:
        weights: those of the model by name where it is spread over processes, else None.
        tokenizer_source: the folder or hub id that the tokenizer came from.
    """
    output_dir = inputs.output_dir
    save_model(model, weights, output_dir, plan)
    save_tokenizer(plan.tokenizer, tokenizer_source, output_dir)
    save_held_out(inputs.files.get("val"), output_dir)
    counts = build_counts(plan.size, data.stats["train"], steps)
    write_report(output_dir, inputs.recipe, counts)
    write_manifest(inputs, plan, data, {"counts": counts, "end_of_turn": data.end_of_turn})
    (output_dir / UNFINISHED).unlink(missing_ok=True)
    remove_stopped_checkpoints(output_dir)


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
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=output_dir) as folder:
        # The rows of new tokens are saved by themselves; peft would add both whole embedding matrices.
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False if new_ids else "auto")
        for path in Path(folder).glob("adapter_*"):
            path.replace(output_dir / path.name)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str | None, output_dir: Path) -> None:
    """The tokenizer with the template it was trained with, and the vocabulary file of `source` (folder or hub id)."""
    with suppress(ImpruverError):  # text alone needs no template
        tokenizer.chat_template = tokenizer.chat_template or get_template(tokenizer)
    tokenizer.save_pretrained(output_dir)
    widen_tokenizer(output_dir / "tokenizer_config.json")
    for name in VOCABULARY_FILES if source else ():
        path = _find_base_file(source, name)
        if path is not None:
            shutil.copyfile(path, output_dir / name)


def _find_base_file(source: str, name: str) -> str | None:
    """The path of a file of the base, downloaded if need be; None if it has none."""
    from transformers.utils import cached_file

    try:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # not to be had offline: the base had to be in the cache, and with it its own files
        return None


def save_held_out(val: Path | None, output_dir: Path) -> None:
    """Copies the first rows of `val` that have messages or text into heldout.jsonl, whole."""
    rows = (row for row in (read_rows(val) if val else ()) if "messages" in row or "text" in row)
    with atomic_write(output_dir / "heldout.jsonl") as file:
        write_rows(file, islice(rows, HELD_OUT))


def write_manifest(inputs: RunInputs, plan: TrainingPlan, data: TrainingData, more: dict[str, Any]) -> None:
    """impruver.json, last of all: its presence means that the rest is complete. `more`: further fields."""
    output_dir, tokenizer = inputs.output_dir, plan.tokenizer
    files = sorted(path for path in list_outputs(output_dir) if path.is_file())
    carried = {name: data.manifest[name] for name in CARRIED if name in data.manifest}
    manifest = build_manifest("impruver-train", inputs.recipe) | carried | more
    manifest["tokenizer"] = {"fingerprint": compute_fingerprint(tokenizer), "vocab_size": len(tokenizer)}
    manifest["template"] = {"fingerprint": compute_template_fingerprint(tokenizer)}
    manifest["inputs"] = _describe_inputs(inputs, data, plan.model.name)
    manifest["outputs"] = [
        describe_file(path, beside=output_dir) for path in files if not path.name.startswith(MANIFEST)
    ]
    publish(output_dir / MANIFEST, {}, manifest)


def _describe_inputs(inputs: RunInputs, data: TrainingData, base: str | None) -> list[dict[str, Any]]:
    """The manifest's inputs: token files and a local base, each with the hash by which a changed one is noticed."""
    described = [
        describe_file(path, rows=data.stats[name].rows) | {"role": name} for name, path in inputs.files.items()
    ]
    if "base" in inputs.digests:
        described.append({"path": base, "role": "base"})
    return [entry | {"sha256": inputs.digests[entry["role"]]} for entry in described]


def format_next_commands(output_dir: Path, adapter: bool) -> str:
    """What was written, and the commands that come next."""
    flag = f"--output_dir {shlex.quote(str(output_dir))}"
    return (
        f"wrote {'the adapter' if adapter else 'the model'} to {output_dir}; next: impruver-chat {flag}, "
        f"impruver-gguf {flag}"
    )
