"""What the template makes of each data set's first rows, and of built-in conversations, before any work on the rest."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from impruver_core.cli.console import warn
from impruver_core.errors import CheckFailed, RefusedError
from impruver_core.templating.joint import Joint, joint
from impruver_core.templating.render import render
from impruver_core.templating.spans import LEARNED_ROLES
from impruver_core.templating.template import Templates

from impruver_compose.convert import Conversation
from impruver_compose.encode import converted
from impruver_compose.jobs import Job
from impruver_compose.unfold import parts

PROBED = 100  # rows of a data set that must get a mask before any work on the rest

USER, ANSWER = {"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}
AGAIN, LAST = {"role": "user", "content": "А три и три?"}, {"role": "assistant", "content": " Шесть.\n"}
SYSTEM = {"role": "system", "content": "Answer briefly."}
BUILT_IN = [[USER, ANSWER], [USER, ANSWER, AGAIN, LAST], [SYSTEM, USER, ANSWER], [SYSTEM, USER, ANSWER, AGAIN, LAST]]


@dataclass
class Seen:
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


def probe(job: Job) -> Seen:
    """Renders a data set's first rows; CheckFailed with the row where one has no exact mask.

    Or with what became of a built-in conversation, where neither one of these nor any row has one.
    """
    seen, templates, chats, tools = Seen(), Templates(job.tokenizer), 0, None
    for row, part, chat in _first(job):
        if chat.text is not None:
            seen.documents += 1
            continue
        chats += 1
        tools = tools or chat.tools
        try:
            for messages, met in _joints(job, templates, chat):
                _note(seen, job, (row, part), messages, met)
        except RefusedError as error:
            if error.reason == "mask_refused":
                place = f"data set {job.index} ({job.name}), row {row}, conversation {part}"
                told = json.dumps(chat.as_row(), ensure_ascii=False)
                raise CheckFailed(f"{place}: {error.detail}\n{told}") from None
    if chats and not seen.rows:
        _require_a_mask(job, templates)
    if tools and not templates.pick(tools, job.template_kwargs)[2].renders_tools:
        warn(f"data set {job.index} ({job.name}): its rows have tools, which the chat template does not render")
    return seen


def _first(job: Job) -> Iterator[tuple[int, int, Conversation]]:
    """(row, part, conversation) of the first rows."""
    for row in range(min(PROBED, len(job.rows))):
        try:
            yield from ((row, part, chat) for part, chat in enumerate(converted(job, row)))
        except RefusedError:  # counted when all are encoded
            continue


def _joints(job: Job, templates: Templates, chat: Conversation) -> list[tuple[list[dict], Joint]]:
    """(messages, joint) of each row that a conversation becomes."""
    whole = joint(templates, chat.messages, chat.tools, job.kwargs(chat))
    if whole is None or job.turns == "all":
        return [(chat.messages, whole)] if whole else []
    asked = parts(chat.messages, job.turns)
    met = ((messages, joint(templates, messages, chat.tools, job.kwargs(chat))) for messages in asked)
    return [(messages, each) for messages, each in met if each is not None]


def _note(seen: Seen, job: Job, place: tuple[int, int], messages: list[dict], met: Joint) -> None:
    seen.rows += 1
    seen.stripped += met.strips_reasoning and job.turns == "all"  # else it is so at inference, too
    if met.prompt is not None and met.prompt != met.trained:
        seen.unlike += 1
        seen.example = seen.example or (*place, met.trained, met.prompt)
    reason = None if met.ended else _unended(job, messages[met.number + 1 :])
    if reason:
        seen.unended[reason] = None


def _unended(job: Job, behind: list[dict]) -> str | None:
    """Why no EOS stands behind the last learned answer, in a template that does not end it; None where one does."""
    if any(message["role"] in LEARNED_ROLES for message in behind):
        return "the last answer has train: false"
    if behind:
        return "rows go on behind their last answer"
    return job.no_eos


def _require_a_mask(job: Job, templates: Templates) -> None:
    """CheckFailed where no built-in conversation has an exact mask."""
    for messages in reversed(BUILT_IN):
        try:
            if joint(templates, messages, None, job.template_kwargs):
                return
        except RefusedError as error:
            told = error
    text = _rendering(job, templates, messages)
    raise CheckFailed(
        f"the chat template gives no exact mask, neither for a row of data set {job.index} ({job.name}) nor for the "
        f"plainest conversation: {told}\nmessages: {json.dumps(messages)}\nrendered: {text!r}"
    )


def _rendering(job: Job, templates: Templates, messages: list[dict]) -> str | None:
    template, variables, _ = templates.pick(None, job.template_kwargs)
    try:
        return str.__str__(render(template, messages, variables=variables))
    except RefusedError:
        return None
