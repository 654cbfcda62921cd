"""Probe each data set's first rows before any work; check the trained share, end of turn and prompt consistency."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from impruver_core.chat_template.masking.loss_mask import PromptConsistency, Refused, compare_prompt
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.cli.console import warn
from impruver_core.errors import CheckFailedError, ImpruverError, RefusedError
from impruver_core.labels import TRAINED_ROLES

from impruver_compose.converters.conversion import Conversation
from impruver_compose.dataset_stats import DatasetStats
from impruver_compose.encoding.encoder import ConvertedPart, build_training_views, convert_row_of, encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.encoding.overlong import cut_overlong
from impruver_compose.field_usage import format_unused
from impruver_compose.storage import EncodedShard

PROBED = 100  # rows of a data set that must have a loss mask before any work on the rest
ESTIMATED = 200  # rows of a data set that a dry run encodes
AROUND = 60  # characters shown on both sides of where two texts differ
USER, ANSWER = {"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}
AGAIN, LAST = {"role": "user", "content": "А три и три?"}, {"role": "assistant", "content": " Шесть.\n"}
SYSTEM = {"role": "system", "content": "Answer briefly."}
BUILT_IN = [[USER, ANSWER], [USER, ANSWER, AGAIN, LAST], [SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER, AGAIN, LAST]]
_View = tuple[list[dict], PromptConsistency]  # a row's messages, and how training and inference compare


@dataclass
class TemplateProbeResult:
    """What a data set's first rows show."""

    documents: int = 0
    rows: int = 0  # of chats, as `turns` makes them
    unlike_prompt: int = 0  # of these: the text before the last answer is not the inference prompt
    example: dict | None = None  # the first such row
    reasoning_stripped: int = 0  # of these: earlier turns have lost their reasoning
    endless_calls: bool = False  # there are tool calls, and the template ends a turn of them by no token
    missing_ends: dict[str, None] = field(default_factory=dict)  # why a last turn's end is not trained on, in order


def probe_template(job: DatasetJob) -> TemplateProbeResult:
    """Renders a data set's first rows; CheckFailedError if one of them, or all and the built-in ones, have no mask."""
    result, templates, chats, tools = TemplateProbeResult(), TemplateSelector(job.tokenizer), 0, None
    calls = False  # in any of the rows
    for part in _convert_first_rows(job):
        chat = part.conversation
        if chat.text is not None:
            result.documents += 1
            continue
        chats += 1
        tools = tools or chat.tools
        calls = calls or any(map(_has_calls, chat.messages))
        try:
            for view in _compare_views(job, templates, chat):
                _add_view(result, job, part, view)
        except RefusedError as error:
            if error.reason == "mask_refused":
                where = f"data set {job.index} ({job.name}), row {part.row}, conversation {part.part}"
                content = json.dumps(chat.to_row(), ensure_ascii=False)
                raise CheckFailedError(f"{where}: {error.detail}\n{content}") from None
    if chats and not result.rows:
        _check_built_in(job, templates)
    if job.section.strict_columns:
        check_strict_columns(job, estimate_stats(job)[0])
    template_format = templates.select(tools, job.template_kwargs).format if tools or calls else None
    result.endless_calls = calls and template_format.renders_calls and not template_format.ends_calls
    if tools and not template_format.renders_tools:
        warn(f"data set {job.index} ({job.name}): its rows have tools, which the chat template does not render")
    return result


def _has_calls(message: Any) -> bool:
    """Whether a message, which a user's function may have made, has tool calls in one of their forms."""
    if not isinstance(message, dict):
        return False
    return bool(message.get("tool_calls") or message.get("function_call")) or message.get("role") == "function_call"


def _convert_first_rows(job: DatasetJob) -> Iterator[ConvertedPart]:
    for row in range(min(PROBED, len(job.rows))):
        with suppress(RefusedError):  # counted when all are encoded
            chats = enumerate(cut_overlong(job, chat) for chat in convert_row_of(job, row))
            yield from (ConvertedPart(row, part, chat) for part, chat in chats if not isinstance(chat, Refused))


def _compare_views(job: DatasetJob, templates: TemplateSelector, chat: Conversation) -> list[_View]:
    """Compares training with the inference prompt for each view of a conversation."""
    kwargs = job.build_template_kwargs(chat)
    whole = compare_prompt(templates, chat.messages, chat.tools, kwargs)
    if whole is None or job.section.turns == "all":
        return [(chat.messages, whole)] if whole else []
    views = build_training_views(chat.messages, job.section.turns)
    compared = [(messages, compare_prompt(templates, messages, chat.tools, kwargs)) for messages in views]
    return [(messages, consistency) for messages, consistency in compared if consistency is not None]


def _add_view(result: TemplateProbeResult, job: DatasetJob, part: ConvertedPart, view: _View) -> None:
    messages, consistency = view
    result.rows += 1
    result.reasoning_stripped += consistency.strips_reasoning and job.section.turns == "all"  # else as at inference
    if consistency.prompt is not None and consistency.prompt != consistency.trained:
        result.unlike_prompt += 1
        result.example = result.example or _build_example(part, consistency.trained, consistency.prompt)
    reason = None if consistency.ended else _explain_missing_end(job, messages[consistency.number + 1 :])
    if reason:
        result.missing_ends[reason] = None


def _explain_missing_end(job: DatasetJob, following: list[dict]) -> str | None:
    """Says why no EOS is behind a last trained answer that the template does not end; None if one is."""
    if any(message["role"] in TRAINED_ROLES for message in following):
        return "the last answer has train: false"
    if following:
        return "rows go on behind their last answer"
    return job.explain_missing_eos()


def _check_built_in(job: DatasetJob, templates: TemplateSelector) -> None:
    """CheckFailedError if no built-in conversation has an exact loss mask."""
    for messages in reversed(BUILT_IN):
        try:
            if compare_prompt(templates, messages, None, job.template_kwargs):
                return
        except RefusedError as error:
            reason = error
    template, variables, _ = templates.select(None, job.template_kwargs)
    try:
        text = str.__str__(render_template(template, messages, variables=variables))
    except RefusedError:
        text = None
    raise CheckFailedError(
        f"the chat template gives no exact mask, neither for a row of data set {job.index} ({job.name}) nor for the "
        f"plainest conversation: {reason}\nmessages: {json.dumps(messages)}\nrendered: {text!r}"
    )


def estimate_stats(job: DatasetJob) -> tuple[DatasetStats, EncodedShard]:
    """Encodes a data set's first rows and counts them; writes nothing."""
    shard, _ = encode_rows(job, 0, min(ESTIMATED, len(job.rows)))
    stats = DatasetStats(job.name, job.index)
    stats.add_shard(shard)
    token_rows = [token_row for each in shard.conversations for token_row in each.token_rows]
    stats.train_rows = len(token_rows)
    stats.add_tokens(*([getattr(row, name) for row in token_rows] for name in ("tokens", "target_tokens", "ended")))
    return stats, shard


def check_strict_columns(job: DatasetJob, stats: DatasetStats) -> None:
    """ImpruverError for a data set with `strict_columns` that has columns, or keys of messages, that nothing reads."""
    unused = stats.usage.list_unread() if job.section.strict_columns else []
    if unused:
        names = [each["name"] for each in unused]
        inner = [name for name in names if name.startswith(("messages[].", "chat_template_kwargs."))]
        mapping = ", ".join(f"{name}: _" for name in names if name not in inner)
        way = f"; what is left out on purpose is named by mapping: {{{mapping}}}" if mapping else ""
        way += f"; take {', '.join(inner)} out of the data" if inner else ""
        where = f"data set {job.index} ({job.name})"
        raise ImpruverError(f"{where}: strict_columns is set, and nothing reads {format_unused(unused)}{way}")


def build_template_check(job: DatasetJob, stats: DatasetStats, probe: TemplateProbeResult) -> dict:
    """Builds a data set's entry of the manifest's `gate`, with what to warn of."""
    entry = {
        "dataset": job.name,
        "dataset_index": job.index,
        "tokens": stats.tokens,
        "learned": stats.learned,
        "learned_share": round(stats.learned / max(1, stats.tokens), 4),
        "nothing_to_learn": stats.dropped["nothing_to_learn"],
        "rows": stats.train_rows + stats.val_rows,
        "ended": stats.ended,
        "probed": probe.rows,
        "unlike_prompt": probe.unlike_prompt,
        "example": probe.example,
        "reasoning_stripped": probe.reasoning_stripped,
    }
    warnings = [_format_end_warning(job, entry, probe)]
    if probe.endless_calls:
        warnings.append(
            "the chat template ends a turn of tool calls by no token, only by the header of the result: the model is "
            "not taught to stop behind a call"
        )
    if probe.example:
        example = probe.example
        warnings.append(
            f"in {probe.unlike_prompt} of the first {probe.rows} rows the text before the last answer is not the "
            f"prompt at inference; row {example['row']}, conversation {example['part']}:\n"
            f"  training:  {example['trained']!r}\n  inference: {example['prompt']!r}"
        )
    if probe.reasoning_stripped:
        warnings.append(
            f"the chat template strips reasoning of earlier turns in {probe.reasoning_stripped} of the first "
            f"{probe.rows} rows: it is not trained on, and the answers behind it are trained on without it; "
            "turns: each (or last) makes rows as at inference"
        )
    entry["warnings"] = [warning for warning in warnings if warning]
    unused = stats.usage.list_unread()
    return entry | _describe_control_text(job, stats) | ({"unused": unused} if unused else {})


def _describe_control_text(job: DatasetJob, stats: DatasetStats) -> dict:
    """The number of conversations with control text, and a note of what became of it; {} where there are none."""
    encoded, dropped = stats.control_text, stats.dropped["control_text"]
    if not encoded + dropped:
        return {}
    how = "as the tokens (tokenizer.control_text: text encodes it as text)" if job.control_text == "keep" else "as text"
    why = "" if job.control_text == "refuse" else ", where that can't be exact"
    ways = [f"encoded {how}, marked by --show"] if encoded else []
    ways += [f"{dropped} dropped{why}"] if dropped else []
    found = f"control text, such as <|im_end|>, in {encoded + dropped} of {stats.conversations} conversations"
    return {"control_text": encoded + dropped, "notes": [f"{found}: {'; '.join(ways)}"]}


def _format_end_warning(job: DatasetJob, entry: dict, probe: TemplateProbeResult) -> str | None:
    endless = probe.rows and not TemplateSelector(job.tokenizer).select(None, job.template_kwargs).format.stops
    reasons = ["the chat template has no end-of-turn token, a turn ends only by the next header"] if endless else []
    if entry["ended"] == entry["rows"]:
        return f"{reasons[0]}: EOS behind the last answer alone teaches the model to stop" if endless else None
    cut = "of documents that are cut at max_tokens_count only the last piece has EOS"
    reasons += [*probe.missing_ends, *([job.explain_missing_eos() or cut] if probe.documents else [])]
    hint = "; the model won't learn to stop" if not entry["ended"] else ""
    why = "; ".join(dict.fromkeys(reasons)) or "no end stands behind some answers"
    return f"the end of the last turn is trained on in {entry['ended']} of {entry['rows']} rows: {why}{hint}"


def _build_example(part: ConvertedPart, *texts: str) -> dict:
    """Builds the entry of a row, with both texts around where they differ."""
    position = len(commonprefix(texts))  # noqa: RUF071 (no paths)
    start, stop = max(0, position - AROUND), position + AROUND
    trained, prompt = (f"{'…' if start else ''}{text[start:stop]}{'…' if stop < len(text) else ''}" for text in texts)
    return {"row": part.row, "part": part.part, "trained": trained, "prompt": prompt}
