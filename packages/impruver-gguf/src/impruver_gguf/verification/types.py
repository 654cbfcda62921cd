"""Inputs and report of verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impruver_core.recipe.sections import ModelSection

from impruver_gguf.verification.heldout import HeldOut
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer


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
