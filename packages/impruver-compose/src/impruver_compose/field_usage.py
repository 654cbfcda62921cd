"""What of a data set's rows nothing reads: columns, and keys of messages that the chat template does not render."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

EXAMPLE = 60  # characters of a value


class FilledField(NamedTuple):
    """How many rows fill a field, and the first of them with its value, shortened."""

    rows: int
    first: int
    example: str


@dataclass
class FieldCounts:
    """Fields by name: those that are read, and in how many rows others are filled."""

    read: set[str] = field(default_factory=set)
    filled: dict[str, FilledField] = field(default_factory=dict)

    def count(self, row: int, values: Iterable[tuple[str, Any]]) -> None:
        """Counts the filled ones among the fields of a row that are not known to be read."""
        for name, value in values:
            if name not in self.read and is_filled(value):
                rows, first, example = self.filled.get(name) or (0, row, _shorten(value))
                self.filled[name] = FilledField(rows + 1, first, example)

    def add(self, other: "FieldCounts") -> None:
        """Adds the counts of later rows."""
        self.read |= other.read
        for name, counted in other.filled.items():
            rows, first, example = self.filled.get(name) or (0, counted.first, counted.example)
            self.filled[name] = FilledField(rows + counted.rows, first, example)

    def list_unread(self) -> dict[str, FilledField]:
        """Lists the fields that are filled and never read, in the order of their names."""
        return {name: self.filled[name] for name in sorted(self.filled.keys() - self.read)}


@dataclass
class FieldUsage:
    """The columns of rows and the keys of their messages."""

    columns: FieldCounts = field(default_factory=FieldCounts)
    keys: FieldCounts = field(default_factory=FieldCounts)

    def add(self, other: "FieldUsage") -> None:
        """Adds what later rows have."""
        self.columns.add(other.columns)
        self.keys.add(other.keys)

    def list_unread(self) -> list[dict]:
        """Lists what nothing reads, as the manifest has it: `name`, `rows`, and an example, the first row's."""
        fields = self.columns.list_unread() | {f"messages[].{k}": v for k, v in self.keys.list_unread().items()}
        return [{"name": name, **counted._asdict()} for name, counted in fields.items()]

    def to_json(self) -> str:
        """Writes it as JSON."""
        return json.dumps([[sorted(each.read), each.filled] for each in (self.columns, self.keys)])

    @classmethod
    def from_json(cls, text: str | bytes) -> "FieldUsage":
        """Reads what `to_json` wrote."""
        return cls(*map(_load_counts, json.loads(text)))


def _load_counts(parts: tuple[list[str], dict[str, list]]) -> FieldCounts:
    read, filled = parts
    return FieldCounts({*read}, {name: FilledField(*each) for name, each in filled.items()})


def format_unused(unused: Iterable[dict]) -> str:
    """Formats entries of `list_unread`: each field with its number of rows and its example."""
    return ", ".join(
        f"{each['name']} ({each['rows']:,} rows, row {each['first']}: {each['example']!r})" for each in unused
    )


def is_filled(value: Any) -> bool:
    """Whether a field has a value: no null, no NaN of a table, no empty text, list or object."""
    return value is not None and value == value and value not in ("", [], {})


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= EXAMPLE else f"{text[: EXAMPLE - 1]}…"
