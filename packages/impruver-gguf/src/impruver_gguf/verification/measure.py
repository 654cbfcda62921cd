"""Measure GGUF files with llama.cpp, in a process of its own: where llama.cpp aborts, only that one ends.

    python -m impruver_gguf.verification.measure < task.json

It prints a line of JSON for each file, first for the one that the others are compared with.
"""

from __future__ import annotations

import errno
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from subprocess import CalledProcessError
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

import numpy as np
from impruver_core.cli.console import open_progress
from impruver_core.errors import ImpruverError
from impruver_core.system import available_cpus
from impruver_core.worker_process import claim_stdout, get_error_reason

from impruver_gguf.verification.llama_runtime import Answer, AnswerPrompt, LlamaRuntime, load_gguf_on_cpu
from impruver_gguf.worker_process import describe_failure, stream_lines

if TYPE_CHECKING:
    from impruver_core.llama_bindings import LlamaModel

    from impruver_gguf.verification.heldout import VerificationInputs

TEMPLATE_KEY = "tokenizer.chat_template"
PLAIN_TEXT = "a"  # shows what a tokenizer puts around a text
MAX_ROWS_AT_ONCE = 4
DISK_FULL = 28  # exit code


@dataclass
class FileMeasurement:
    """What llama.cpp makes of a file; None for what could not be measured."""

    error: str | None = None  # why it could not be run
    ids: list[list[int]] | None = None  # of each held-out row's text
    plain_ids: list[int] | None = None  # of PLAIN_TEXT
    vocab_size: int | None = None
    templates: dict[str, str] | None = None  # chat templates by their keys
    end_ids: list[int] | None = None  # those of the ids that end a turn at which llama.cpp stops by itself
    bits_per_weight: float | None = None
    nll: float | None = None  # negative log-likelihood, mean over target tokens
    kl: float | None = None  # divergence from the first file, mean over target tokens; None for that file
    top1: float | None = None  # share of target tokens with the same likeliest token there; None for that file
    predicted_ends: int = 0  # rows that close with an end of turn which is the likeliest token
    ends: int = 0  # rows that close with an end of turn
    answers: Sequence[Answer] = ()  # greedy ones to the prompts

    @property
    def answers_ended(self) -> int:
        """How many answers ended by themselves."""
        return sum(ended for _, ended in self.answers)


def measure_files(paths: Sequence[Path], inputs: VerificationInputs) -> Iterator[FileMeasurement]:
    """Measure files in a process of its own, the reference first; with an `error` where it did not come to one."""
    heldout, measured, scratch = inputs.heldout, inputs.heldout.measured, paths[0].parent
    task = {
        "files": [str(path) for path in paths],
        "texts": [row.text for row in heldout.examples],
        "rows": [{"ids": row.ids, "positions": row.target_positions, "targets": row.target_ids} for row in measured],
        "has_end": [row.target_ids[-1] in inputs.end_ids for row in measured],
        "prompts": heldout.prompts,
        "ends": inputs.end_ids,
        "scratch": str(scratch),
    }
    done = 0
    with open_progress(len(paths), "verified") as bar:
        try:
            for line in stream_lines([sys.executable, "-m", __name__], json.dumps(task)):
                measurement = FileMeasurement(**json.loads(line))
                measurement.answers = [Answer(*answer) for answer in measurement.answers]
                yield measurement
                done += 1
                bar.update(1)
        except CalledProcessError as ended:
            reason = get_error_reason(ended.stderr)
            if ended.returncode == DISK_FULL:
                raise ImpruverError(
                    f"{scratch}: {reason}; make room, or leave the proof out with --verify false"
                ) from None
            if done < len(paths):
                yield FileMeasurement(f"llama.cpp ended as it ran it {describe_failure(ended.returncode, reason)}")
                done += 1
    yield from [FileMeasurement("not measured, since an earlier file failed")] * (len(paths) - done)


def measure_divergences(inputs: VerificationInputs, source: Path, paths: Sequence[Path]) -> list[float | None]:
    """Measure how far files are from `source`: the KL divergence of each, None where it can't be measured."""
    heldout = replace(inputs.heldout, examples=[], prompts=[])
    measurements = [*measure_files([source, *paths], replace(inputs, heldout=heldout))]
    return [measurement.kl for measurement in measurements[1:]]


def main() -> int:
    """Run as the process of its own: read the task from stdin, print a line for each of its files."""
    try:
        _run_task(json.load(sys.stdin), claim_stdout())
    except OSError as error:
        print(f"{error.strerror or error}", file=sys.stderr)
        return DISK_FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return 0


def _run_task(task: dict[str, Any], results: TextIO) -> None:
    with tempfile.TemporaryFile(dir=task["scratch"]) as reference:  # it has no name: a kill leaves nothing
        for number, path in enumerate(task["files"]):
            try:
                measurement = _measure_file(Path(path), task, reference, is_reference=number == 0)
            except FloatingPointError as error:
                measurement = FileMeasurement(str(error))
            except (ImpruverError, RuntimeError, ValueError, MemoryError) as error:
                cause = error.__cause__ or error  # cyllama's
                reason = " ".join(str(cause).split()) or type(cause).__name__
                measurement = FileMeasurement(f"llama.cpp can't run it: {reason}")
            print(json.dumps(asdict(measurement)), file=results, flush=True)
            if number == 0 and measurement.error:
                break


def _measure_file(path: Path, task: dict[str, Any], reference: BinaryIO, is_reference: bool) -> FileMeasurement:
    """Measure one file; log probabilities of the reference are written to `reference` for the others."""
    model = load_gguf_on_cpu(path)
    vocab = model.get_vocab()
    measurement = FileMeasurement(
        ids=[vocab.tokenize(text, False, True) for text in task["texts"]],
        plain_ids=vocab.tokenize(PLAIN_TEXT, True, True),
        vocab_size=vocab.n_vocab,
        templates={name: text for name, text in model.metadata().items() if name.startswith(TEMPLATE_KEY)},
        end_ids=[token for token in task["ends"] if vocab.is_eog(token)],
        bits_per_weight=8 * model.size / model.n_params,
    )
    fits = all(token < vocab.n_vocab for row in task["rows"] for token in row["ids"])
    if task["rows"] and fits:
        _compare_rows(measurement, model, task, reference, is_reference)
    if task["prompts"] and fits:
        prompts = [AnswerPrompt(*prompt) for prompt in task["prompts"]]
        room = sum(len(prompt.ids) + prompt.max_tokens for prompt in prompts)
        ends = {*task["ends"], *filter(vocab.is_eog, range(vocab.n_vocab))}
        measurement.answers = LlamaRuntime(model, room, len(prompts)).generate_answers(prompts, ends)
    return measurement


class RowComparison(NamedTuple):
    """Sums over the target tokens of a row, and whether the last of them is the likeliest."""

    nll: float
    kl: float
    same_top: int
    last_predicted: bool


def _compare_rows(
    measurement: FileMeasurement, model: LlamaModel, task: dict[str, Any], reference: BinaryIO, is_reference: bool
) -> None:
    """Fill in what is measured at target tokens; rows run side by side, since threads wait for one another."""
    rows, count = task["rows"], min(available_cpus(), MAX_ROWS_AT_ONCE)
    room, idle, lock = max(len(row["ids"]) for row in rows), SimpleQueue(), Lock()
    for _ in range(count):
        idle.put(LlamaRuntime(model, room, workers=max(1, available_cpus() // count)))
    size = 4 * model.n_vocab
    starts = accumulate((size * len(row["targets"]) for row in rows), initial=0)

    def compare(row: dict[str, Any], start: int) -> RowComparison:
        runtime = idle.get()
        try:
            logits = runtime.compute_logits(row["ids"], row["positions"])
            offsets = range(start, start + size * len(row["targets"]), size)
            positions = zip(map(_compute_log_softmax, logits), row["targets"], offsets, strict=True)
            return _compare_row(positions, reference, lock, is_reference)
        finally:
            idle.put(runtime)

    with ThreadPoolExecutor(count) as pool:
        comparisons = list(pool.map(compare, rows, starts))  # starts has one more: where the last one ends
    targets = sum(len(row["targets"]) for row in rows)
    at_ends = [row.last_predicted for row, has_end in zip(comparisons, task["has_end"], strict=True) if has_end]
    measurement.predicted_ends, measurement.ends = sum(at_ends), len(at_ends)
    measurement.nll = sum(comparison.nll for comparison in comparisons) / targets
    if not is_reference:
        measurement.kl = max(sum(comparison.kl for comparison in comparisons) / targets, 0.0)
        measurement.top1 = sum(comparison.same_top for comparison in comparisons) / targets


def _compare_row(
    positions: Iterable[tuple[np.ndarray, int, int]], reference: BinaryIO, lock: Lock, is_reference: bool
) -> RowComparison:
    """Compare log probabilities (vocabulary,) of a row with those in the reference's file, or write them there."""
    nll, kl, same_top, last_predicted = 0.0, 0.0, 0, False
    for log_probabilities, target, offset in positions:
        top = int(log_probabilities.argmax())
        nll, last_predicted = nll - float(log_probabilities[target]), top == target
        with lock:
            reference.seek(offset)
            if is_reference:
                reference.write(log_probabilities.data)
                continue
            expected = np.frombuffer(reference.read(log_probabilities.nbytes), np.float32)
        kl += float(np.exp(expected) @ (expected - log_probabilities))
        same_top += top == int(expected.argmax())
    return RowComparison(nll, kl, same_top, last_predicted)


def _compute_log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    total = float(np.exp(shifted).sum(dtype=np.float64))
    if not np.isfinite(total) or not np.isfinite(shifted).all():
        raise FloatingPointError("its logits hold NaN or infinity")
    shifted -= np.float32(np.log(total))
    return shifted


if __name__ == "__main__":
    raise SystemExit(main())
