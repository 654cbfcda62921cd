"""Asks parity whether the unquantized file computes what the merged model does in transformers, where that is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from impruver_core.cli.console import log_info, warn
from impruver_core.io.disk_space import format_size

from impruver_gguf.gguf_reader import tensor_types
from impruver_gguf.verification.heldout import HeldOut
from impruver_gguf.verification.parity_worker import SLACK
from impruver_gguf.verification.types import Proof, Trained
from impruver_gguf.weights.checkpoint import has_model, read_model
from impruver_gguf.weights.peft_adapter import Adapter
from impruver_gguf.worker_process import last_words, lines_of

TYPES = {"f16": "float16", "f32": "float16", "bf16": "bfloat16"}  # what llama.cpp rounds to, its cache in float16


MOST_ROWS, MOST_POSITIONS = 4, 256


GROWTH = 1.3  # what torch takes beside the weights in float32


def has_torch() -> bool:
    """Whether torch and transformers can be imported; nothing is imported."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def other_than_merged(outtype: str, path: Path, proof: Proof, held: HeldOut, trained: Trained) -> str | None:
    """What the file at `path` computes otherwise than the merged model; None where nothing, or none can be had."""
    rows = [row for row in held.measured if len(row.learned) <= MOST_POSITIONS][:MOST_ROWS]
    if outtype not in TYPES or not rows or not has_torch() or not has_model(trained.output_dir):
        return None
    task = _task(outtype, path, zip(held.asked, proof.answers, strict=False), trained)
    task["rows"] = [{"ids": row.ids, "wanted": row.learned} for row in rows]
    needed, free = int(GROWTH * 32 / proof.rows[0]["bits_per_weight"] * path.stat().st_size), _free_memory()
    if free is not None and needed > free:
        log_info(
            f"not compared with transformers: that takes {format_size(needed)} of memory, {format_size(free)} are free"
        )
        return None
    log_info("comparing with the merged model in transformers")
    return _judged(_asked(task), proof)


def _task(outtype: str, path: Path, answered: Iterable, trained: Trained) -> dict[str, Any]:
    found, model = read_model(trained.output_dir, trained.model.name, trained.base_dir), trained.model
    section = {"class_": model.class_, "name": str(found.base), "trust_remote_code": model.trust_remote_code}
    section |= {"load_in_4bit": False, "load_in_8bit": False, "attn_implementation": None}
    return {
        "file": str(path),
        "type": TYPES[outtype],
        "model": section,
        "adapter": str(trained.output_dir) if found.adapter else None,
        "apart": _apart(path, found.adapter),
        "vocabulary": found.config.get("vocab_size"),
        "answers": [{"prompt": prompt, "said": said} for (prompt, _), said in answered],
    }


def _apart(path: Path, adapter: Adapter | None) -> bool:
    """Whether tied ends are to be merged one by one: peft would add what trained either to both."""
    own = any(name == "output.weight" for name, _, _ in tensor_types(path))
    return own or any("lm_head.lora_" in name for name in (adapter.tensors if adapter else ()))


def _asked(task: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(
            [*lines_of([sys.executable, "-m", "impruver_gguf.verification.parity_worker"], json.dumps(task))][-1]
        )
    except CalledProcessError as ended:
        return {"unable": f"it ended with {ended.returncode}: {last_words(ended.stderr)}"}


def _judged(told: dict[str, Any], proof: Proof) -> str | None:
    if "unable" in told:
        warn(f"not compared with transformers: {told['unable']}")
        return None
    if told["file"] > SLACK * told["rounded"]:
        return (
            f"its logits are {told['file']:.3g} (root mean square) from those of the merged model in transformers; "
            f"rounding to 16 bits moves them by {told['rounded']:.3g}: its weights are not that model's"
        )
    if told["other"]:
        number, place, token, wanted = told["other"]
        return (
            f"its greedy answer number {number + 1} has token {token} at place {place}, the merged model in "
            f"transformers {wanted}: {proof.answers[number]}"
        )
    log_info(
        f"as the merged model in transformers: {told['tokens']} greedy tokens are the same; logits at "
        f"{told['positions']} learned tokens are {told['file']:.2g} away, 16 bits alone {told['rounded']:.2g}"
    )
    return None


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
