"""The gate: what of each data set is learned, whether the model learns to stop, and whether it is asked as trained."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

from impruver_core.chat_template.masking.prompt_consistency import PromptConsistency, compare_prompt
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.cli.console import format_table, log_info, warn
from impruver_core.errors import CheckFailedError, RefusedError
from impruver_core.labels import TRAINED_ROLES

from impruver_compose.converters.conversation import Conversation
from impruver_compose.encoding.encoder import convert_row_at, encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.encoding.turns import build_training_views
from impruver_compose.ledger import DatasetStats
from impruver_compose.reporting import summary_tables
from impruver_compose.reporting.summary_tables import build_template_check_table

PROBED = 100  # rows of a data set that must get a mask before any work on the rest


USER, ANSWER = {"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}


AGAIN, LAST = {"role": "user", "content": "А три и три?"}, {"role": "assistant", "content": " Шесть.\n"}


SYSTEM = {"role": "system", "content": "Answer briefly."}


BUILT_IN = [[USER, ANSWER], [USER, ANSWER, AGAIN, LAST], [SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER, AGAIN, LAST]]


@dataclass
class TemplateProbeResult:
    """What the first rows of a data set tell.

    `rows`: of chats, as `turns` makes them; `unlike`: those whose text before the last answer is not the generation
    prompt, `example` the first: row, conversation, both texts; `stripped`: those that lack reasoning of earlier turns;
    `unended`: why the end of a row's last learned turn is not learned.
    """

    documents: int = 0
    rows: int = 0
    unlike: int = 0
    stripped: int = 0
    example: tuple[int, int, str, str] | None = None
    unended: dict[str, None] = field(default_factory=dict)


def probe_template(job: DatasetJob) -> TemplateProbeResult:
    """Renders a data set's first rows; CheckFailed with the row where one has no exact mask.

    Or with what became of a built-in conversation, where neither one of these nor any row has one.
    """
    seen, templates, chats, tools = TemplateProbeResult(), TemplateSelector(job.tokenizer), 0, None
    for row, part, chat in _convert_first_rows(job):
        if chat.text is not None:
            seen.documents += 1
            continue
        chats += 1
        tools = tools or chat.tools
        try:
            for messages, met in _compare_prompts(job, templates, chat):
                _add_view(seen, job, (row, part), messages, met)
        except RefusedError as error:
            if error.reason == "mask_refused":
                place = f"data set {job.index} ({job.name}), row {row}, conversation {part}"
                told = json.dumps(chat.to_row(), ensure_ascii=False)
                raise CheckFailedError(f"{place}: {error.detail}\n{told}") from None
    if chats and not seen.rows:
        _check_builtin_mask(job, templates)
    if tools and not templates.select(tools, job.template_kwargs).format.renders_tools:
        warn(f"data set {job.index} ({job.name}): its rows have tools, which the chat template does not render")
    return seen


def _convert_first_rows(job: DatasetJob) -> Iterator[tuple[int, int, Conversation]]:
    """(row, part, conversation) of the first rows."""
    for row in range(min(PROBED, len(job.rows))):
        try:
            yield from ((row, part, chat) for part, chat in enumerate(convert_row_at(job, row)))
        except RefusedError:  # counted when all are encoded
            continue


def _compare_prompts(
    job: DatasetJob, templates: TemplateSelector, chat: Conversation
) -> list[tuple[list[dict], PromptConsistency]]:
    """(messages, joint) of each row that a conversation becomes."""
    whole = compare_prompt(templates, chat.messages, chat.tools, job.get_template_kwargs(chat))
    if whole is None or job.turns == "all":
        return [(chat.messages, whole)] if whole else []
    asked = build_training_views(chat.messages, job.turns)
    met = (
        (messages, compare_prompt(templates, messages, chat.tools, job.get_template_kwargs(chat))) for messages in asked
    )
    return [(messages, each) for messages, each in met if each is not None]


def _add_view(
    seen: TemplateProbeResult, job: DatasetJob, place: tuple[int, int], messages: list[dict], met: PromptConsistency
) -> None:
    seen.rows += 1
    seen.stripped += met.strips_reasoning and job.turns == "all"  # else it is so at inference, too
    if met.prompt is not None and met.prompt != met.trained:
        seen.unlike += 1
        seen.example = seen.example or (*place, met.trained, met.prompt)
    reason = None if met.ended else _explain_missing_end(job, messages[met.number + 1 :])
    if reason:
        seen.unended[reason] = None


def _explain_missing_end(job: DatasetJob, behind: list[dict]) -> str | None:
    """Why no EOS stands behind the last learned answer, in a template that does not end it; None where one does."""
    if any(message["role"] in TRAINED_ROLES for message in behind):
        return "the last answer has train: false"
    if behind:
        return "rows go on behind their last answer"
    return job.no_eos_reason


def _check_builtin_mask(job: DatasetJob, templates: TemplateSelector) -> None:
    """CheckFailed where no built-in conversation has an exact mask."""
    for messages in reversed(BUILT_IN):
        try:
            if compare_prompt(templates, messages, None, job.template_kwargs):
                return
        except RefusedError as error:
            told = error
    text = _render_if_possible(job, templates, messages)
    raise CheckFailedError(
        f"the chat template gives no exact mask, neither for a row of data set {job.index} ({job.name}) nor for the "
        f"plainest conversation: {told}\nmessages: {json.dumps(messages)}\nrendered: {text!r}"
    )


def _render_if_possible(job: DatasetJob, templates: TemplateSelector, messages: list[dict]) -> str | None:
    template, variables, _ = templates.select(None, job.template_kwargs)
    try:
        return str.__str__(render_template(template, messages, variables=variables))
    except RefusedError:
        return None


DRY_ROWS = 200  # rows of each data set that a dry run encodes


AROUND = 60  # characters shown on both sides of where two texts part


def check_templates(
    jobs: Sequence[DatasetJob], counts: Sequence[DatasetStats], seen: Sequence[TemplateProbeResult]
) -> list[dict]:
    """Prints the gate, warns where something is amiss; what the manifest keeps of it, an entry a data set."""
    entries = [_build_entry(*each) for each in zip(jobs, counts, seen, strict=True)]
    header, rows = build_template_check_table(entries)
    log_info(format_table(header[:5], [row[:5] for row in rows]))  # of the others warnings tell
    for entry in entries:
        for warning in entry["warnings"]:
            warn(f"data set {entry['dataset_index']} ({entry['dataset']}): {warning}")
    return entries


def estimate_stats(jobs: Sequence[DatasetJob], seen: Sequence[TemplateProbeResult]) -> None:
    """Encodes the first rows of each data set and says what they tell of the whole; writes nothing."""
    counts = []
    for job in jobs:
        shard, _ = encode_rows(job, 0, min(DRY_ROWS, len(job.rows)))
        each = DatasetStats()
        each.add_shard(shard)
        lines = [line for kept in shard.kept for line in kept.lines]
        each.train_rows = len(lines)
        for name in ("tokens", "learned", "ended"):
            setattr(each, name, sum(getattr(line, name) for line in lines))
        counts.append(each)
    check_templates(jobs, counts, seen)
    summary_tables.print_estimate(jobs, counts)


def _build_entry(job: DatasetJob, each: DatasetStats, seen: TemplateProbeResult) -> dict:
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
        "example": seen.example and _build_example(*seen.example),
        "reasoning_stripped": seen.stripped,
    }
    warnings = [_format_end_warning(job, entry, seen), _format_prompt_warning(entry), _format_reasoning_warning(entry)]
    return entry | {"warnings": [warning for warning in warnings if warning]}


def _format_end_warning(job: DatasetJob, entry: dict, seen: TemplateProbeResult) -> str | None:
    endless = seen.rows and not TemplateSelector(job.tokenizer).select(None, job.template_kwargs).format.stops
    reasons = ["the chat template has no end-of-turn token, a turn ends only by the next header"] if endless else []
    if entry["ended"] == entry["rows"]:
        return f"{reasons[0]}: EOS behind the last answer alone teaches the model to stop" if endless else None
    cut = "of documents that are cut at max_tokens_count only the last piece has EOS"
    reasons += [*seen.unended, *([job.no_eos_reason or cut] if seen.documents else [])]
    hint = "; the model won't learn to stop" if not entry["ended"] else ""
    why = "; ".join(dict.fromkeys(reasons)) or "no end stands behind some answers"
    return f"the end of the last turn is learned in {entry['ended']} of {entry['rows']} rows: {why}{hint}"


def _format_prompt_warning(entry: dict) -> str | None:
    if not entry["unlike_prompt"]:
        return None
    example = entry["example"]
    return (
        f"in {entry['unlike_prompt']} of the first {entry['probed']} rows the text before the last answer is not what "
        f"the model is asked with, the generation prompt; row {example['row']}, conversation {example['part']}:\n"
        f"  training:  {example['trained']!r}\n  inference: {example['prompt']!r}"
    )


def _format_reasoning_warning(entry: dict) -> str | None:
    if not entry["reasoning_stripped"]:
        return None
    return (
        f"the chat template strips reasoning of earlier turns in {entry['reasoning_stripped']} of the first "
        f"{entry['probed']} rows: it is not learned, and the answers behind it are learned without; "
        "turns: each (or last) makes rows as at inference"
    )


def _build_example(row: int, part: int, trained: str, prompt: str) -> dict:
    """Both texts around where they part."""
    border = len(commonprefix([trained, prompt]))  # noqa: RUF071 (no paths)
    trained, prompt = (_truncate_around(text, border) for text in (trained, prompt))
    return {"row": row, "part": part, "trained": trained, "prompt": prompt}


def _truncate_around(text: str, border: int) -> str:
    start, stop = max(0, border - AROUND), border + AROUND
    return f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}"
