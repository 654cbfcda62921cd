"""Compare the unquantized file with the merged model in transformers, where that and enough memory are there.

    python -m impruver_gguf.verification.transformers_parity < task.json

A process of its own alone imports torch. What 16 bits may do is measured, not guessed: the same model runs once more,
each matrix and what goes into it rounded to the file's type as llama.cpp does. llama.cpp may be SLACK times as far from
float32 as that, for what it rounds besides (the cache of keys and values), and its likeliest token must be the model's
but for ties within such a distance. All logits are of sequences that were decoded as a whole, held-out rows and greedy
answers: what came token by token, in a batch with others, is rounded in another order.

A model with experts jumps where two of them are nearly tied: other experts answer, and logits are far from each other
though each program is right. There a file fails only where the typical position is too far off, and not a few of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from impruver_core.cli.console import log_info, warn
from impruver_core.dynamic_import import (
    allow_remote_code,
    check_class_allowed,
    get_foreign_recipe,
    set_foreign_recipe,
)
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import format_size
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.modeling.loading import REMOTE_CODE
from impruver_core.system import available_cpus, get_available_memory
from impruver_core.worker_process import claim_stdout, get_error_reason

from impruver_gguf.verification.heldout import TrainedModelInfo, VerificationInputs
from impruver_gguf.verification.llama_runtime import LlamaRuntime, load_gguf_on_cpu
from impruver_gguf.weights.checkpoint import has_model, read_checkpoint
from impruver_gguf.weights.text_model import get_text_config
from impruver_gguf.worker_process import describe_failure, stream_lines

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = {"f16": "float16", "f32": "float16", "bf16": "bfloat16"}  # what llama.cpp rounds to, its cache in float16
MAX_ROWS, MAX_POSITIONS, MAX_ANSWER_TOKENS = 4, 256, 64  # of a row, of an answer
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
MOST_JUMPS = 0.1  # share of positions at which experts may be tied
MEMORY_FACTOR = 1.3  # what torch takes, in relation to the weights in float32
SLACK = 4.0


@dataclass
class ParityResult:
    """How far logits are from the merged model's in float32 (root mean square), and where another token is likelier."""

    unable: str | None = None  # why there is no comparison
    file: float = 0.0
    rounded: float = 0.0  # of the merged model, rounded to the file's type
    typical_file: float = 0.0  # the same at the median position
    typical_rounded: float = 0.0
    has_experts: bool = False
    positions: int = 0  # at which logits were compared
    others: int = 0  # those of them with another likeliest token, ties aside
    other: Sequence[Any] | None = None  # the first of these: its sequence, the token before it, the file's, the model's
    tokens: int = 0  # greedy tokens that were compared
    same_tokens: int = 0  # those that are the merged model's likeliest


def has_torch() -> bool:
    """Whether torch and transformers can be imported; nothing is imported."""
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def find_difference_from_merged(
    outtype: str, path: Path, bits_per_weight: float, answers: Sequence[list[int]], inputs: VerificationInputs
) -> str | None:
    """Say what the unquantized file computes otherwise than the merged model; None for nothing, or without a model.

    `answers` are the token ids that the file gave to the prompts of `inputs`.
    """
    rows = [row for row in inputs.heldout.measured if len(row.target_ids) <= MAX_POSITIONS][:MAX_ROWS]
    if outtype not in DTYPES or not rows or not has_torch() or not has_model(inputs.model.output_dir):
        return None
    if any(tensor.type == "MXFP4" for tensor in read_gguf_header(path).tensors):
        log_info("not compared with transformers: what goes into weights in MXFP4, llama.cpp rounds to 8 bits")
        return None
    task = _describe_model(path, inputs.model) | {
        "file": str(path),
        "dtype": DTYPES[outtype],
        "rows": [{"where": row.where, "ids": row.ids, "positions": row.target_positions} for row in rows],
    }
    for number, (prompt, answer) in enumerate(zip(inputs.heldout.prompts, answers, strict=False), start=1):
        tokens = answer[:MAX_ANSWER_TOKENS]
        positions = [*range(len(prompt.ids) - 1, len(prompt.ids) + len(tokens) - 1)]  # those that predict the answer
        task["rows"].append(
            {"where": f"greedy answer {number}", "ids": prompt.ids + tokens, "positions": positions, "answer": tokens}
        )
    needed, free = int(MEMORY_FACTOR * 32 / bits_per_weight * path.stat().st_size), get_available_memory()
    if needed > free:
        log_info(
            f"not compared with transformers: that takes {format_size(needed)} of memory, {format_size(free)} are free"
        )
        return None
    log_info("comparing with the merged model in transformers")
    try:
        lines = [*stream_lines([sys.executable, "-m", __name__], json.dumps(task))]
        return _judge_result(ParityResult(**json.loads(lines[-1])))
    except CalledProcessError as ended:
        failure = describe_failure(ended.returncode, get_error_reason(ended.stderr))
        warn(f"not compared with transformers: it ended {failure}")
        return None


def _describe_model(path: Path, model: TrainedModelInfo) -> dict[str, Any]:
    """What the worker loads; tied ends are merged one by one, since peft would add what trained either to both."""
    checkpoint, section = read_checkpoint(model.output_dir, model.model.name, model.recipe_dir), model.model
    adapter = checkpoint.adapter.tensors if checkpoint.adapter else ()
    check_class_allowed(section.class_, "model.class")
    foreign = get_foreign_recipe()
    trusted = allow_remote_code(section.trust_remote_code, REMOTE_CODE)
    in_file = any(tensor.name == "output.weight" for tensor in read_gguf_header(path).tensors)
    return {
        "model": {"class_": section.class_, "name": str(checkpoint.base)}
        | {"trust_remote_code": trusted, "attn_implementation": None}
        | {"load_in_4bit": False, "load_in_8bit": False},
        "recipe_dir": str(model.recipe_dir) if model.recipe_dir else None,
        "foreign_recipe": str(foreign) if foreign else None,
        "adapter": str(model.output_dir) if checkpoint.adapter else None,
        "untie": in_file or any("lm_head.lora_" in name for name in adapter),
        "vocab_size": get_text_config(checkpoint.config).get("vocab_size"),
    }


def _judge_result(result: ParityResult) -> str | None:
    if result.unable:
        warn(f"not compared with transformers: {result.unable}")
        return None
    is_far = result.file > SLACK * result.rounded
    if is_far and (not result.has_experts or result.typical_file > SLACK * result.typical_rounded):
        return (
            f"its logits are {result.file:.3g} (root mean square) from those of the merged model in transformers; "
            f"rounding to 16 bits moves them by {result.rounded:.3g}: its weights are not that model's"
        )
    if result.other and result.others > (MOST_JUMPS * result.positions if result.has_experts else 0):
        where, place, token, expected = result.other
        return (
            f"its likeliest token after place {place} of {where} is {token}, that of the merged model in transformers "
            f"{expected}, and so at {result.others} of {result.positions} positions"
        )
    log_info(
        f"as the merged model in transformers: {result.same_tokens} of {result.tokens} greedy tokens are its "
        f"likeliest; logits at {result.positions} positions are {result.file:.2g} away, 16 bits alone "
        f"{result.rounded:.2g}"
    )
    if is_far or result.others:
        log_info(
            f"other experts answered where two were nearly tied: {result.others} positions have another likeliest "
            f"token; the median position is {result.typical_file:.2g} away, 16 bits alone {result.typical_rounded:.2g}"
        )
    return None


def main() -> int:
    """Run as the process of its own: read the task from stdin, print the result as a line of JSON."""
    results = claim_stdout()
    try:
        result = _compare_models(json.load(sys.stdin))
    except (ImpruverError, ImportError, MemoryError) as error:
        result = ParityResult(" ".join(str(error).split()) or type(error).__name__)
    print(json.dumps(asdict(result)), file=results, flush=True)
    return 0


def _compare_models(task: dict[str, Any]) -> ParityResult:
    """Compare llama.cpp's logits with the merged model's; logits are (positions, vocabulary)."""
    import torch

    rows = task["rows"]
    runtime = LlamaRuntime(load_gguf_on_cpu(Path(task["file"])), max(len(row["ids"]) for row in rows))
    in_file = np.stack([logits for row in rows for logits in runtime.compute_logits(row["ids"], row["positions"])])
    torch.set_num_threads(available_cpus())
    model = _load_merged_model(task)
    with torch.no_grad():
        exact = _compute_logits(model, rows)
        _round_matrices(model, getattr(torch, task["dtype"]))
        rounded = _compute_logits(model, rows)
    in_file = in_file[:, : exact.shape[1]]  # less the rows that pad the vocabulary
    config = model.config.get_text_config()
    result = compare_logits(
        in_file, exact, rounded, [(row["where"], place) for row in rows for place in row["positions"]]
    )
    result.has_experts = any(getattr(config, key, None) for key in EXPERT_KEYS)
    answers = [token for row in rows for token in row.get("answer", [])]
    result.tokens = len(answers)
    result.same_tokens = int((exact[len(exact) - len(answers) :].argmax(axis=1) == answers).sum())
    return result


def compare_logits(
    in_file: np.ndarray, exact: np.ndarray, rounded: np.ndarray, places: Sequence[tuple[str, int]]
) -> ParityResult:
    """Compare a file's logits (positions, vocabulary) with the model's, exact and rounded, at the named `places`."""
    distances, allowed = _compute_distances(in_file, exact), _compute_distances(rounded, exact)
    tie = SLACK * float(np.abs(rounded - exact).max())
    tokens, every = in_file.argmax(axis=1), np.arange(len(exact))
    others = np.flatnonzero(exact[every, tokens] < exact.max(axis=1) - tie)
    first = int(others[0]) if len(others) else None
    return ParityResult(
        file=_mean_square_root(distances),
        rounded=_mean_square_root(allowed),
        typical_file=float(np.median(distances)),
        typical_rounded=float(np.median(allowed)),
        positions=len(exact),
        others=len(others),
        other=None if first is None else [*places[first], int(tokens[first]), int(exact[first].argmax())],
    )


def _load_merged_model(task: dict[str, Any]) -> PreTrainedModel:
    """The model in float32, its adapter merged by peft."""
    import torch
    from impruver_core.modeling.loading import load_adapter, load_model

    set_foreign_recipe(Path(task["foreign_recipe"]) if task["foreign_recipe"] else None)
    model = load_model(SimpleNamespace(**task["model"]), torch.float32, search_dir=task["recipe_dir"])
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if task["untie"] and output.weight is embedding.weight:
        output.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    if task["adapter"]:
        model = load_adapter(model, task["adapter"], task["vocab_size"]).merge_and_unload()
    return model.eval()


def _compute_logits(model: PreTrainedModel, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """The model's logits at the rows' positions."""
    import torch

    logits = [model(torch.tensor([row["ids"]])).logits[0, row["positions"]].float().numpy() for row in rows]
    return np.concatenate(logits)


def _round_matrices(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round each matrix of `model`, and from now on what goes into one."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(weight.to(dtype))

    def round_input(_: torch.nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].to(dtype).to(inputs[0].dtype), *inputs[1:])

    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_pre_hook(round_input)


def _compute_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance at each position (positions,), root mean square over the vocabulary."""
    return np.sqrt([np.mean(np.square(a - b, dtype=np.float64)) for a, b in zip(one, other, strict=True)])


def _mean_square_root(distances: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(distances))))


if __name__ == "__main__":
    raise SystemExit(main())
