"""Which leading parts of a conversation become token rows (`turns`, `on_overflow`).

Of a conversation user, assistant, user, assistant the rows are these; what is marked * is trained on:

    turns: all    user assistant* user assistant*
    turns: last   user assistant  user assistant*
    turns: each   user assistant*
                  user assistant  user assistant*
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from impruver_core.chat_template.masking.loss_mask import Encoded, Refused
from impruver_core.labels import TRAINED_ROLES


class TrainingView(NamedTuple):
    """The first `length` messages of a conversation, encoded as a row."""

    length: int
    encoded: Encoded | Refused


def build_training_views(messages: Sequence[dict], turns: str) -> list[list[dict]]:
    """Builds the messages of each row that `turns` (`each` or `last`) asks for."""
    ends = _find_trained_turns(messages)
    return [_build_view(messages, end, turns) for end in (ends if turns == "each" else ends[-1:])]


def _build_view(messages: Sequence[dict], end: int, turns: str) -> list[dict]:
    """Builds the messages up to number `end`; unless `turns` is `all`, only that one is trained on."""
    if turns == "all":
        return list(messages[: end + 1])
    return [*({**message, "train": False} for message in messages[:end]), messages[end]]


def _find_trained_turns(messages: Sequence[dict]) -> list[int]:
    return [n for n, m in enumerate(messages) if m["role"] in TRAINED_ROLES and m.get("train") is not False]


def select_fitting_views(
    views: list[TrainingView], max_length: int | None, shorten: Callable[[], list[TrainingView]] | None
) -> list[TrainingView] | Refused:
    """Selects the views of at most `max_length` tokens, else what `shorten` finds; without it all of them must fit."""
    refused = next((view.encoded for view in views if isinstance(view.encoded, Refused)), None)
    if refused is not None:
        return refused
    fitting = [view for view in views if max_length is None or len(view.encoded.input_ids) <= max_length]
    if len(fitting) < len(views):
        fitting = (fitting or shorten()) if shorten else []
    longest = max(len(view.encoded.input_ids) for view in views)
    return fitting or Refused("too_long", f"{longest} tokens, at most {max_length} (max_tokens_count)")


def find_longest_fitting_prefix(
    messages: Sequence[dict], whole: Encoded, encode: Callable, turns: str, max_length: int
) -> list[TrainingView]:
    """Finds the longest view of at most `max_length` tokens that ends with a trained turn; [] if there is none.

    `whole` is the encoding of all messages: a turn that ends behind `max_length` there can't fit.
    """
    reached = {number: end for number, _, end in whole.texts}
    ends = _find_trained_turns(messages)
    if turns != "all" or ends[-1:] == [len(messages) - 1]:
        ends = ends[:-1]  # that view was too long
    for end in reversed(ends):
        if reached.get(end, 0) <= max_length:
            (encoded,) = encode([_build_view(messages, end, turns)])
            if isinstance(encoded, Encoded) and len(encoded.input_ids) <= max_length:
                return [TrainingView(end + 1, encoded)]
    return []
