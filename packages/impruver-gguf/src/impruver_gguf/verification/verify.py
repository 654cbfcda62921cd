"""The proof of what was made: told as a table, kept in quality.jsonl, and a failed check is the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from impruver_core.cli.console import log_info, open_progress, print_result, warn
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.atomic import get_staged_path, open_synced
from impruver_core.io.disk_space import check_free_space
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import describe_file, publish
from impruver_core.labels import IGNORE_INDEX

from impruver_gguf.ollama.model_defaults import context_length
from impruver_gguf.sections import LimitsSection
from impruver_gguf.verification.checks import failure_of, warn_about
from impruver_gguf.verification.heldout import HeldOut, Row, read_heldout
from impruver_gguf.verification.llama_server import other_rendering
from impruver_gguf.verification.measure_worker import FULL
from impruver_gguf.verification.quality_report import QUALITY, quality_row, quality_table, recommend
from impruver_gguf.verification.transformers_parity import other_than_merged
from impruver_gguf.verification.types import Ground, Proof, Trained
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer
from impruver_gguf.worker_process import last_words, lines_of


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
    check_free_space(path.parent, 4 * learned * tokenizer.size)  # the unquantized file's logits
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
    log_info(
        f"verifying on {len(held.rows)} rows of {named}; logits at {learned:,} learned tokens of {len(held.measured)}"
    )
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
    return [label for label in row.labels[1:] if label != IGNORE_INDEX]


def _measure(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process of its own tells of each file; an `error` where it did not come to it."""
    count, told = len(task["files"]), 0
    with open_progress(count, "verified") as bar:
        try:
            for line in lines_of([sys.executable, "-m", "impruver_gguf.verification.measure_worker"], json.dumps(task)):
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


def prove(
    trained: Trained,
    ground: Ground,
    files: Mapping[str, Path],
    limits: LimitsSection,
    manifest_path: Path,
    manifest: dict[str, Any],
    server: str | None,
) -> str | None:
    """Verifies `files` (level → path), which stand in place; the recommended level. CheckFailed tells what is wrong."""
    proof = verify(ground, files, limits, server)
    outtype, path = next(iter(files.items()))
    if outtype not in proof.failures:
        failure = other_than_merged(outtype, path, proof, ground.held, trained)
        if failure:
            fail(proof, files, failure, limits)
    _keep(proof, manifest_path, manifest)
    print_result(quality_table(proof.rows, set(proof.failures)))
    if proof.failures:
        raise CheckFailedError(
            f"{len(proof.failures)} of {len(files)} files failed the proof and are not to be used; they stay in "
            f"{manifest_path.parent} to be looked at:\n  " + "\n  ".join(proof.failures.values())
        )
    if proof.rows[0]["kl"] is None:
        print_result("none is recommended: nothing could be measured on these rows")
    elif proof.recommended is not None:
        print_result(
            f"recommended: {proof.recommended}, the smallest within KL {limits.kl:g} and top 1 {limits.top1:.0%}"
        )
    return proof.recommended


def _keep(proof: Proof, manifest_path: Path, manifest: dict[str, Any]) -> None:
    """Puts quality.jsonl in place, and into the manifest with it."""
    path = manifest_path.parent / QUALITY
    try:
        with open_synced(get_staged_path(path)) as file:
            write_rows(file, proof.rows)
        entry = describe_file(get_staged_path(path), rows=len(proof.rows), digest=True) | {"path": QUALITY}
        failed = sorted(proof.failures)
        known = {**manifest, "outputs": [*manifest["outputs"], entry], **({"failed": failed} if failed else {})}
        publish(manifest_path, {path: get_staged_path(path)}, known)
    finally:
        get_staged_path(path).unlink(missing_ok=True)
