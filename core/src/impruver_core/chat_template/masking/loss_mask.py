"""Chats to token ids and exact labels, for any chat template.

1. The conversation is rendered once with its texts traced: where each stands in the rendering is known.
2. A turn is trained on from the end of what it shares with the generation prompt through its end of turn. Both are
   known from probes of the template.
3. The rendering is tokenized once (again where text of the data would become a control token, `control_encoding`). A
   token is trained on if it holds a character of such a span; the others have the label -100. What can't be found
   exactly is refused.

The loss mask of a conversation in ChatML (a token a column; the prompt ends with "assistant\\n"):

    rendering  <|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n Hello ! <|im_end|> \\n
    input_ids       1        10  9 11     2      9      1          12     9   13   14     2      9
    labels        -100     -100 -100 -100 -100  -100  -100       -100  -100   13   14     2    -100
    trained on                                                                 ^    ^     ^
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from impruver_core.chat_template.masking.byte_level import ByteLevelEncoding, encode_with_offsets
from impruver_core.chat_template.masking.control_encoding import ControlTextEncoder, TokenizedRendering
from impruver_core.chat_template.masking.control_text import TemplateInput
from impruver_core.chat_template.masking.loss_spans import LossSpans, TrainedTurn, find_loss_spans, strips_reasoning
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.masking.train_flags import is_trained
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import get_runs, trace_messages
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict]
MANY_STEPS = 1 << 22  # tokens that are looked at to find the spans of one conversation


class MessageTokens(NamedTuple):
    """The tokens `start` to `stop` of a row that hold the text of a message."""

    message: int
    start: int
    stop: int


class ControlTextTokens(NamedTuple):
    """The tokens `start` to `stop` of a row that hold text of its data that is the text of a control token, `token`."""

    token: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as token ids and labels of the same length: the id, or -100 where a token is not trained on.

    `texts`: the tokens of what each message but the system's says. `ended`: the end of the last trained turn is trained
    on, too. `control_text`: where the data hold text of control tokens, encoded as text, or, with `keep`, as them.
    """

    input_ids: list[int] | np.ndarray
    labels: list[int] | np.ndarray
    texts: list[MessageTokens]
    ended: bool
    control_text: Sequence[ControlTextTokens] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A conversation that can't be encoded exactly: a reason of the ledger and what was wrong."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class PromptConsistency:
    """Of message `number`, the last answer that is trained on: the text that training has before it, and its prompt.

    `prompt`: None where the template refuses one there. `ended`: the template ends that turn. `strips_reasoning`: of
    earlier turns reasoning is not in the text.
    """

    number: int
    trained: str
    prompt: str | None
    ended: bool
    strips_reasoning: bool


class RenderedChat(NamedTuple):
    """A conversation rendered: traced text and messages, its spans, and those of its turns that are trained on.

    `given` is what it was rendered from.
    """

    text: str
    messages: list[dict]
    spans: LossSpans
    trained: list[TrainedTurn]
    given: TemplateInput


def encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    tools: Sequence[list[dict] | None] | None = None,
    *,
    only_target_loss: bool = True,
    add_bos: bool = True,
    add_eos: bool = True,
    chat_template_kwargs: Sequence[dict | None] | None = None,
    control_text: str = "keep",
    own_tokens: Collection[str] = (),
    encode: Callable[[list[str]], list] | None = None,
    as_arrays: bool = False,
) -> list[Encoded | Refused]:
    """Encodes conversations with the tokenizer's own chat template.

    The ids are those of `apply_chat_template(normalized messages, tokenize=True)`, but for the ends: BOS where the
    tokenizer puts one before plain text and the rendering has none, EOS (trained on) where no end-of-turn token follows
    the last answer. A message with `"train": false`, `"weight": 0` or `"loss": false` is not trained on; without
    `only_target_loss` all tokens are. `tools` and `chat_template_kwargs` have an entry for each conversation.
    `control_text` says what becomes of text in all these that is a special token's: `keep` makes the token of it, as
    `apply_chat_template` does; `text` encodes it as ordinary text; `refuse` refuses the conversation. `own_tokens` are
    special tokens that texts are meant to hold. `encode` encodes texts as the tokenizer does, to an Encoding, a
    ByteLevelEncoding or a RefusedError each; left out, the tokenizer itself does.

    Returns one Encoded or Refused for each conversation, in order; `as_arrays` makes its ids and labels arrays, uint32
    and int64 (tokens,), instead of lists. Raises ImpruverError for a slow tokenizer and for a template that does not
    parse.
    """
    check_fast_tokenizer(tokenizer)
    none = [None] * len(conversations)
    rows = zip(conversations, tools or none, chat_template_kwargs or none, strict=True)
    templates = TemplateSelector(tokenizer)
    chats = [_render_or_refuse(templates, *row) for row in rows]
    encode = encode or partial(encode_with_offsets, tokenizer)
    encodings = iter(encode([str.__str__(chat.text) for chat in chats if isinstance(chat, RenderedChat)]))
    ends = _get_end_tokens(tokenizer, add_bos, add_eos)
    control = ControlTextEncoder(tokenizer, control_text, own_tokens)
    options = ends, only_target_loss, as_arrays
    return [
        chat if isinstance(chat, Refused) else _label_or_refuse(control, next(encodings), chat, *options)
        for chat in chats
    ]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: list[dict] | None = None,
    *,
    chat_template_kwargs: dict | None = None,
    **options: Any,
) -> Encoded:
    """Encodes one conversation as `encode_chats` does; raises RefusedError where that gives Refused."""
    (row,) = encode_chats(tokenizer, [messages], [tools], chat_template_kwargs=[chat_template_kwargs], **options)
    if isinstance(row, Refused):
        raise RefusedError(row.reason, row.detail)
    return row


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: list[dict] | None = None,
    *,
    add_bos: bool = True,
    chat_template_kwargs: dict | None = None,
    control_text: str = "keep",
    own_tokens: Collection[str] = (),
) -> list[int]:
    """The ids of a conversation with its generation prompt; RefusedError where the template refuses it.

    `control_text` and `own_tokens` as of `encode_chats`.
    """
    check_fast_tokenizer(tokenizer)
    selected = TemplateSelector(tokenizer).select(tools, chat_template_kwargs)
    traced = trace_messages(normalize_messages(messages, selected.format))
    given = TemplateInput(selected, traced, tools, chat_template_kwargs, add_generation_prompt=True)
    text = render_template(selected.text, traced, tools, add_generation_prompt=True, variables=selected.variables)
    (encoding,) = encode_with_offsets(tokenizer, [str.__str__(text)])
    if not isinstance(encoding, RefusedError):
        encoding = ControlTextEncoder(tokenizer, control_text, own_tokens).encode(encoding, text, given)
    if isinstance(encoding, RefusedError):
        raise encoding
    ids = encoding.build_array().tolist()
    bos, _ = _get_end_tokens(tokenizer, add_bos, False)
    return [bos, *ids] if bos is not None and ids[:1] != [bos] else ids


def check_fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """ImpruverError for a tokenizer without a `tokenizers` backend, whose characters can't be followed."""
    if not getattr(tokenizer, "is_fast", False):
        raise ImpruverError(
            f"{type(tokenizer).__name__} is a slow tokenizer: its tokens can't be traced back to the text. "
            "Use a model whose repository has a tokenizer.json, or convert its tokenizer to one."
        )


def render_chat(
    templates: TemplateSelector, messages: Messages, tools: list[dict] | None = None, kwargs: dict | None = None
) -> RenderedChat:
    """Renders a conversation and finds what of it is trained on; RefusedError where it can't be encoded exactly."""
    selected = templates.select(tools, kwargs)
    traced = trace_messages(normalize_messages(messages, selected.format))
    text = render_template(selected.text, traced, tools, variables=selected.variables)
    spans = find_loss_spans(text, traced, selected.format)
    trained = [turn for turn in spans.turns if is_trained(messages[turn.message])]
    return RenderedChat(text, traced, spans, trained, TemplateInput(selected, traced, tools, kwargs))


def compare_prompt(
    templates: TemplateSelector,
    messages: Sequence[dict],
    tools: list[dict] | None = None,
    chat_template_kwargs: dict | None = None,
) -> PromptConsistency | None:
    """Renders a conversation and the prompt for its last answer that is trained on; None where there is none.

    Raises RefusedError as `encode_chat` does.
    """
    chat = render_chat(templates, messages, tools, chat_template_kwargs)
    if not chat.trained:
        return None
    number, (start, _), ended = chat.trained[-1]
    selected = templates.select(tools, chat_template_kwargs)
    before = normalize_messages(messages[:number], selected.format) if number else []
    try:
        prompt = render_template(selected.text, before, tools, add_generation_prompt=True, variables=selected.variables)
        prompt = str.__str__(prompt)
    except RefusedError:
        prompt = None
    stripped = strips_reasoning(get_runs(chat.text), chat.messages, chat.spans.turns[-1].message)
    return PromptConsistency(number, str.__str__(chat.text)[:start], prompt, ended, stripped)


def _render_or_refuse(templates: TemplateSelector, messages: Messages, *options: Any) -> RenderedChat | Refused:
    try:
        return render_chat(templates, messages, *options)
    except RefusedError as error:
        return Refused(error.reason, error.detail)


def _get_end_tokens(tokenizer: PreTrainedTokenizerBase, add_bos: bool, add_eos: bool) -> tuple[int | None, int | None]:
    """BOS and EOS that are to be added where a rendering lacks them."""
    bos = tokenizer.bos_token_id if add_bos else None
    if bos is not None and tokenizer.backend_tokenizer.encode("a").ids[:1] != [bos]:
        bos = None  # the tokenizer itself puts none before plain text
    return bos, tokenizer.eos_token_id if add_eos else None


def _label_or_refuse(
    control: ControlTextEncoder, encoding: Encoding | RefusedError, chat: RenderedChat, *options: Any
) -> Encoded | Refused:
    tokens = encoding if isinstance(encoding, RefusedError) else control.encode(encoding, chat.text, chat.given)
    if isinstance(tokens, RefusedError):
        return Refused(tokens.reason, tokens.detail)
    return _label_tokens(tokens, chat, *options)


def _label_tokens(
    tokens: TokenizedRendering,
    chat: RenderedChat,
    ends: tuple[int | None, int | None],
    only_target_loss: bool,
    as_arrays: bool,
) -> Encoded:
    (bos, eos), ids, control = ends, tokens.build_array(), tokens.control
    with_eos = eos is not None and chat.spans.open_end  # else an end-of-turn token is there
    trained_eos = with_eos and chat.spans.turns[-1] in chat.trained
    spans = [turn.span for turn in chat.trained]
    if trained_eos:  # what stands between the last answer and its EOS is trained on, too
        spans[-1] = (spans[-1][0], len(chat.text))
    texts, shift = chat.spans.texts, int(bos is not None and not (len(ids) and ids[0] == bos))
    wanted = [*spans, *(span for _, span in texts), *(each[1:] for each in control)]
    ranges = _find_token_ranges(tokens.encoding, wanted)
    labels = ids.astype(np.int64)
    if only_target_loss:
        labels.fill(IGNORE_INDEX)
    for first, last in islice(ranges, len(spans)):
        labels[first:last] = ids[first:last]
    text_tokens = [
        MessageTokens(number, first + shift, last + shift)
        for (number, _), (first, last) in zip(texts, islice(ranges, len(texts)), strict=True)
        if first < last
    ]
    quoted = [
        ControlTextTokens(each.token, first + shift, last + shift)
        for each, (first, last) in zip(control, ranges, strict=True)
    ]
    if shift:
        ids, labels = np.insert(ids, 0, bos), np.insert(labels, 0, IGNORE_INDEX if only_target_loss else bos)
    if with_eos:
        ids = np.append(ids, np.uint32(eos))
        labels = np.append(labels, eos if trained_eos or not only_target_loss else IGNORE_INDEX)
    ended = bool(chat.trained) and chat.trained[-1].ended
    ended = ended or bool(with_eos and labels[-1] != IGNORE_INDEX)
    return Encoded(*((ids, labels) if as_arrays else (ids.tolist(), labels.tolist())), text_tokens, ended, quoted)


def _find_token_ranges(
    encoding: Encoding | ByteLevelEncoding, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The range of tokens that hold one of the characters of each span; empty where none does."""
    if isinstance(encoding, ByteLevelEncoding):
        return iter(encoding.find_token_ranges(spans))
    find_token = _build_token_finder(encoding, len(spans))
    return (_find_tokens(encoding, find_token, *span) for span in spans)


def _build_token_finder(encoding: Encoding, spans: int) -> Callable[[int], int | None]:
    """A function of a character's position to the first token that holds it, as `encoding.char_to_token`.

    That one goes through all tokens; where there are many, and many `spans` to find, their offsets are bisected.
    """
    if spans * len(encoding) < MANY_STEPS:
        return encoding.char_to_token
    offsets = encoding.offsets
    stops = [stop for _, stop in offsets]
    if any(stop < before for before, stop in pairwise(stops)):
        return encoding.char_to_token

    def find_token(position: int) -> int | None:
        token = bisect_right(stops, position)
        return token if token < len(stops) and offsets[token][0] <= position else None

    return find_token


def _find_tokens(encoding: Encoding, find_token: Callable[[int], int | None], start: int, stop: int) -> tuple[int, int]:
    """The range of tokens that hold one of the characters `start` to `stop`; empty where none does."""
    first = next((t for t in map(find_token, range(start, stop)) if t is not None), None)
    if first is None:
        return 0, 0
    last = next(t for t in map(find_token, range(stop - 1, start - 1, -1)) if t is not None)
    while last + 1 < len(encoding) and _overlaps(encoding, last + 1, start, stop):
        last += 1  # a character may take several tokens
    return first, last + 1


def _overlaps(encoding: Encoding, token: int, start: int, stop: int) -> bool:
    chars = encoding.token_to_chars(token)
    return chars is not None and chars[0] < stop and start < chars[1]
