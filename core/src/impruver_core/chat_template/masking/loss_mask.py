"""Chats to token ids and exact labels, for any chat template.

The conversation is rendered once with its texts traced (`traced`): where each stands in the rendering is known, not
searched for. A learned span goes from the end of what the turn shares with the generation prompt through its end of
turn, both known from probes (`shape`). The rendering is tokenized once, and a token is learned if it holds a
character of a learned span. What can't be found exactly is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from impruver_core.chat_template.masking.loss_spans import LossSpans, find_loss_spans
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import trace_messages
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.labels import IGNORE_INDEX
from impruver_core.tokenizer import plain_encoder, starts_with_bos


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as token ids (list[int]) and labels of the same length: the id, or -100 where not learned.

    `texts`: (message, first token, behind its last) of what each message but the system's says. `ended`: the last
    learned turn is learned with its end.
    """

    input_ids: list[int]
    labels: list[int]
    texts: list[tuple[int, int, int]]
    ended: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A conversation that can't be encoded exactly: a reason of the ledger and what was wrong."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    spans: list[tuple[int, int]]  # characters to learn
    texts: list[tuple[int, tuple[int, int]]]  # characters of each message's text
    eos: bool | None  # None: an end-of-turn token is there; else whether the EOS that is to stand there is learned
    ended: bool  # the last learned turn has its end


def encode_chats(
    tokenizer,
    conversations: Sequence[Sequence[dict]],
    tools: Sequence[list[dict] | None] | None = None,
    *,
    only_target_loss: bool = True,
    add_bos: bool = True,
    add_eos: bool = True,
    chat_template_kwargs: Sequence[dict | None] | None = None,
) -> list[Encoded | Refused]:
    """Encodes conversations with the tokenizer's own chat template; one Encoded or Refused for each, in order.

    `tools` and `chat_template_kwargs` have an entry a conversation, or are None. The ids are those of
    `apply_chat_template(prepared messages, tokenize=True)`, but for the ends: BOS where the tokenizer puts one before
    plain text and the rendering has none, EOS (learned) where no end-of-turn token follows the last answer. A message
    with `"train": false` is not learned; `only_target_loss=False` learns everything. ImpruverError for a tokenizer
    that is not fast or a template that does not parse.
    """
    check_fast_tokenizer(tokenizer)
    none = [None] * len(conversations)
    rows = zip(conversations, tools or none, chat_template_kwargs or none, strict=True)
    templates = TemplateSelector(tokenizer)
    rendered = [_rendered(templates, *row) for row in rows]
    texts = [row.text for row in rendered if isinstance(row, _Rendered)]
    with plain_encoder(tokenizer) as encode:
        encodings = iter(encode(texts))
    ends = _ends(tokenizer, add_bos, add_eos)
    return [
        row if isinstance(row, Refused) else _labelled(next(encodings), row, ends, only_target_loss) for row in rendered
    ]


def encode_chat(tokenizer, messages, tools=None, *, chat_template_kwargs=None, **options) -> Encoded:
    """Encodes one conversation as `encode_chats` does; raises RefusedError where that gives Refused."""
    (row,) = encode_chats(tokenizer, [messages], [tools], chat_template_kwargs=[chat_template_kwargs], **options)
    if isinstance(row, Refused):
        raise RefusedError(row.reason, row.detail)
    return row


def encode_prompt(tokenizer, messages, tools=None, *, add_bos: bool = True, chat_template_kwargs=None) -> list[int]:
    """The ids of a conversation up to where the assistant is to speak; RefusedError where the template refuses."""
    check_fast_tokenizer(tokenizer)
    template, variables, shape = TemplateSelector(tokenizer).select(tools, chat_template_kwargs)
    text = render_template(
        template, normalize_messages(messages, shape), tools, add_generation_prompt=True, variables=variables
    )
    with plain_encoder(tokenizer) as encode:
        (encoding,) = encode([str.__str__(text)])
    bos, _ = _ends(tokenizer, add_bos, False)
    return [bos, *encoding.ids] if bos is not None and encoding.ids[:1] != [bos] else encoding.ids


def check_fast_tokenizer(tokenizer) -> None:
    """ImpruverError for a tokenizer without a `tokenizers` backend, whose characters can't be followed."""
    if not getattr(tokenizer, "is_fast", False):
        raise ImpruverError(
            f"{type(tokenizer).__name__} is a slow tokenizer: its tokens can't be traced back to the text. "
            "Use a model whose repository has a tokenizer.json, or convert its tokenizer to one."
        )


def render_chat(templates: TemplateSelector, messages, tools=None, kwargs=None) -> tuple[str, list[dict], LossSpans]:
    """A conversation rendered (what it knows of its texts kept), its messages as traced, and what is learned of it.

    RefusedError where it can't be encoded exactly.
    """
    template, variables, shape = templates.select(tools, kwargs)
    traced = trace_messages(normalize_messages(messages, shape))
    text = render_template(template, traced, tools, variables=variables)
    return text, traced, find_loss_spans(text, traced, shape)


def _rendered(templates: TemplateSelector, messages, tools, kwargs) -> _Rendered | Refused:
    try:
        text, _, spans = render_chat(templates, messages, tools, kwargs)
    except RefusedError as error:
        return Refused(error.reason, error.detail)
    turns = [turn for turn in spans.turns if messages[turn[0]].get("train") is not False]
    eos = spans.turns[-1] in turns if spans.open_end else None
    ended = bool(turns) and turns[-1][2]
    return _Rendered(str.__str__(text), [span for _, span, _ in turns], spans.texts, eos, ended)


def _ends(tokenizer, add_bos: bool, add_eos: bool) -> tuple[int | None, int | None]:
    """(BOS, EOS) that are to be added where they are missing."""
    bos = tokenizer.bos_token_id if add_bos and starts_with_bos(tokenizer) else None
    return bos, tokenizer.eos_token_id if add_eos else None


def _labelled(encoding, row: _Rendered, ends: tuple[int | None, int | None], only_target_loss: bool) -> Encoded:
    ids, (bos, eos) = encoding.ids, ends
    with_eos = eos is not None and row.eos is not None
    spans = list(row.spans)
    if with_eos and row.eos:  # what stands between the last answer and its EOS is learned, too
        spans[-1] = (spans[-1][0], len(row.text))
    labels = [IGNORE_INDEX] * len(ids)
    for start, stop in spans:
        first, last = _tokens(encoding, start, stop)
        labels[first:last] = ids[first:last]
    if not only_target_loss:
        labels = list(ids)
    shift = int(bos is not None and ids[:1] != [bos])
    ranges = ((number, *_tokens(encoding, *span)) for number, span in row.texts)
    texts = [(number, first + shift, last + shift) for number, first, last in ranges if first < last]
    if shift:
        ids, labels = [bos, *ids], [IGNORE_INDEX if only_target_loss else bos, *labels]
    if with_eos:
        ids, labels = [*ids, eos], [*labels, eos if row.eos or not only_target_loss else IGNORE_INDEX]
    return Encoded(ids, labels, texts, row.ended or (with_eos and labels[-1] != IGNORE_INDEX))


def _tokens(encoding, start: int, stop: int) -> tuple[int, int]:
    """The range of tokens that hold a character of start..stop; empty where none does."""
    first = next((t for t in map(encoding.char_to_token, range(start, stop)) if t is not None), None)
    if first is None:
        return 0, 0
    last = next(t for t in map(encoding.char_to_token, range(stop - 1, start - 1, -1)) if t is not None)
    while last + 1 < len(encoding) and _holds(encoding, last + 1, start, stop):
        last += 1  # a character may take several tokens
    return first, last + 1


def _holds(encoding, token: int, start: int, stop: int) -> bool:
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < stop and start < chars[1]
