"""Which messages are trained on: what they say of it themselves, in the names that data sets have for it."""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.errors import RefusedError
from impruver_core.labels import TRAINED_ROLES

# OpenAI and Mistral write `weight`, ms-swift `loss`, axolotl `train`; 0 and false leave a turn out of the loss.
TRAIN_FLAGS = ("train", "weight", "loss")
SUBJECT = re.compile(
    r"loss(es)?|(un)?train(ed|able|ing)?|(un)?mask(s|ed|ing)?|weight(s|ed)?|(un)?learn(ed|able|ing)?|targets?|"
    r"(un)?supervis(e|ed|ion)"
)
ALONE = re.compile(r"ignored?|skip(ped)?|excluded?")
# With a subject beside them they say how: exclude_from_loss, isTarget. Any other word makes it another matter.
QUALIFIER = re.compile(
    r"is|no|not|non|un|do|does|dont|should|compute|calc|calculate|counts?|included?|from|in|into|on|off|for|of|to|by|"
    r"the|this|used?|only|with|without|enabled?|disabled?|apply|scale|factor|details?|flags?|values?|tokens?|turn|"
    r"message|labels?|assistant|answer|response|completion"
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def read_train_flag(message: dict, number: int = 0) -> bool | None:
    """Reads what message `number` says of its training: whether it is trained on, None where it says nothing.

    RefusedError("bad_row") for a value between, flags that contradict each other, and a turn that can't be trained on.
    """
    said: dict[str, bool] = {}
    for name in TRAIN_FLAGS:
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, bool) and (name == "train" or isinstance(value, str) or value not in (0, 1)):
            known = f"{_shorten(value)}, neither 0 nor 1" if name == "weight" else "neither true nor false"
            raise RefusedError("bad_row", f"{name} of message {number} is {known}")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        flags = " and ".join(f"{name}: {_shorten(message[name])}" for name in said)
        raise RefusedError("bad_row", f"message {number} contradicts itself: {flags}")
    wanted = next((name for name, flag in said.items() if flag and name != "weight"), None)  # a weight of 1 is no wish
    if wanted and message.get("role") not in TRAINED_ROLES:
        raise RefusedError(
            "bad_row",
            f"{wanted} of message {number} is true, but its role is {message.get('role')}: only an assistant's turns "
            "have such a flag; leave it out (only_target_loss: false trains on everything)",
        )
    return next(iter(said.values()), None)


def check_other_flags(message: dict, number: int, known: Collection[str]) -> None:
    """RefusedError("bad_row") for a key of a message, beside those `known`, that is about training in another way."""
    for key in message.keys() - known:
        if is_train_flag(key, message[key]):
            flags = ", ".join(TRAIN_FLAGS)
            raise RefusedError("bad_row", f"{key} of message {number} is no flag that is known ({flags}): use train")


def is_train_flag(key: Any, value: Any) -> bool:
    """Whether a key of a message, by its words, and its value say what is trained on: `lossMask`, `exclude_from_loss`.

    `learner_id` and `weight_kg` do not, nor does a value of text.
    """
    if not isinstance(key, str) or not _names_training(key):
        return False
    return _is_flag_value(value) and (key.lower() != "label" or isinstance(value, bool))


@lru_cache(maxsize=1024)
def _names_training(key: str) -> bool:
    words = split_words(key)
    if words == ["label"]:
        return True
    rest = [word for word in words if not QUALIFIER.fullmatch(word)]
    alone = [word for word in rest if ALONE.fullmatch(word)]
    subjects = [word for word in rest if SUBJECT.fullmatch(word)]
    return bool(rest) and len(alone) + len(subjects) == len(rest)


def split_words(key: str) -> list[str]:
    """The words of a key in snake_case or camelCase, in lower case."""
    return [word.lower() for word in WORD.findall(key)]


def _is_flag_value(value: Any) -> bool:
    """Whether a value is a boolean, a number or a filled list or mapping of these."""
    if isinstance(value, (list, tuple, dict)):
        return bool(value) and all(map(_is_flag_value, value.values() if isinstance(value, dict) else value))
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false")
    return isinstance(value, (bool, int, float))


def is_trained(message: dict) -> bool:
    """Whether the flags of a message, of a role that is trained on, don't leave it out."""
    return message.keys().isdisjoint(TRAIN_FLAGS) or not any(
        message.get(name) is not None and not message[name] for name in TRAIN_FLAGS
    )


def is_blank(message: dict) -> bool:
    """Whether a message has neither text, nor reasoning, nor calls."""
    content = message.get("content")
    if isinstance(content, str):
        if not content.isspace() and content:
            return False
    elif content is not None and not _are_blank_parts(content):
        return False
    calls = message.get("tool_calls") or message.get("function_call")
    return not calls and not any((message.get(field) or "").strip() for field in REASONING_FIELDS)


def _are_blank_parts(content: Any) -> bool:
    """Whether all parts of a content that is a list are blank texts."""
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return all(isinstance(text, str) and not text.strip() for text in texts)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
