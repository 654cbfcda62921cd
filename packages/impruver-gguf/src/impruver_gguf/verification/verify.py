"""Verify the files that were made: run every check, print what came of it, and publish quality.jsonl."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result, warn
from impruver_core.errors import CheckFailedError
from impruver_core.io.atomic import get_staged_path, open_synced
from impruver_core.io.disk_space import check_free_space
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import describe_file, publish

from impruver_gguf.conversion.artifacts import QUALITY_FILE
from impruver_gguf.sections import LimitsSection
from impruver_gguf.verification.checks import check_measurement, warn_about_endings
from impruver_gguf.verification.heldout import VerificationInputs
from impruver_gguf.verification.llama_server import find_rendering_difference
from impruver_gguf.verification.measure import FileMeasurement, measure_files
from impruver_gguf.verification.transformers_parity import find_difference_from_merged

COLUMNS = ("LEVEL", "MB", "BITS/WEIGHT", "IDS", "PERPLEXITY", "KL", "TOP 1", "STOPS", "")


@dataclass
class VerificationReport:
    """What came of verifying files."""

    files: Mapping[str, Path]  # level → file, the unquantized one first
    rows: list[dict[str, Any]] = field(default_factory=list)  # of quality.jsonl, one for each file
    failures: dict[str, str] = field(default_factory=dict)  # level → what is wrong with its file
    recommended: str | None = None  # a level
    answers: list[list[int]] = field(default_factory=list)  # token ids of the unquantized file's greedy answers

    def add_failure(self, level: str, failure: str | None) -> None:
        """Note what is wrong with a level's file, if anything."""
        if failure:
            self.failures[level] = f"{self.files[level].name}: {failure}"

    def conclude(self, limits: LimitsSection) -> None:
        """Fail what was made from a wrong file, and recommend the smallest of the others within the limits."""
        (outtype, source), *levels = self.files.items()
        if outtype in self.failures:
            for level, path in levels:
                self.failures.setdefault(level, f"{path.name}: made from {source.name}, which failed")
        rows = self.rows
        able = [row for row in rows if row["level"] not in self.failures and _is_within_limits(row, rows[0], limits)]
        best = min(able, key=lambda row: row["bytes"], default=None)
        for row in rows:
            row["recommended"] = row is best
        self.recommended = best["level"] if best else None


def verify(
    files: Mapping[str, Path], inputs: VerificationInputs, limits: LimitsSection, server: str | None
) -> VerificationReport:
    """Verify files (level → path, the unquantized one first): with llama.cpp, a llama-server, transformers.

    `server` is a llama-server, whose template engine is compared where there is one.
    """
    report = check_files(files, inputs, limits)
    outtype, path = next(iter(files.items()))
    if server and outtype not in report.failures:
        report.add_failure(outtype, find_rendering_difference(server, path, inputs))
    if outtype not in report.failures:
        bits = report.rows[0]["bits_per_weight"]
        report.add_failure(outtype, find_difference_from_merged(outtype, path, bits, report.answers, inputs))
    report.conclude(limits)
    return report


def check_files(files: Mapping[str, Path], inputs: VerificationInputs, limits: LimitsSection) -> VerificationReport:
    """Measure files with llama.cpp, and check what it makes of them."""
    report, heldout, outtype = VerificationReport(files), inputs.heldout, next(iter(files))
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
    check_free_space(files[outtype].parent, 4 * targets * inputs.tokenizer.size)  # logits of the unquantized file
    measurements = measure_files([*files.values()], inputs)
    for (level, path), measurement in zip(files.items(), measurements, strict=True):
        failure, ids_equal = check_measurement(measurement, inputs)
        report.add_failure(level, failure)
        report.rows.append(build_quality_row(level, path.stat().st_size, measurement, ids_equal))
        if level == outtype:
            report.answers = [answer.ids for answer in measurement.answers]
            warn_about_endings(measurement, inputs)
    report.conclude(limits)
    return report


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
        folder = next(iter(report.files.values())).parent
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


def build_quality_row(level: str, size: int, measurement: FileMeasurement, ids_equal: bool | None) -> dict[str, Any]:
    """Build a level's row of quality.jsonl; None for what could not be measured."""
    nll, is_reference, answers = measurement.nll, measurement.kl is None, len(measurement.answers)
    return {
        "level": level,
        "bytes": size,
        "bits_per_weight": measurement.bits_per_weight,
        "ids_equal": ids_equal,
        "perplexity": None if nll is None or not nll < 700 else exp(nll),
        "kl": None if nll is None else 0.0 if is_reference else measurement.kl,
        "top1": None if nll is None else 1.0 if is_reference else measurement.top1,
        "stops": measurement.answers_ended / answers if answers else None,
        "recommended": False,
    }


def _is_within_limits(row: dict[str, Any], first: dict[str, Any], limits: LimitsSection) -> bool:
    """Whether it is within the limits, and ends answers if the unquantized file does."""
    if row["kl"] is None or row["top1"] is None:
        return False  # nothing says how good it is
    endless = bool(first["stops"]) and not row["stops"]
    return row["kl"] <= limits.kl and row["top1"] >= limits.top1 and not endless


def format_quality_table(report: VerificationReport) -> str:
    """Format the rows for people."""
    return format_table(
        COLUMNS,
        [
            (
                row["level"],
                f"{row['bytes'] / 1e6:,.1f}",
                _format_number(row["bits_per_weight"], ".2f"),
                {None: "-", True: "equal", False: "DIFFER"}[row["ids_equal"]],
                _format_number(row["perplexity"], ".4g"),
                _format_number(row["kl"], ".4f"),
                _format_number(row["top1"], ".1%"),
                _format_number(row["stops"], ".0%"),
                "FAILED" if row["level"] in report.failures else "recommended" if row["recommended"] else "",
            )
            for row in report.rows
        ],
    )


def _format_number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
