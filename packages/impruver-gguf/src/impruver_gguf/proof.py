"""The proof of what was made: told as a table, kept in quality.jsonl, and a failed check is the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impruver_core.cli.console import result
from impruver_core.errors import CheckFailed
from impruver_core.files.jsonl import write_rows
from impruver_core.files.manifest import describe, publish
from impruver_core.files.safe import staged, synced

from impruver_gguf.quality import QUALITY, quality_table
from impruver_gguf.reference import other_than_merged
from impruver_gguf.sections import LimitsSection
from impruver_gguf.verify import Ground, Proof, Trained, fail, verify


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
    result(quality_table(proof.rows, set(proof.failures)))
    if proof.failures:
        raise CheckFailed(
            f"{len(proof.failures)} of {len(files)} files failed the proof and are not to be used; they stay in "
            f"{manifest_path.parent} to be looked at:\n  " + "\n  ".join(proof.failures.values())
        )
    if proof.rows[0]["kl"] is None:
        result("none is recommended: nothing could be measured on these rows")
    elif proof.recommended is not None:
        result(f"recommended: {proof.recommended}, the smallest within KL {limits.kl:g} and top 1 {limits.top1:.0%}")
    return proof.recommended


def _keep(proof: Proof, manifest_path: Path, manifest: dict[str, Any]) -> None:
    """Puts quality.jsonl in place, and into the manifest with it."""
    path = manifest_path.parent / QUALITY
    try:
        with synced(staged(path)) as file:
            write_rows(file, proof.rows)
        entry = describe(staged(path), rows=len(proof.rows), digest=True) | {"path": QUALITY}
        failed = sorted(proof.failures)
        known = {**manifest, "outputs": [*manifest["outputs"], entry], **({"failed": failed} if failed else {})}
        publish(manifest_path, {path: staged(path)}, known)
    finally:
        staged(path).unlink(missing_ok=True)
