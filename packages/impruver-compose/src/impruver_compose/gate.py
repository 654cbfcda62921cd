"""The gate: what of each data set is learned, whether the model learns to stop, and whether it is asked as trained."""

from collections.abc import Sequence
from os.path import commonprefix

from impruver_core.cli.console import say, table, warn
from impruver_core.templating.template import Templates

from impruver_compose import output
from impruver_compose.encode import encode_rows
from impruver_compose.jobs import Job
from impruver_compose.ledger import Counts
from impruver_compose.probe import Seen
from impruver_compose.tables import gated

DRY_ROWS = 200  # rows of each data set that a dry run encodes
AROUND = 60  # characters shown on both sides of where two texts part


def check(jobs: Sequence[Job], counts: Sequence[Counts], seen: Sequence[Seen]) -> list[dict]:
    """Prints the gate, warns where something is amiss; what the manifest keeps of it, an entry a data set."""
    entries = [_entry(*each) for each in zip(jobs, counts, seen, strict=True)]
    header, rows = gated(entries)
    say(table(header[:5], [row[:5] for row in rows]))  # of the others warnings tell
    for entry in entries:
        for warning in entry["warnings"]:
            warn(f"data set {entry['dataset_index']} ({entry['dataset']}): {warning}")
    return entries


def estimate(jobs: Sequence[Job], seen: Sequence[Seen]) -> None:
    """Encodes the first rows of each data set and says what they tell of the whole; writes nothing."""
    counts = []
    for job in jobs:
        shard, _ = encode_rows(job, 0, min(DRY_ROWS, len(job.rows)))
        each = Counts()
        each.add(shard)
        lines = [line for kept in shard.kept for line in kept.lines]
        each.train_rows = len(lines)
        for name in ("tokens", "learned", "ended"):
            setattr(each, name, sum(getattr(line, name) for line in lines))
        counts.append(each)
    check(jobs, counts, seen)
    output.report_estimate(jobs, counts)


def _entry(job: Job, each: Counts, seen: Seen) -> dict:
    entry = {
        "dataset": job.name,
        "dataset_index": job.index,
        "tokens": each.tokens,
        "learned": each.learned,
        "learned_share": round(each.learned / max(1, each.tokens), 4),
        "nothing_to_learn": each.dropped["nothing_to_learn"],
        "rows": each.train_rows + each.val_rows,
        "ended": each.ended,
        "probed": seen.rows,
        "unlike_prompt": seen.unlike,
        "example": seen.example and _example(*seen.example),
        "reasoning_stripped": seen.stripped,
    }
    warnings = [_of_ends(job, entry, seen), _of_the_prompt(entry), _of_reasoning(entry)]
    return entry | {"warnings": [warning for warning in warnings if warning]}


def _of_ends(job: Job, entry: dict, seen: Seen) -> str | None:
    endless = seen.rows and not Templates(job.tokenizer).pick(None, job.template_kwargs)[2].stops
    reasons = ["the chat template has no end-of-turn token, a turn ends only by the next header"] if endless else []
    if entry["ended"] == entry["rows"]:
        return f"{reasons[0]}: EOS behind the last answer alone teaches the model to stop" if endless else None
    cut = "of documents that are cut at max_tokens_count only the last piece has EOS"
    reasons += [*seen.unended, *([job.no_eos or cut] if seen.documents else [])]
    hint = "; the model won't learn to stop" if not entry["ended"] else ""
    why = "; ".join(dict.fromkeys(reasons)) or "no end stands behind some answers"
    return f"the end of the last turn is learned in {entry['ended']} of {entry['rows']} rows: {why}{hint}"


def _of_the_prompt(entry: dict) -> str | None:
    if not entry["unlike_prompt"]:
        return None
    example = entry["example"]
    return (
        f"in {entry['unlike_prompt']} of the first {entry['probed']} rows the text before the last answer is not what "
        f"the model is asked with, the generation prompt; row {example['row']}, conversation {example['part']}:\n"
        f"  training:  {example['trained']!r}\n  inference: {example['prompt']!r}"
    )


def _of_reasoning(entry: dict) -> str | None:
    if not entry["reasoning_stripped"]:
        return None
    return (
        f"the chat template strips reasoning of earlier turns in {entry['reasoning_stripped']} of the first "
        f"{entry['probed']} rows: it is not learned, and the answers behind it are learned without; "
        "turns: each (or last) makes rows as at inference"
    )


def _example(row: int, part: int, trained: str, prompt: str) -> dict:
    """Both texts around where they part."""
    border = len(commonprefix([trained, prompt]))  # noqa: RUF071 (no paths)
    trained, prompt = (_cut(text, border) for text in (trained, prompt))
    return {"row": row, "part": part, "trained": trained, "prompt": prompt}


def _cut(text: str, border: int) -> str:
    start, stop = max(0, border - AROUND), border + AROUND
    return f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
