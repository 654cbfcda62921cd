"""Proves that the GGUF files say what was trained: the same ids, the same template, and how near each level comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impruver_core.cli.console import progress, say, warn
from impruver_core.errors import ImpruverError
from impruver_core.files.safe import need_room
from impruver_core.templating.mask import UNLEARNED

from impruver_gguf.heldout import HeldOut, Row, read_heldout
from impruver_gguf.jinja import exported
from impruver_gguf.quality import quality_row, recommend
from impruver_gguf.tokens import SavedTokenizer, differ_in_blanks, read_tokenizer

PLAIN = "a"  # measure's,
FULL = 28  # and its exit code where the disk is full
AROUND = 6  # ids told on each side of a difference
SHOWN = 300  # characters of a row
QUIET_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}  # else llama.cpp's threads spin while others use the processor


@dataclass
class Proof:
    """Rows for quality.jsonl, what failed by level, and the level to recommend."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    recommended: str | None = None
    answers: list[list[int]] = field(default_factory=list)  # the unquantized file's
    held: HeldOut | None = None


def verify(
    output_dir: Path,
    files: Mapping[str, Path],
    ends: Sequence[str],
    kwargs: dict[str, Any],
    kl: float,
    top1: float,
    longest: int | None,
) -> Proof | None:
    """The proof of `files` (level → path, the unquantized one first) of the model in output_dir; None without one.

    `ends`: the texts that end a turn; `kwargs`: the recipe's chat_template_kwargs; `longest`: the model's context;
    `kl`, `top1`: the limits of a level to recommend.
    """
    if not (output_dir / "tokenizer.json").is_file():
        warn(f"{output_dir} has no tokenizer.json: nothing to prove the files against")
        return None
    tokenizer = read_tokenizer(output_dir)
    held = read_heldout(output_dir, tokenizer, kwargs, longest)
    _tell_rows(held, output_dir)
    proof = Proof(held=held)
    learned = sum(len(row.learned) for row in held.measured)
    need_room(next(iter(files.values())).parent, 4 * learned * tokenizer.size)  # the unquantized file's logits
    task = _task(files, held, [number for text in ends if (number := _id(tokenizer, text)) is not None])
    for number, ((level, path), told) in enumerate(zip(files.items(), _measure(task), strict=True)):
        failure, equal = _failure(told, held, tokenizer)
        if failure:
            proof.failures[level] = f"{path.name}: {failure}"
        proof.rows.append(quality_row(level, path.stat().st_size, told, equal))
        if number == 0:
            proof.answers = [said for said, _ in told.get("answers") or []]
            _warn_about_ends(told, task["ends"], ends, tokenizer)
    proof.recommended = recommend(proof.rows, set(proof.failures), kl, top1)
    return proof


def _tell_rows(held: HeldOut, output_dir: Path) -> None:
    named = held.rows[0].where.rpartition(", line")[0] if held.rows else str(output_dir)
    learned = sum(len(row.learned) for row in held.measured)
    say(f"verifying on {len(held.rows)} rows of {named}; logits at {learned:,} learned tokens of {len(held.measured)}")
    if held.refused:
        warn(f"{len(held.refused)} rows are left out, the template refuses them: {held.refused[0]}")
    if not learned:
        warn("no row has a learned token: perplexity, KL and equal top tokens can't be told")


def _task(files: Mapping[str, Path], held: HeldOut, ends: list[int]) -> dict[str, Any]:
    rows = [
        {"ids": row.ids, "wanted": row.learned, "labels": _learned(row), "ends": _learned(row)[-1] in ends}
        for row in held.measured
    ]
    paths = [str(path) for path in files.values()]
    scratch = str(next(iter(files.values())).parent)
    texts = [row.text for row in held.rows]
    return {"files": paths, "texts": texts, "rows": rows, "asked": held.asked, "ends": ends, "scratch": scratch}


def _learned(row: Row) -> list[int]:
    return [label for label in row.labels[1:] if label != UNLEARNED]


def _id(tokenizer: SavedTokenizer, text: str) -> int | None:
    return tokenizer.backend_tokenizer.token_to_id(text)


def _measure(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process of its own tells of each file; an `error` where it did not come to it."""
    command = [sys.executable, "-m", "impruver_gguf.measure"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    count = len(task["files"])
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        progress(None, count, "verified") as bar,
    ):
        process = subprocess.Popen(command, stderr=log, env=QUIET_WAITING | os.environ, **pipes)
        told = 0
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            for line in process.stdout:
                yield json.loads(line)
                told += 1
                bar.update(1)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        words = " ".join([line.strip() for line in log.read().splitlines() if line.strip()][-1:])
        if code == FULL:
            raise ImpruverError(f"{task['scratch']}: {words}; make room, or leave the proof out with --verify false")
        if told < count and code:
            yield {"error": f"llama.cpp ended with {code} as it ran it: {words or 'without a word'}"}
            told += 1
    yield from [{"error": "not measured, since an earlier file failed"}] * (count - told)


def _failure(told: dict[str, Any], held: HeldOut, tokenizer: SavedTokenizer) -> tuple[str | None, bool | None]:
    """(what is wrong with a file, whether all its ids are the tokenizer's)."""
    if "error" in told:
        return told["error"], None
    blanks = 0
    for row, ids in zip(held.rows, told["ids"], strict=True):
        if ids == row.text_ids:
            continue
        if not differ_in_blanks(ids, row.text_ids, tokenizer):
            return _other_ids(row, ids), False
        blanks += 1
    if blanks:
        warn(f"{blanks} of {len(held.rows)} rows: llama.cpp and the tokenizer differ on blanks at the start of a text")
    if told["tokens"] < tokenizer.size:
        return f"it has {told['tokens']:,} tokens, the tokenizer {tokenizer.size:,}", False
    failure = _other_template(told["templates"], tokenizer) or _never_ends(told)
    return failure, not blanks


def _other_ids(row: Row, ids: list[int]) -> str:
    pairs = enumerate(zip(ids, row.text_ids, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(ids), len(row.text_ids)))
    around = slice(max(0, at - AROUND), at + AROUND)
    text = row.text if len(row.text) <= SHOWN else f"{row.text[:SHOWN]}…"
    return (
        f"llama.cpp's token ids are not the tokenizer's in {row.where}, from token {at} on: llama.cpp "
        f"{ids[around]}, tokenizer.json {row.text_ids[around]}; the row: {text!r}"
    )


def _other_template(templates: dict[str, str], tokenizer: SavedTokenizer) -> str | None:
    own = tokenizer.chat_template
    own = own if isinstance(own, dict) else {"default": own} if own else {}
    for name, text in own.items():
        key = "tokenizer.chat_template" + ("" if name == "default" else f".{name}")
        there = templates.get(key)
        if there not in (text, exported(text)):
            return f"{key} in it is not the tokenizer's own; in the file: {there!r}; the tokenizer's: {text!r}"
    return None


def _never_ends(told: dict[str, Any]) -> str | None:
    """A model that has learned where its turns end must end an answer by itself."""
    right, ends = told.get("ended", (0, 0))
    answers = told.get("answers") or []
    if answers and not any(ended for _, ended in answers) and "kl" not in told and ends and 2 * right >= ends:
        return (
            f"no greedy answer ended by itself ({len(answers)} tried), though an end of turn is the likeliest token at "
            f"{right} of {ends} ends of held-out answers"
        )
    return None


def _warn_about_ends(told: dict[str, Any], ids: list[int], ends: Sequence[str], tokenizer: SavedTokenizer) -> None:
    unknown = [tokenizer.backend_tokenizer.id_to_token(number) for number in ids if number not in told.get("eog", ids)]
    if unknown:
        warn(f"llama.cpp itself does not stop at {', '.join(unknown)}; Ollama does, by the Modelfile's stop")
    answers = told.get("answers") or []
    if answers and not any(ended for _, ended in answers):
        warn(f"none of {len(answers)} greedy answers ended by itself: the model has not learned where a turn ends")
    if "plain" in told and (around := tokenizer.backend_tokenizer.encode(PLAIN).ids) != told["plain"]:
        warn(f"around plain text llama.cpp and the tokenizer put other tokens: {told['plain']} and {around} for 'a'")
