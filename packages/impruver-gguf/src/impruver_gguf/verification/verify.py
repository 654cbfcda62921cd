"""Verify the files that were made: run every check, print what came of it, and publish quality.jsonl.

What llama.cpp makes of a file is checked against output_dir's tokenizer and the held-out rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result, warn
from impruver_core.errors import CheckFailedError
from impruver_core.io.atomic import check_free_space, get_staged_path, open_synced
from impruver_core.io.jsonl import write_rows
from impruver_core.io.manifest import describe_file, publish

from impruver_gguf.conversion.artifacts import QUALITY_FILE
from impruver_gguf.sections import LimitsSection
from impruver_gguf.verification.heldout import HeldOutExample, HeldOutSet, VerificationInputs
from impruver_gguf.verification.llama_server import find_rendering_difference
from impruver_gguf.verification.measure import PLAIN_TEXT, FileMeasurement, measure_files
from impruver_gguf.verification.transformers_parity import find_difference_from_merged
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer
from impruver_gguf.vocab.token_types import WORD_BORDER
from impruver_gguf.vocab.vocabulary import get_template_key, strip_generation_tags

COLUMNS = ("LEVEL", "MB", "BITS/WEIGHT", "IDS", "PERPLEXITY", "KL", "TOP 1", "STOPS", "")
IDS_AROUND = 6  # shown on each side of a difference
MAX_TEXT = 300  # characters of a row that are shown


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
        publish(manifest_path, [path], manifest)
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


def check_measurement(measurement: FileMeasurement, inputs: VerificationInputs) -> tuple[str | None, bool | None]:
    """Say what is wrong with a file, and whether all its ids are the tokenizer's; None where that is not known."""
    if measurement.error:
        return measurement.error, None
    tokenizer, heldout, blanks = inputs.tokenizer, inputs.heldout, 0
    for example, ids in zip(heldout.examples, measurement.ids, strict=True):
        if ids == example.text_ids:
            continue
        if not _is_same_except_blanks(ids, example.text_ids, tokenizer):
            return _describe_other_ids(example, ids), False
        blanks += 1
    if blanks:
        rows = f"{blanks} of {len(heldout.examples)} rows"
        warn(f"{rows}: llama.cpp and the tokenizer differ on blanks at the start of a text")
    if measurement.vocab_size < tokenizer.size:
        return f"it has {measurement.vocab_size:,} tokens, the tokenizer {tokenizer.size:,}", False
    failure = _find_template_fault(measurement.templates, heldout, tokenizer) or _find_endless_answers(measurement)
    return failure, not blanks if heldout.examples else None


def _is_same_except_blanks(ours: list[int], theirs: list[int], tokenizer: SavedTokenizer) -> bool:
    """Whether ids say the same but for SentencePiece's blank at the start or after a special token."""
    segments = [_split_at_special_tokens(ids, tokenizer) for ids in (ours, theirs)]
    return len(segments[0]) == len(segments[1]) and all(map(_is_same_segment, *segments))


def _split_at_special_tokens(ids: list[int], tokenizer: SavedTokenizer) -> list[list[str]]:
    """The texts of tokens, cut before each special token, which stands first in its segment."""
    segments: list[list[str]] = [[""]]
    for token_id in ids:
        text = tokenizer.backend_tokenizer.id_to_token(token_id) or f"<{token_id}>"
        if token_id in tokenizer.added_tokens_decoder:
            segments.append([text])
        else:
            segments[-1].append(text)
    return segments


def _is_same_segment(one: list[str], other: list[str]) -> bool:
    while len(one) > 1 and len(other) > 1 and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    heads = ["".join(texts[1:]).lstrip(WORD_BORDER) for texts in (one, other)]
    return one[0] == other[0] and heads[0] == heads[1] and WORD_BORDER not in heads[0]


def _describe_other_ids(example: HeldOutExample, ids: list[int]) -> str:
    pairs = enumerate(zip(ids, example.text_ids, strict=False))
    first = next((position for position, (one, other) in pairs if one != other), min(len(ids), len(example.text_ids)))
    around = slice(max(0, first - IDS_AROUND), first + IDS_AROUND)
    text = example.text if len(example.text) <= MAX_TEXT else f"{example.text[:MAX_TEXT]}…"
    return (
        f"llama.cpp's token ids are not the tokenizer's in {example.where}, from token {first} on: llama.cpp "
        f"{ids[around]}, tokenizer.json {example.text_ids[around]}; the row: {text!r}"
    )


def _find_template_fault(templates: Mapping[str, str], heldout: HeldOutSet, tokenizer: SavedTokenizer) -> str | None:
    """Say what is wrong with a file's chat templates: other texts, or another rendering without generation tags."""
    own = tokenizer.chat_template
    own = own if isinstance(own, dict) else {"default": own} if own else {}
    keys = {name: get_template_key(name) for name in own}
    in_file = {text: templates.get(keys[name]) for name, text in own.items()}
    for name, text in own.items():
        if in_file[text] not in (text, strip_generation_tags(text)):
            difference = f"in the file: {in_file[text]!r}; the tokenizer's: {text!r}"
            return f"{keys[name]} is not the tokenizer's own; {difference}"
    for example in heldout.examples:
        chat = example.chat
        if not chat or in_file.get(chat.template, chat.template) == chat.template:
            continue
        text = chat.render(in_file[chat.template])
        if text != example.text:
            return f"its template renders {example.where} otherwise: {text!r}; the tokenizer's: {example.text!r}"
    return None


def _find_endless_answers(measurement: FileMeasurement) -> str | None:
    """Say that no answer ends, though the model predicts the end of its turns; of the first file only."""
    answers, ends, predicted = len(measurement.answers), measurement.ends, measurement.predicted_ends
    if answers and not measurement.answers_ended and measurement.kl is None and ends and 2 * predicted >= ends:
        return (
            f"no greedy answer ended by itself ({answers} tried), though an end of turn is the likeliest token at "
            f"{predicted} of {ends} ends of held-out answers"
        )
    return None


def warn_about_endings(measurement: FileMeasurement, inputs: VerificationInputs) -> None:
    """Warn where a file ends answers, or frames plain text, otherwise without being wrong."""
    tokenizer = inputs.tokenizer.backend_tokenizer
    if measurement.end_ids is not None:
        unknown = [
            tokenizer.id_to_token(token_id) for token_id in inputs.end_ids if token_id not in measurement.end_ids
        ]
        if unknown:
            warn(f"llama.cpp itself does not stop at {', '.join(unknown)}; Ollama does, by the Modelfile's stop")
    answers = len(measurement.answers)
    if answers and not measurement.answers_ended:
        warn(f"none of {answers} greedy answers ended by itself: the model has not learned where a turn ends")
    plain_ids = measurement.plain_ids
    if plain_ids is not None and (ids := tokenizer.encode(PLAIN_TEXT).ids) != plain_ids:
        warn(f"around plain text llama.cpp and the tokenizer put other tokens: {plain_ids} and {ids} for 'a'")
