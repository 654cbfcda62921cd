"""How good each level is: its row in quality.jsonl, the table, and the level to recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

from impruver_core.cli.console import format_table

QUALITY = "quality.jsonl"


COLUMNS = ("LEVEL", "MB", "BITS/WEIGHT", "IDS", "PERPLEXITY", "KL", "TOP 1", "STOPS", "")


def quality_row(level: str, size: int, told: Mapping[str, Any], ids_equal: bool | None) -> dict[str, Any]:
    """A level's row of quality.jsonl from what llama.cpp told; null for what could not be measured."""
    surprise, first = told.get("surprise"), "kl" not in told
    answers = told.get("answers")
    return {
        "level": level,
        "bytes": size,
        "bits_per_weight": told.get("bits_per_weight"),
        "ids_equal": ids_equal,
        "perplexity": None if surprise is None or not surprise < 700 else exp(surprise),
        "kl": None if surprise is None else 0.0 if first else told["kl"],
        "top1": None if surprise is None else 1.0 if first else told["top1"],
        "stops": sum(ended for _, ended in answers) / len(answers) if answers else None,
        "recommended": False,
    }


def recommend(rows: Sequence[dict[str, Any]], failed: set[str], kl: float, top1: float) -> str | None:
    """Marks the smallest level that passed its checks within the limits."""
    able = [row for row in rows if row["level"] not in failed and _within(row, rows[0], kl, top1)]
    best = min(able, key=lambda row: row["bytes"], default=None)
    for row in rows:
        row["recommended"] = row is best
    return best["level"] if best else None


def _within(row: dict[str, Any], first: dict[str, Any], kl: float, top1: float) -> bool:
    """Within the limits, and it ends answers if the unquantized file does."""
    if row["kl"] is None or row["top1"] is None:
        return False  # nothing tells how good it is
    silent = bool(first["stops"]) and not row["stops"]
    return row["kl"] <= kl and row["top1"] >= top1 and not silent


def quality_table(rows: Sequence[dict[str, Any]], failed: set[str]) -> str:
    """The rows as people read them."""
    return format_table(COLUMNS, [_cells(row, row["level"] in failed) for row in rows])


def _cells(row: dict[str, Any], failed: bool) -> tuple[str, ...]:
    equal = {None: "-", True: "equal", False: "DIFFER"}[row["ids_equal"]]
    return (
        row["level"],
        f"{row['bytes'] / 1e6:,.1f}",
        _number(row["bits_per_weight"], ".2f"),
        equal,
        _number(row["perplexity"], ".4g"),
        _number(row["kl"], ".4f"),
        _number(row["top1"], ".1%"),
        _number(row["stops"], ".0%"),
        "FAILED" if failed else "recommended" if row["recommended"] else "",
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
