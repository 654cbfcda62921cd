"""The unquantized file against the merged model in transformers, in a process of its own that alone imports torch.

    python -m impruver_gguf.verification.parity_worker < task.json

What float16 may do is measured, not guessed: the same model once more, each matrix and what goes into it rounded to the
file's type as llama.cpp does. llama.cpp may be SLACK times as far from float32 as that, for what it rounds besides (the
cache of keys and values), and its greedy tokens must be the likeliest but for ties within such a distance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from impruver_gguf.worker_process import own_channel

SLACK = 4.0


def compared(task: dict[str, Any]) -> dict[str, Any]:
    """Distances of the logits from float32, root mean square: `file` and `rounded`; `other`: a token that differs."""
    import torch
    from impruver_core.system import available_cpus

    theirs = _file_logits(task["file"], task["rows"])
    torch.set_num_threads(available_cpus())
    model = _merged(task)
    with torch.no_grad():
        exact = _logits(model, task["rows"])
        said = [_logits(model, [_answered(answer)]) for answer in task["answers"]]
        _round(model, getattr(torch, task["type"]))
        rounded = _logits(model, task["rows"])
    theirs = theirs[:, : exact.shape[1]]  # less the rows that fill the vocabulary up
    tie = SLACK * float(np.abs(rounded - exact).max())
    return {
        "file": _distance(theirs, exact),
        "rounded": _distance(rounded, exact),
        "positions": len(exact),
        "tokens": sum(map(len, said)),
        "other": _other_token(said, task["answers"], tie),
    }


def _file_logits(path: str, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    from impruver_gguf.verification.llama_runtime import Engine, open_model

    engine = Engine(open_model(Path(path)), max(len(row["ids"]) for row in rows))
    return np.stack([values for row in rows for values in engine.logits(row["ids"], row["wanted"])])


def _merged(task: dict[str, Any]) -> Any:
    """The model in float32, its adapter merged by peft."""
    import torch
    from impruver_core.modeling.loading import load_adapter, load_model

    model = load_model(SimpleNamespace(**task["model"]), torch.float32)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if task["apart"] and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    if task["adapter"]:
        model = load_adapter(model, task["adapter"], task["vocabulary"]).merge_and_unload()
    return model.eval()


def _logits(model: Any, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    import torch

    found = [model(torch.tensor([row["ids"]])).logits[0, row["wanted"]].float().numpy() for row in rows]
    return np.concatenate(found)


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    """A prompt with its answer as a row: what foretells each token of the answer is wanted."""
    prompt, said = answer["prompt"], answer["said"]
    return {"ids": prompt + said, "wanted": list(range(len(prompt) - 1, len(prompt) + len(said) - 1))}


def _round(model: Any, kind: Any) -> None:
    """Rounds each matrix of `model`, and from now on what goes into one."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.copy_(weight.to(kind))

    def rounded(_, inputs):
        return (inputs[0].to(kind).to(inputs[0].dtype), *inputs[1:])

    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_pre_hook(rounded)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(one - other, dtype=np.float64))))


def _other_token(said: Sequence[np.ndarray], answers: Sequence[dict[str, Any]], tie: float) -> list[int] | None:
    """(answer, place, the file's token, torch's) of the first token that is not the likeliest, ties aside."""
    for number, (logits, answer) in enumerate(zip(said, answers, strict=True)):
        for place, (values, token) in enumerate(zip(logits, answer["said"], strict=True)):
            if values[token] < values.max() - tie:
                return [number, place, token, int(values.argmax())]
    return None


def main() -> int:
    """Reads the task from stdin and tells what came of it as a line of JSON."""
    from impruver_core.errors import ImpruverError

    out = own_channel()
    try:
        told = compared(json.load(sys.stdin))
    except (ImpruverError, ImportError, MemoryError) as error:
        told = {"unable": " ".join(str(error).split()) or type(error).__name__}
    print(json.dumps(told), file=out, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
