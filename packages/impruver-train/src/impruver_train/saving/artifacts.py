"""What training leaves in output_dir: weights, tokenizer, configurations, held-out rows, and the manifest last."""

import shlex
import shutil
import tempfile
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from impruver_core.chat_template.selection import get_template
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.jsonl import read_rows, write_rows
from impruver_core.io.manifest import build_manifest, describe_file, publish
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

from impruver_train.checkpointing.output_dir import MANIFEST, made
from impruver_train.saving import transformers4_compat as older

HELD_OUT = 64
VOCABULARY_FILES = ("tokenizer.model", "tekken.json")  # transformers no longer saves them; GGUF needs them
CARRIED = ("max_tokens_count",)  # of the data's manifest


def save_model(
    model: Any, weights: dict[str, Any] | None, output_dir: Path, config: Any, vocabulary: int, new_ids: list[int]
) -> None:
    """Weights in safetensors with config.json and generation_config.json; beside an adapter those of its base.

    `weights`: those of the model by name where it is spread over processes, else None.
    """
    if hasattr(model, "peft_config"):
        save_adapter(model, weights, output_dir, new_ids)
        config.get_text_config().vocab_size = vocabulary
        config.save_pretrained(output_dir)
        model.get_base_model().generation_config.save_pretrained(output_dir)
    else:
        model.save_pretrained(output_dir, state_dict=weights)
    older.widen_config(output_dir / "config.json", type(config))
    for path in output_dir.glob("*.safetensors"):  # written for the owner alone, unlike all the rest
        shutil.copymode(output_dir / "config.json", path)


def save_adapter(model: Any, weights: dict[str, Any] | None, output_dir: Path, new_ids: list[int]) -> None:
    """peft's files, by way of a folder of their own: peft would write a model card over a README.md."""
    with tempfile.TemporaryDirectory(prefix=".adapter.", dir=output_dir) as folder:
        # The rows of new tokens are saved by themselves; peft would add both whole embedding matrices.
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False if new_ids else "auto")
        for path in Path(folder).glob("adapter_*"):
            path.replace(output_dir / path.name)


def save_tokenizer(tokenizer: Any, source: str | None, output_dir: Path) -> None:
    """The tokenizer with the template it was trained with, and the vocabulary file of `source` (folder or hub id)."""
    with suppress(ImpruverError):  # text alone needs no template
        tokenizer.chat_template = tokenizer.chat_template or get_template(tokenizer)
    tokenizer.save_pretrained(output_dir)
    older.widen_tokenizer(output_dir / "tokenizer_config.json")
    for name in VOCABULARY_FILES if source else ():
        found = base_file(source, name)
        if found is not None:
            shutil.copyfile(found, output_dir / name)


def base_file(source: str, name: str) -> str | None:
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


def describe_inputs(
    inputs: dict[str, Path], facts: dict[str, Any], digests: dict[str, str], base: str | None
) -> list[dict[str, Any]]:
    """The manifest's inputs: token files and a local base, each with the hash that tells a changed one."""
    described = [describe_file(path, rows=facts[name].rows) | {"role": name} for name, path in inputs.items()]
    if "base" in digests:
        described.append({"path": base, "role": "base"})
    return [part | {"sha256": digests[part["role"]]} for part in described]


def write_manifest(
    output_dir: Path,
    recipe: dict[str, Any],
    tokenizer: Any,
    inputs: list[dict[str, Any]],
    data_manifest: dict[str, Any],
    more: dict[str, Any],
) -> None:
    """impruver.json, last of all: its presence means that the rest is whole. `more`: fields beside the usual ones."""
    files = sorted(path for path in made(output_dir) if path.is_file())
    carried = {name: data_manifest[name] for name in CARRIED if name in data_manifest}
    manifest = build_manifest("impruver-train", recipe) | carried | more
    manifest["tokenizer"] = {"fingerprint": compute_fingerprint(tokenizer), "vocab_size": len(tokenizer)}
    manifest["template"] = {"fingerprint": compute_template_fingerprint(tokenizer)}
    manifest["inputs"] = inputs
    manifest["outputs"] = [
        describe_file(path, beside=output_dir) for path in files if not path.name.startswith(MANIFEST)
    ]
    publish(output_dir / MANIFEST, {}, manifest)


def last_line(output_dir: Path, adapter: bool) -> str:
    """What was written, and the commands that come next."""
    where = f"--output_dir {shlex.quote(str(output_dir))}"
    return (
        f"wrote {'the adapter' if adapter else 'the model'} to {output_dir}; next: impruver-chat {where}, "
        f"impruver-gguf {where}"
    )
