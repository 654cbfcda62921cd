"""Rows and manifest against tokenizer and model."""

from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.manifest import get_manifest_path, read_manifest
from impruver_core.tokenizer import compute_fingerprint, compute_template_fingerprint

from impruver_train.data.token_dataset import Facts


def check_rows(facts: Facts, path: Path, vocabulary: int, positions: int | None) -> list[str]:
    """Refuses a file without a learnable row, ids that the model has no row for and rows longer than its positions.

    `positions` is None where the model has no limit. Returns notes.
    """
    if not facts.rows:
        raise ImpruverError(f"{path}: no rows; impruver-compose makes them")
    if facts.unlearned_rows == facts.rows:
        raise ImpruverError(
            f"{path}: nothing to learn in any of {facts.rows} rows: their labels are -100 behind the first token, or "
            "attention_mask hides every token; impruver-compose makes rows with labels"
        )
    if facts.largest_id >= vocabulary:
        raise ImpruverError(
            f"{path}, line {facts.largest_id_line}: id {facts.largest_id} is beyond the vocabulary of {vocabulary}; "
            "these rows were made with another tokenizer, or model.config.vocab_size is too small"
        )
    if positions is not None and facts.longest > positions:
        raise ImpruverError(
            f"{path}, line {facts.longest_line}: a row of {facts.longest} tokens, and the model has {positions} "
            "positions; set tokenizer.max_tokens_count and run impruver-compose again"
        )
    if not facts.unlearned_rows:
        return []
    return [
        f"{path}: {facts.unlearned_rows} rows teach nothing and are left out (the first is line {facts.unlearned_line})"
    ]


def check_data_manifest(path: Path | None, tokenizer: Any) -> dict[str, Any]:
    """The manifest of the rows in `path`, {} without one; another tokenizer or template is an ImpruverError."""
    manifest = read_manifest(get_manifest_path(path)) if path is not None else {}
    if manifest is None:
        log_info(f"note: {path} has no manifest: whether this tokenizer and template made its rows can't be checked")
        return {}
    ours = {"tokenizer": compute_fingerprint(tokenizer), "template": compute_template_fingerprint(tokenizer)}
    for part, name in (("tokenizer", "tokenizer"), ("template", "chat template")):
        made = (manifest.get(part) or {}).get("fingerprint")
        if made is not None and made != ours[part]:
            raise ImpruverError(
                f"{path} was made with another {name} than this recipe's; run impruver-compose with this recipe again, "
                f"or set the {name} that the rows were made with"
            )
    return manifest
