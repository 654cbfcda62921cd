"""Verify the files that were made: run every check, print what came of it, and publish quality.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, print_result, warn
from impruver_core.errors import CheckFailedError
from impruver_core.io.atomic import get_staged_path, open_synced
from impruver_core.io.disk_space import check_free_space
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import describe_file, publish

from impruver_gguf.sections import LimitsSection
from impruver_gguf.verification.checks import check_measurement, warn_about_endings
from impruver_gguf.verification.heldout import HeldOutSet, VerificationInputs
from impruver_gguf.verification.llama_server import find_rendering_difference
from impruver_gguf.verification.measure import measure_files
from impruver_gguf.verification.quality_report import (
    QUALITY_FILE,
    VerificationReport,
    build_quality_row,
    format_quality_table,
)
from impruver_gguf.verification.transformers_parity import find_difference_from_merged


def verify(
    files: Mapping[str, Path], inputs: VerificationInputs, limits: LimitsSection, server: str | None
) -> VerificationReport:
    """Verify files against the trained model: with llama.cpp, with a llama-server, with transformers.

    Args:
        files: Level → file, the unquantized one first.
        inputs: What they are verified against.
        limits: What a level may lose and still be recommended.
        server: A llama-server, whose template engine is compared; None: that is left out.
    """
    report = check_files(files, inputs, limits)
    if server and report.outtype not in report.failures:
        _add_failure(report, limits, find_rendering_difference(server, files[report.outtype], inputs))
    if report.outtype not in report.failures:
        _add_failure(report, limits, find_difference_from_merged(report, inputs))
    return report


def check_files(files: Mapping[str, Path], inputs: VerificationInputs, limits: LimitsSection) -> VerificationReport:
    """Measure files with llama.cpp, and check what it makes of them."""
    report = VerificationReport(files)
    _log_heldout(inputs.heldout)
    targets = sum(len(row.target_ids) for row in inputs.heldout.measured)
    logits_bytes = 4 * targets * inputs.tokenizer.size  # of the unquantized file
    check_free_space(files[report.outtype].parent, logits_bytes)
    measurements = measure_files([*files.values()], inputs)
    for (level, path), measurement in zip(files.items(), measurements, strict=True):
        failure, ids_equal = check_measurement(measurement, inputs)
        if failure:
            report.add_failure(level, failure)
        report.rows.append(build_quality_row(level, path.stat().st_size, measurement, ids_equal))
        if level == report.outtype:
            report.answers = [answer.ids for answer in measurement.answers]
            warn_about_endings(measurement, inputs)
    report.conclude(limits)
    return report


def _add_failure(report: VerificationReport, limits: LimitsSection, failure: str | None) -> None:
    """Note what a later check found wrong with the unquantized file, if anything."""
    if failure:
        report.add_failure(report.outtype, failure)
        report.conclude(limits)


def _log_heldout(heldout: HeldOutSet) -> None:
    source = heldout.examples[0].where.rpartition(", line")[0] if heldout.examples else "heldout.jsonl"
    targets = sum(len(row.target_ids) for row in heldout.measured)
    log_info(
        f"verifying on {len(heldout.examples)} rows of {source}; logits at {targets:,} target tokens of "
        f"{len(heldout.measured)}"
    )
    if heldout.refused:
        warn(f"{len(heldout.refused)} rows are left out: {heldout.refused[0]}")
    if not targets:
        warn("no row has a target token: perplexity, KL and equal top tokens can't be told")


def publish_quality(report: VerificationReport, manifest_path: Path, manifest: Mapping[str, Any]) -> None:
    """Put quality.jsonl in place, and into the manifest with it."""
    path = manifest_path.parent / QUALITY_FILE
    try:
        with open_synced(get_staged_path(path)) as file:
            write_rows(file, report.rows)
        entry = describe_file(get_staged_path(path), rows=len(report.rows), digest=True) | {"path": QUALITY_FILE}
        failed = {"failed": sorted(report.failures)} if report.failures else {}
        manifest = {**manifest, "outputs": [*manifest["outputs"], entry], **failed}
        publish(manifest_path, {path: get_staged_path(path)}, manifest)
    finally:
        get_staged_path(path).unlink(missing_ok=True)


def print_verification(report: VerificationReport, limits: LimitsSection) -> None:
    """Print the table and the recommended level; CheckFailedError says which files failed."""
    print_result(format_quality_table(report))
    if report.failures:
        folder = report.files[report.outtype].parent
        raise CheckFailedError(
            f"{len(report.failures)} of {len(report.files)} files failed the proof and are not to be used; they stay "
            f"in {folder} to be looked at:\n  " + "\n  ".join(report.failures.values())
        )
    if report.rows[0]["kl"] is None:
        print_result("none is recommended: nothing could be measured on these rows")
    elif report.recommended is not None:
        print_result(
            f"recommended: {report.recommended}, the smallest within KL {limits.kl:g} and top 1 {limits.top1:.0%}"
        )
