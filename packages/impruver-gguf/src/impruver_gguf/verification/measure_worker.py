"""Measures GGUF files with llama.cpp, in a process of its own: what llama.cpp aborts on takes nobody with it.

    python -m impruver_gguf.verification.measure_worker < task.json

A line of JSON for each file, the one that the others are compared with first.
"""

from __future__ import annotations

import errno
import json
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, BinaryIO, TextIO

import numpy as np
from impruver_core.system import available_cpus

from impruver_gguf.verification.llama_runtime import Engine, open_model
from impruver_gguf.worker_process import own_channel

TEMPLATE = "tokenizer.chat_template"


PLAIN = "a"  # a text that shows what a tokenizer puts around one


MOST_AT_ONCE = 4  # rows


FULL = 28  # exit code where the disk is full


def measured(path: Path, task: dict[str, Any], reference: BinaryIO, first: bool) -> dict[str, Any]:
    """What is to be known of one file; the first one's log probabilities are kept in `reference` for the others."""
    model = open_model(path)
    vocabulary = model.get_vocab()
    told = {
        "ids": [vocabulary.tokenize(text, False, True) for text in task["texts"]],
        "plain": vocabulary.tokenize(PLAIN, True, True),
        "tokens": vocabulary.n_vocab,
        "templates": {name: text for name, text in model.metadata().items() if name.startswith(TEMPLATE)},
        "eog": [token for token in task["ends"] if vocabulary.is_eog(token)],
        "bits_per_weight": 8 * model.size / model.n_params,
    }
    fitting = all(token < vocabulary.n_vocab for row in task["rows"] for token in row["ids"])
    if task["rows"] and fitting:
        told |= _compared(model, task["rows"], reference, first)
    if task["asked"] and fitting:
        room = sum(len(prompt) + room for prompt, room in task["asked"])
        ends = {*task["ends"], *(number for number in range(vocabulary.n_vocab) if vocabulary.is_eog(number))}
        told["answers"] = Engine(model, room, len(task["asked"])).answers(task["asked"], ends)
    return told


def _compared(model: Any, rows: list[dict[str, Any]], reference: BinaryIO, first: bool) -> dict[str, Any]:
    """Mean surprise of the learned tokens; beside the reference: divergence from it, share of equal top tokens.

    Rows are computed side by side, each by few threads: those of one decoding wait for one another, and for Python.
    """
    count = min(available_cpus(), MOST_AT_ONCE)
    room, idle, alone = max(len(row["ids"]) for row in rows), SimpleQueue(), Lock()
    for _ in range(count):
        idle.put(Engine(model, room, workers=max(1, available_cpus() // count)))
    size = 4 * model.n_vocab
    starts = accumulate((size * len(row["wanted"]) for row in rows), initial=0)

    def compare(row: dict[str, Any], start: int) -> tuple[float, float, int, bool]:
        engine = idle.get()
        try:
            logs = (_log_softmax(values) for values in engine.logits(row["ids"], row["wanted"]))
            places = range(start, start + size * len(row["wanted"]), size)
            return _row_compared(zip(logs, row["labels"], places, strict=True), reference, alone, first)
        finally:
            idle.put(engine)

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(compare, rows, starts))  # starts has one more: where the last one ends
    learned = sum(len(row["wanted"]) for row in rows)
    ended = [right for row, (*_, right) in zip(rows, found, strict=True) if row["ends"]]
    surprise, divergence, same = (sum(column) / learned for column in list(zip(*found, strict=True))[:3])
    told = {"learned": learned, "surprise": surprise, "ended": [sum(ended), len(ended)]}
    return told if first else told | {"kl": max(divergence, 0.0), "top1": same}


def _row_compared(
    positions: Iterable[tuple[np.ndarray, int, int]], reference: BinaryIO, alone: Lock, first: bool
) -> tuple[float, float, int, bool]:
    """Sums of a row: surprise, divergence, equal top tokens; and whether its last token is the likeliest.

    `positions`: log probabilities, the learned token, and where the reference's stand in its file.
    """
    surprise, divergence, same, right = 0.0, 0.0, 0, False
    for logs, label, place in positions:
        top = int(logs.argmax())
        surprise, right = surprise - float(logs[label]), top == label
        with alone:
            reference.seek(place)
            if first:
                reference.write(logs.data)
                continue
            theirs = np.frombuffer(reference.read(logs.nbytes), np.float32)
        divergence += float(np.exp(theirs) @ (theirs - logs))
        same += top == int(theirs.argmax())
    return surprise, divergence, same, right


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max()
    total = float(np.exp(shifted).sum(dtype=np.float64))
    if not np.isfinite(total) or not np.isfinite(shifted).all():
        raise FloatingPointError("its logits hold NaN or infinity")
    shifted -= np.float32(np.log(total))
    return shifted


def main() -> int:
    """Reads the task from stdin; a line for each of its files."""
    try:
        _measure_all(json.load(sys.stdin), own_channel())
    except OSError as error:
        print(f"{error.strerror or error}", file=sys.stderr)
        return FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return 0


def _measure_all(task: dict[str, Any], channel: TextIO) -> None:
    with tempfile.TemporaryFile(dir=task["scratch"]) as reference:  # it has no name: a kill leaves nothing
        for number, path in enumerate(task["files"]):
            try:
                told = measured(Path(path), task, reference, first=number == 0)
            except FloatingPointError as error:
                told = {"error": str(error)}
            except (RuntimeError, ValueError, MemoryError) as error:  # cyllama's
                told = {"error": f"llama.cpp can't run it: {' '.join(str(error).split()) or type(error).__name__}"}
            print(json.dumps(told), file=channel, flush=True)
            if number == 0 and "error" in told:
                break


if __name__ == "__main__":
    raise SystemExit(main())
