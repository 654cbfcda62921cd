"""Columns of a data set: which ones nothing reads, and those that must not be passed over in silence."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from impruver_core.errors import RefusedError

from impruver_compose.field_usage import is_filled

SKIPPED_LABELS = ("bad_output",)
FLAGS = ("yes", "no", "true", "false", "y", "n", "0", "1")
NUMBER = re.compile(r"\d+(?:\.\d*)?")
REJECTED = re.compile(
    r"rejected(_(responses?|messages|conversations?|answers?|completions?|outputs?|texts?|contents?))?"
)
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
Guard = Callable[[str, Any, dict], bool]


class RecordingRow(dict):
    """A row that adds the names of the columns that are read to a set; what goes through all of them reads all."""

    def __init__(self, row: dict, read: set[str]):
        super().__init__(row)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._read.add(name)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().setdefault(name, default)

    def __contains__(self, name: object) -> bool:
        self._read.add(name)
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self._read.update(super().keys())
        return super().__iter__()

    def __or__(self, other: dict) -> dict:
        return {**self, **other}

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)

    def keys(self) -> Any:
        self._read.update(super().keys())
        return super().keys()

    def values(self) -> Any:
        self._read.update(super().keys())
        return super().values()

    def items(self) -> Any:
        self._read.update(super().keys())
        return super().items()

    def copy(self) -> dict:
        return dict(self)


def check_guarded_columns(row: dict, columns: Sequence[str]) -> set[str]:
    """The columns among these that say something that is known, of this row.

    RefusedError where one says that the row must not be trained on as it is.
    """
    if not columns:  # as in most data sets
        return set()
    filled = ((name, row[name]) for name in columns if is_filled(row.get(name)))
    return {name for name, value in filled if find_guard(name)(name, value, row)}


@cache
def find_guard(name: str) -> Guard | None:
    """Finds what looks at a column that must not be passed over, in whatever case its name is written; else None.

    Such a column says that a row is not to be trained on, or holds more than its text: it is read, or the row refused.
    """
    folded = name.strip().lower()
    if REJECTED.fullmatch(folded):
        return _check_rejected
    if folded in MEDIA:
        return _check_media
    return {"weight": _check_weight, "label": _check_label, "train": _check_flag, "loss": _check_flag}.get(folded)


def _check_weight(name: str, value: Any, row: dict) -> bool:
    weight = float(value) if isinstance(value, str) and NUMBER.fullmatch(value.strip()) else value
    if weight not in (0, 1):
        how = f"{name} is {value!r}: a row is trained on or not (1 or 0)"
        raise RefusedError("bad_row", f"{how}; {_format_way_out(name)}")
    if not weight:
        raise RefusedError("converter_skipped", f"{name} is 0")
    return True


def _check_rejected(name: str, value: Any, row: dict) -> bool:
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and value.strip().lower() in FLAGS):
        return False  # whether a review rejected it
    raise RefusedError("bad_row", f"{name} has an answer that is not to be imitated; {_format_way_out(name)}")


def _check_flag(name: str, value: Any, row: dict) -> bool:
    text = str(value).strip().lower()
    if text == "false":
        raise RefusedError("converter_skipped", f"{name} is false")
    return text == "true"  # else it is another matter: a value of the loss, a name


def _check_label(name: str, value: Any, row: dict) -> bool:
    text = str(value).strip().lower()
    if text in SKIPPED_LABELS:
        raise RefusedError("converter_skipped", f"{name} is {value}")
    if text == "false":
        raise RefusedError("bad_row", f"{name} is false: an answer that is not to be imitated; {_format_way_out(name)}")
    return text == "true"


def _check_media(name: str, value: Any, row: dict) -> bool:
    folded = name.strip().lower()
    if isinstance(value, str) and not folded.endswith("s") and f"<{folded}>" not in repr(row):
        return False  # a description, or a link in a table
    raise RefusedError("bad_row", f"{name}: only text can be trained on; {_format_way_out(name)}")


def _format_way_out(name: str) -> str:
    return f"mapping: {{{name}: _}} trains on the row without looking at it"
