"""Report how good each level is: its row in quality.jsonl, the table, and the level to recommend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table

from impruver_gguf.sections import LimitsSection
from impruver_gguf.verification.measure import FileMeasurement

QUALITY_FILE = "quality.jsonl"
COLUMNS = ("LEVEL", "MB", "BITS/WEIGHT", "IDS", "PERPLEXITY", "KL", "TOP 1", "STOPS", "")


@dataclass
class VerificationReport:
    """What came of verifying files."""

    files: Mapping[str, Path]  # level → file, the unquantized one first
    rows: list[dict[str, Any]] = field(default_factory=list)  # of quality.jsonl, one for each file
    failures: dict[str, str] = field(default_factory=dict)  # level → what is wrong with its file
    recommended: str | None = None  # a level
    answers: list[list[int]] = field(default_factory=list)  # token ids of the unquantized file's greedy answers

    @property
    def outtype(self) -> str:
        """The level of the unquantized file."""
        return next(iter(self.files))

    def add_failure(self, level: str, failure: str) -> None:
        """Note what is wrong with a level's file."""
        self.failures[level] = f"{self.files[level].name}: {failure}"

    def conclude(self, limits: LimitsSection) -> None:
        """Fail what was made from a wrong file, and recommend the smallest of the others within the limits."""
        if self.outtype in self.failures:
            source = self.files[self.outtype].name
            for level, path in self.files.items():
                self.failures.setdefault(level, f"{path.name}: made from {source}, which failed")
        rows = self.rows
        able = [row for row in rows if row["level"] not in self.failures and _is_within_limits(row, rows[0], limits)]
        best = min(able, key=lambda row: row["bytes"], default=None)
        for row in rows:
            row["recommended"] = row is best
        self.recommended = best["level"] if best else None


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
    return format_table(COLUMNS, [_format_cells(row, row["level"] in report.failures) for row in report.rows])


def _format_cells(row: dict[str, Any], failed: bool) -> tuple[str, ...]:
    equal = {None: "-", True: "equal", False: "DIFFER"}[row["ids_equal"]]
    return (
        row["level"],
        f"{row['bytes'] / 1e6:,.1f}",
        _format_number(row["bits_per_weight"], ".2f"),
        equal,
        _format_number(row["perplexity"], ".4g"),
        _format_number(row["kl"], ".4f"),
        _format_number(row["top1"], ".1%"),
        _format_number(row["stops"], ".0%"),
        "FAILED" if failed else "recommended" if row["recommended"] else "",
    )


def _format_number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
