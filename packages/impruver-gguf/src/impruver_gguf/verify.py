"""Proves that the GGUF files say what was trained: the same ids, the same template, and how near each level comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from impruver_core.cli.console import progress, say, warn
from impruver_core.errors import ImpruverError
from impruver_core.files.safe import need_room
from impruver_core.recipe.sections import ModelSection
from impruver_core.templating.mask import UNLEARNED

from impruver_gguf.checks import failure_of, warn_about
from impruver_gguf.heldout import HeldOut, Row, read_heldout
from impruver_gguf.measure import FULL
from impruver_gguf.native import last_words, lines_of
from impruver_gguf.quality import quality_row, recommend
from impruver_gguf.sections import LimitsSection
from impruver_gguf.server import other_rendering
from impruver_gguf.tokens import SavedTokenizer
from impruver_gguf.turns import context_length


@dataclass(frozen=True)
class Trained:
    """What the files are proven against: output_dir, the texts that end a turn, what the recipe says of both."""

    output_dir: Path
    ends: Sequence[str]
    template_kwargs: dict[str, Any]
    model: ModelSection
    base_dir: Path | None  # where the recipe's local names are looked for


@dataclass
class Proof:
    """Rows for quality.jsonl, what failed by level, and the level to recommend."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    recommended: str | None = None
    answers: list[list[int]] = field(default_factory=list)  # the unquantized file's


@dataclass(frozen=True)
class Ground:
    """What files are proven on: the tokenizer, held-out rows, and the ids that end a turn."""

    tokenizer: SavedTokenizer
    held: HeldOut
    ends: list[int]


def read_ground(trained: Trained) -> Ground | None:
    """Tokenizer and rows of output_dir, checked before anything is made; None where nothing can be proven."""
    output_dir = trained.output_dir
    if not (output_dir / "tokenizer.json").is_file():
        warn(f"{output_dir} has no tokenizer.json: the files can't be proven")
        return None
    tokenizer = SavedTokenizer(output_dir)
    held = read_heldout(output_dir, tokenizer, trained.template_kwargs, context_length(output_dir, {}))
    ids = [tokenizer.backend_tokenizer.token_to_id(text) for text in trained.ends]
    return Ground(tokenizer, held, [number for number in ids if number is not None])


def verify(ground: Ground, files: Mapping[str, Path], limits: LimitsSection, server: str | None = None) -> Proof:
    """The proof of `files` (level → path, the unquantized one first).

    `server`: a llama-server, whose engine is to render templates as ours does.
    """
    tokenizer, held, proof = ground.tokenizer, ground.held, Proof()
    _tell_rows(held)
    first, path = next(iter(files.items()))
    learned = sum(len(row.learned) for row in held.measured)
    need_room(path.parent, 4 * learned * tokenizer.size)  # the unquantized file's logits
    for (level, file), told in zip(files.items(), _measure(_task(files, ground)), strict=True):
        failure, equal = failure_of(told, held, tokenizer)
        if failure:
            proof.failures[level] = f"{file.name}: {failure}"
        proof.rows.append(quality_row(level, file.stat().st_size, told, equal))
        if level == first:
            proof.answers = [said for said, _ in told.get("answers") or []]
            warn_about(told, ground.ends, tokenizer)
    _judge(proof, files, limits)
    if server and first not in proof.failures:
        failure = other_rendering(server, path, held.rows, tokenizer.bos_token)
        if failure:
            fail(proof, files, failure, limits)
    return proof


def fail(proof: Proof, files: Mapping[str, Path], failure: str, limits: LimitsSection) -> None:
    """Notes what a later check found wrong with the unquantized file."""
    first, path = next(iter(files.items()))
    proof.failures[first] = f"{path.name}: {failure}"
    _judge(proof, files, limits)


def _judge(proof: Proof, files: Mapping[str, Path], limits: LimitsSection) -> None:
    """What is made from a wrong file is wrong too; of the others one is recommended."""
    (first, source), *levels = files.items()
    if first in proof.failures:
        for level, file in levels:
            proof.failures.setdefault(level, f"{file.name}: made from {source.name}, which failed")
    proof.recommended = recommend(proof.rows, set(proof.failures), limits.kl, limits.top1)


def _tell_rows(held: HeldOut) -> None:
    named = held.rows[0].where.rpartition(", line")[0] if held.rows else "heldout.jsonl"
    learned = sum(len(row.learned) for row in held.measured)
    say(f"verifying on {len(held.rows)} rows of {named}; logits at {learned:,} learned tokens of {len(held.measured)}")
    if held.refused:
        warn(f"{len(held.refused)} rows are left out: {held.refused[0]}")
    if not learned:
        warn("no row has a learned token: perplexity, KL and equal top tokens can't be told")


def _task(files: Mapping[str, Path], ground: Ground) -> dict[str, Any]:
    held, ends = ground.held, ground.ends
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


def _measure(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process of its own tells of each file; an `error` where it did not come to it."""
    count, told = len(task["files"]), 0
    with progress(count, "verified") as bar:
        try:
            for line in lines_of([sys.executable, "-m", "impruver_gguf.measure"], json.dumps(task)):
                yield json.loads(line)
                told += 1
                bar.update(1)
        except CalledProcessError as ended:
            words = last_words(ended.stderr)
            if ended.returncode == FULL:
                raise ImpruverError(
                    f"{task['scratch']}: {words}; make room, or leave the proof out with --verify false"
                ) from None
            if told < count:
                yield {"error": f"llama.cpp ended with {ended.returncode} as it ran it: {words}"}
                told += 1
    yield from [{"error": "not measured, since an earlier file failed"}] * (count - told)
