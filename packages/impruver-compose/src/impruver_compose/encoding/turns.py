"""Which leading parts of a conversation become lines of train.jsonl: `turns` and `on_overflow`."""

from collections.abc import Callable, Sequence

from impruver_core.chat_template.masking.loss_mask import Encoded, Refused
from impruver_core.labels import TRAINED_ROLES

Encode = Callable[[list[list[dict]]], list[Encoded | Refused]]


Line = tuple[int, Encoded]  # of how many leading messages, and their encoding


def build_training_views(messages: Sequence[dict], turns: str) -> list[list[dict]]:
    """The parts that `turns` asks for: up to each learned turn (`each`), or to the last; that turn alone is learned."""
    ends = find_trained_turns(messages)
    return [build_view(messages, end, turns) for end in (ends if turns == "each" else ends[-1:])]


def build_view(messages: Sequence[dict], end: int, turns: str) -> list[dict]:
    """The messages up to number `end`, of which that one alone is learned; for `all` as they are."""
    if turns == "all":
        return list(messages[: end + 1])
    return [*({**message, "train": False} for message in messages[:end]), messages[end]]


def find_trained_turns(messages: Sequence[dict]) -> list[int]:
    """The numbers of the messages that are learned."""
    return [n for n, m in enumerate(messages) if m["role"] in TRAINED_ROLES and m.get("train") is not False]


def select_fitting_views(
    lines: list[tuple[int, Encoded | Refused]], limit: int | None, shorten: Callable[[], list[Line]] | None
) -> list[Line] | Refused:
    """The lines of a conversation, each of at most `limit` tokens; Refused where one was refused or is longer.

    With `shorten` those that are longer go, and where none is left it gives a shorter one, or none.
    """
    refused = next((encoded for _, encoded in lines if isinstance(encoded, Refused)), None)
    if refused is not None:
        return refused
    fit = [(count, encoded) for count, encoded in lines if limit is None or len(encoded.input_ids) <= limit]
    if len(fit) < len(lines):
        fit = (fit or shorten()) if shorten else []
    longest = max(len(encoded.input_ids) for _, encoded in lines)
    return fit or Refused("too_long", f"{longest} tokens, at most {limit} (max_tokens_count)")


def find_longest_fitting_prefix(
    messages: Sequence[dict], whole: Encoded, encode: Encode, turns: str, limit: int
) -> list[Line]:
    """The longest leading part of at most `limit` tokens that ends with a learned turn; none where there is none.

    `whole` is the encoding of all messages: what ends behind the limit in it can't fit.
    """
    reached = {number: end for number, _, end in whole.texts}
    ends = find_trained_turns(messages)
    if turns != "all" or ends[-1:] == [len(messages) - 1]:
        ends = ends[:-1]  # that part was too long
    for end in reversed(ends):
        if reached.get(end, 0) > limit:
            continue
        (encoded,) = encode([build_view(messages, end, turns)])
        if isinstance(encoded, Encoded) and len(encoded.input_ids) <= limit:
            return [(end + 1, encoded)]
    return []
