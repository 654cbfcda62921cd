"""YAML whose values know their lines: faults of form are collected with file, line and key path.

Words are read as YAML 1.2's core schema does, which is what people mean: `2e-4` is a number, `10:30`, `no` and
`2024-01-01` are text, only true and false are booleans. `1_000` stays a number, as in YAML 1.1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from impruver_core.errors import RecipeError
from impruver_core.recipe.credentials import is_credential

TAG = "tag:yaml.org,2002:"
DEEPEST = 100  # lists and mappings in each other; some ten thousand would end the process
MOST_VALUES = 100_000  # with what aliases repeat: a few lines of them make billions
LONGEST_NUMBER = 40  # digits
LARGEST_FILE = 4 << 20  # bytes
MOST_FAULTS = 100  # that are told at once: some ten thousand, each with its nearest key, would take for ever
WORDS = {  # in this order: a whole number also has the form of a float
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (none of YAML 1.1's)


class _Dumper(yaml.SafeDumper):
    """Quotes what either schema would read as anything but text."""


for _name, (_form, _first) in WORDS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _name, re.compile(rf"^(?:{_form})$"), _first)


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(TAG + "str", text, style="|" if "\n" in text else None)
)


@dataclass
class Document:
    """Plain values, the location of each (`recipe.yaml:12`) by key path, and the faults so far."""

    name: str
    data: Any = None
    locations: dict[tuple, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def locate(self, path: tuple) -> str:
        """The location of a key path, else of the nearest thing above it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.locations:
                return self.locations[path[:length]]
        return self.name

    def add_fault(self, path: tuple, what: str) -> None:
        """Adds `file:line: key path: what`; a key path's items are joined by dots, as in --set.

        RecipeError with all so far where there are more than MOST_FAULTS.
        """
        fault = ": ".join(part for part in (self.locate(path), ".".join(map(str, path)), what) if part)
        if fault in self.faults:
            return
        if len(self.faults) >= MOST_FAULTS:
            raise RecipeError([*self.faults, f"{self.name}: more than {MOST_FAULTS} faults; what follows is not read"])
        self.faults.append(fault)


def read_document(path: Path) -> Document:
    """The YAML file as a Document; unreadable YAML leaves `data` None and a fault.  OSError as it comes."""
    document = Document(str(path))
    with open(path, "rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        document.faults.append(f"{path}: larger than {LARGEST_FILE >> 20} MiB, which no recipe is")
        return document
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        document.faults.append(f"{path}:{line}: this is no UTF-8 text")
    else:
        parse_text(text, document, place=lambda line: f"{path}:{line}")
    return document


def parse_text(text: str, document: Document, place: Callable[[int], str] = lambda line: "", path: tuple = ()) -> None:
    """Parses YAML into `document.data` and `locations`.

    `place(line)` names a line (from 1), `path` is the key path that the values go to.
    """
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=event.start_mark)
        node = yaml.compose(text, _Loader)
        document.data = None if node is None else _NodeReader(document, place).read_value(node, path)
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # the latter: bytes of a command line
        document.faults.append(_describe_error(error, text, document, place))


def dump(data: Any) -> str:
    """YAML text that reads back as equal data; keys keep their order, long texts are blocks."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def _describe_error(error: Exception, text: str, document: Document, place: Callable[[int], str]) -> str:
    """Where and why the text is no YAML, and what to do about it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = place(mark.line + 1) if mark and place(1) else document.name
    problem = " ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    before = "".join(text.splitlines()[mark.line : mark.line + 1])[: mark.column + 1] if mark else ""
    advice = {
        "; indent with blanks, not tabs": "\t" in before,
        "; in single quotes a backslash is one": "unknown escape" in problem,
        "; put the value in quotes": "values are not allowed" in problem or before.endswith(("%", "@", "`")),
    }
    hint = next((each for each, fits in advice.items() if fits), "")
    return f"{where}: not valid YAML: {problem or str(error).splitlines()[0]}{hint}"


class _NodeReader:
    """Turns the nodes of one text into values, and records their locations."""

    def __init__(self, document: Document, place: Callable[[int], str]):
        self.document, self.place, self.open, self.count = document, place, set(), 0

    def read_value(self, node: yaml.Node, path: tuple) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values", problem_mark=node.start_mark)
        if len(self.open) > DEEPEST:  # by aliases
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEEPEST} deep", problem_mark=node.start_mark)
        if path:  # a fault of the whole document names the file alone
            self.document.locations.setdefault(path, self.place(node.start_mark.line + 1))
        if isinstance(node, yaml.ScalarNode):
            return self.read_scalar(node, path)
        if id(node) in self.open:
            return self.document.add_fault(path, "an alias to what it stands in")
        self.open.add(id(node))
        read = self.read_mapping if isinstance(node, yaml.MappingNode) else self.read_sequence
        value = read(node, path)
        self.open.discard(id(node))
        return value

    def read_sequence(self, node: yaml.Node, path: tuple) -> list:
        return [self.read_value(item, (*path, number)) for number, item in enumerate(node.value)]

    def read_mapping(self, node: yaml.Node, path: tuple) -> dict:
        mapping: dict = {}
        lines: dict = {}
        merged: list[dict] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                where = (*path, "?")
                self.document.locations.setdefault(where, self.place(line))
                self.document.add_fault(where, "a key is plain text; a value that starts with { or [ needs quotes")
                continue
            if key_node.tag == TAG + "merge":
                merged += self.read_merged(value_node, path)
                continue
            name = self.read_scalar(key_node, path)
            self.document.locations[(*path, name)] = self.place(line)
            if name in lines:
                self.document.add_fault((*path, name), f"repeated: it also stands in line {lines[name]}")
                continue
            lines[name] = line
            mapping[name] = self.read_value(value_node, (*path, name))
        for other in merged:
            mapping.update({name: item for name, item in other.items() if name not in mapping})
        return mapping

    def read_merged(self, node: yaml.Node, path: tuple) -> list[dict]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = [self.read_value(each, path) for each in nodes]
        if not all(isinstance(each, dict) for each in values):
            self.document.add_fault(path, "<< takes a mapping or a list of mappings")
        return [each for each in values if isinstance(each, dict)]

    def read_scalar(self, node: yaml.ScalarNode, path: tuple) -> Any:
        kind = node.tag.removeprefix(TAG)
        try:
            return _SCALARS[kind](node.value)
        except (KeyError, ValueError):
            self.document.locations.setdefault(path, self.place(node.start_mark.line + 1))
            if is_credential(next((part for part in reversed(path) if isinstance(part, str)), None)):
                return self.document.add_fault(path, f"what it holds can't be read as {kind}")
            value = node.value if len(node.value) <= 80 else f"{node.value[:80]}…"
            return self.document.add_fault(path, f"{value!r} can't be read as {kind}")


def _parse_whole_number(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(text)
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_SCALARS = {
    "str": str,
    "merge": str,
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _parse_whole_number,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}
