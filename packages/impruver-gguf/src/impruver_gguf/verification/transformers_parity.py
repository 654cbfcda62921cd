"""Compare the unquantized file with the merged model in transformers, where that and enough memory are there.

    python -m impruver_gguf.verification.transformers_parity < task.json

A process of its own alone imports torch. What 16 bits may do is measured, not guessed: the same model runs once more,
each matrix and what goes into it rounded to the file's type as llama.cpp does. llama.cpp may be SLACK times as far from
float32 as that, for what it rounds besides (the cache of keys and values), and its greedy tokens must be the likeliest
but for ties within such a distance.
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
MAX_ROWS, MAX_POSITIONS = 4, 256
MEMORY_FACTOR = 1.3  # what torch takes, in relation to the weights in float32
SLACK = 4.0


@dataclass
class ParityResult:
    """How far logits are from the merged model's in float32 (root mean square), and which greedy token is another."""

    unable: str | None = None  # why there is no comparison
    file: float = 0.0
    rounded: float = 0.0  # of the merged model, rounded to the file's type
    positions: int = 0  # at which logits were compared
    tokens: int = 0  # greedy tokens that were compared
    other: Sequence[int] | None = None  # an answer, a position in it, its token there and the merged model's


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
    prompts = zip(inputs.heldout.prompts, answers, strict=False)
    task = _describe_model(path, inputs.model) | {
        "file": str(path),
        "dtype": DTYPES[outtype],
        "answers": [
            # The positions are those that predict the answer.
            {"ids": ids + answer, "positions": [*range(len(ids) - 1, len(ids) + len(answer) - 1)], "targets": answer}
            for ids, answer in ((prompt.ids, answer) for prompt, answer in prompts)
        ],
        "rows": [{"ids": row.ids, "positions": row.target_positions} for row in rows],
    }
    needed, free = int(MEMORY_FACTOR * 32 / bits_per_weight * path.stat().st_size), get_available_memory()
    if needed > free:
        log_info(
            f"not compared with transformers: that takes {format_size(needed)} of memory, {format_size(free)} are free"
        )
        return None
    log_info("comparing with the merged model in transformers")
    try:
        lines = [*stream_lines([sys.executable, "-m", __name__], json.dumps(task))]
        return _judge_result(ParityResult(**json.loads(lines[-1])), answers)
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


def _judge_result(result: ParityResult, answers: Sequence[list[int]]) -> str | None:
    if result.unable:
        warn(f"not compared with transformers: {result.unable}")
        return None
    if result.file > SLACK * result.rounded:
        return (
            f"its logits are {result.file:.3g} (root mean square) from those of the merged model in transformers; "
            f"rounding to 16 bits moves them by {result.rounded:.3g}: its weights are not that model's"
        )
    if result.other:
        answer, position, token, expected = result.other
        return (
            f"its greedy answer number {answer + 1} has token {token} at place {position}, the merged model in "
            f"transformers {expected}: {answers[answer]}"
        )
    log_info(
        f"as the merged model in transformers: {result.tokens} greedy tokens are the same; logits at "
        f"{result.positions} target tokens are {result.file:.2g} away, 16 bits alone {result.rounded:.2g}"
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
    """Compare llama.cpp's logits and answers with the merged model's; logits are (positions, vocabulary)."""
    import torch

    rows = task["rows"]
    runtime = LlamaRuntime(load_gguf_on_cpu(Path(task["file"])), max(len(row["ids"]) for row in rows))
    in_file = np.stack([logits for row in rows for logits in runtime.compute_logits(row["ids"], row["positions"])])
    torch.set_num_threads(available_cpus())
    model = _load_merged_model(task)
    with torch.no_grad():
        exact = _compute_logits(model, rows)
        answers = [_compute_logits(model, [row]) for row in task["answers"]]
        _round_matrices(model, getattr(torch, task["dtype"]))
        rounded = _compute_logits(model, rows)
    in_file = in_file[:, : exact.shape[1]]  # less the rows that pad the vocabulary
    tie = SLACK * float(np.abs(rounded - exact).max())
    return ParityResult(
        file=_compute_distance(in_file, exact),
        rounded=_compute_distance(rounded, exact),
        positions=len(exact),
        tokens=sum(map(len, answers)),
        other=_find_other_token(answers, task["answers"], tie),
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


def _compute_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(one - other, dtype=np.float64))))


def _find_other_token(
    all_logits: Sequence[np.ndarray], answers: Sequence[dict[str, Any]], tie: float
) -> list[int] | None:
    """Find the first token of the answers that is not the likeliest, ties aside: as `ParityResult.other`."""
    for number, (answer_logits, answer) in enumerate(zip(all_logits, answers, strict=True)):
        for position, (logits, token) in enumerate(zip(answer_logits, answer["targets"], strict=True)):
            if logits[token] < logits.max() - tie:
                return [number, position, token, int(logits.argmax())]
    return None


if __name__ == "__main__":
    raise SystemExit(main())
