"""Data: rows, archives and tables that unpack without end, are cut off, mislabelled, or hold what no data does."""

import json
import re
from pathlib import Path

from fuzzing.bombs import list_bombs, pack_members
from fuzzing.example import PACKERS, Content, Example
from fuzzing.mutations import dump_json, mutate_bytes, mutate_value, texts
from fuzzing.samples import CHAT, COMPOSE, QUESTIONS, RECIPE, ROWS, TRAIN
from fuzzing.tables import write_columns
from hypothesis import strategies as st

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
FORMS = {  # of rows, one for each converter
    "messages": ROWS[:3],
    "tools": [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "tools": [CALL["function"]],
            "chat_template_kwargs": {"a": 1},
        }
    ],
    "dialog": [{"messages": {"role": ["user", "bot"], "content": ["red", "rot"]}}],
    "conversations": [
        {"conversations": [{"from": "human", "value": "red"}, {"from": "gpt", "value": "rot"}], "system": "s"}
    ],
    "alpaca": [{"instruction": "red", "input": "", "output": "rot"}, {"instruction": "a", "input": "b", "output": "c"}],
    "reasoning": [{"prompt": "red", "reasoning": "hm", "response": "rot", "system": "s"}],
    "text": [{"text": "It is red. " * 20}, {"text": "rot"}],
    "characters": [
        {
            "name": "n",
            "context": "c",
            "greeting": "g",
            "example_dialogue": [{"role": "user", "content": "x"}],
            "dialogues": [
                {"model_name": "gpt-4", "chat": [{"role": "user", "content": "x"}, {"role": "char", "content": "y"}]}
            ],
        }
    ],
    "tokens": [
        {"input_ids": [1, 5, 6, 2], "labels": [-100, -100, 6, 2]},
        {"input_ids": [1, 7, 2], "labels": [1, 7, 2]},
    ],
}
CONVERTERS = ("messages", "text", "instruction_to_messages", "conversations_to_messages", "dialog_to_messages")
SETTINGS = (
    *({"turns": "each"}, {"turns": "last"}, {"only_target_loss": False}, {"split": "train[:50%]"}, {"weight": 2.5}),
    {"on_overflow": "trim_turns", "max_tokens_count": 9},
)
SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
CLASSES = (
    ["jsonl"] * 5 + ["json"] * 2 + ["csv"] * 3 + ["tsv", "parquet", "parquet", "arrow", "arrow", "txt", "zip", "tar"]
)
LINES = [  # bytes of a line of JSON
    *(b"[]", b"1", b"null", b'"a"', b"{", b"}", b"{}{}", b"[" * 100_000, b'{"a":' * 100_000, b"{'a': 1}"),
    *(b'{"a": 01}', b"\xff", b'{"text": "' + b"a" * 999_999 + b'"}', b'{"text": "\\ud800"}'),
    *(b'{"text": "\\u0000"}', b'{"text": "a\x00b"}', b'{"text": "a\rb"}', b'{"text": "\xed\xa0\x80"}'),
    *(b'{"text": 1e999}', b'{"text": NaN}', b'{"text": ' + b"9" * 5000 + b"}", b'{"text": "\x1b[31m"}'),
    *(b'{"text": "\xe2\x80\xae"}', b'{"text": "\xe2\x80\xa8\xc2\x85"}', b'{"a\x1b": 1}', b'{"a": 1, "a": 2}'),
    *(b"\xef\xbb\xbf{}", b"#", b"\x1f\x8b", b'{"text": "<s><|end|><|user|></s>"}', b'{"text": ""}', b'{"": ""}'),
    *(b'{"text": {"a": []}}', b" ", b"\x0c", b"\xc2\xa0", b"\xe2\x80\x8b"),
]


def build_archives(samples: Path) -> st.SearchStrategy[Example]:
    """Data for compose, token rows for train, questions for chat."""
    data = st.one_of(*[write_data(form) for form in FORMS if form != "tokens"])
    return st.one_of(
        compose_data(data), compose_data(data), compose_data(data), train_on_tokens(), ask_questions(), compose_bomb()
    )


@st.composite
def compose_data(draw: st.DrawFn, data: st.SearchStrategy[tuple[str, str, Content]]) -> Example:
    """One data set or two, of files or a folder."""
    form, name, content = draw(data)
    files, where = {name: content}, name
    if draw(st.integers(0, 5)) == 0:
        where = "folder"
        files = {f"folder/{name}": content, f"folder/other{name}": draw(data)[2]}
    section = {"name": where}
    if draw(st.integers(0, 3)) == 0:
        section["converter"] = f"impruver.{draw(st.sampled_from(CONVERTERS))}"
    if draw(st.integers(0, 3)) == 0:
        section |= draw(st.sampled_from(SETTINGS))
    method = draw(st.sampled_from(("exact", "minhash", "none")))
    recipe = RECIPE | {"datasets": [section], "dedup": {"method": method}}
    more = draw(st.sampled_from(((), (), (), ("--dry_run",), ("--show", "2"))))
    return Example(
        "archives",
        f"{form} as {name}",
        (*COMPOSE, *more),
        {"tokenizer": "tokenizer"},
        files | {"recipe.yaml": dump_json(recipe)},
    )


@st.composite
def compose_bomb(draw: st.DrawFn) -> Example:
    """A file that is small, or not, and takes much."""
    suffix, content = draw(st.sampled_from(list_bombs()))
    recipe = RECIPE | {"datasets": [{"name": f"data{suffix}"}]}
    more = draw(st.sampled_from(((), (), ("--dry_run",))))
    files = {f"data{suffix}": content, "recipe.yaml": dump_json(recipe)}
    return Example("archives", f"a bomb{suffix}", (*COMPOSE, *more), {"tokenizer": "tokenizer"}, files)


@st.composite
def train_on_tokens(draw: st.DrawFn) -> Example:
    """Token rows that another's compose made."""
    rows = [draw(mutate_value(row)) if draw(st.booleans()) else row for row in FORMS["tokens"]]
    content = draw(write_lines(rows))
    val = draw(st.sampled_from(("t.jsonl", "v.jsonl")))
    command = (*TRAIN, "--output_dir", "new", "--train_path", "t.jsonl", "--val_path", val)
    files = {"t.jsonl": content, "v.jsonl": dump_json(FORMS["tokens"][0]), "recipe.yaml": dump_json(RECIPE)}
    return Example("archives", "token rows", command, {"tokenizer": "tokenizer"}, files)


@st.composite
def ask_questions(draw: st.DrawFn) -> Example:
    """Questions for chat."""
    rows = [
        *QUESTIONS,
        {"prompt": "a", "chat_template_kwargs": {"a": 1}, "tools": [CALL["function"]], "reference": "x"},
        *FORMS["tools"],
    ]
    content = draw(write_lines([draw(mutate_value(row)) if draw(st.booleans()) else row for row in rows]))
    more = draw(st.sampled_from(((), ("--strict",), ("--expect",), ("--dry_run",))))
    return Example("archives", "questions", (*CHAT, *more), {"model": "model"}, {"questions.jsonl": content})


@st.composite
def write_data(draw: st.DrawFn, form: str) -> tuple[str, str, Content]:
    """Rows of a form, written as some kind of file under a name of that kind, or of another."""
    rows = FORMS[form]
    if draw(st.integers(0, 3)):
        rows = draw(mutate_value(rows))
    kind = draw(st.sampled_from(CLASSES))
    rows = rows if isinstance(rows, list) else [rows]
    if kind == "jsonl":
        content = draw(write_lines(rows))
    elif kind in ("csv", "tsv"):
        content = draw(write_table(rows, "," if kind == "csv" else "\t"))
    elif kind in ("parquet", "arrow"):
        content = draw(write_columns(rows, kind))
    elif kind in ("zip", "tar"):
        content = pack_members(dump_json(rows), kind)
        kind = draw(st.sampled_from(SUFFIXES)).removeprefix(".")
    else:
        content = dump_json(rows)
    if draw(st.integers(0, 3)) == 0:
        content = draw(mutate_bytes(content))
    suffix = f".{kind}" if draw(st.integers(0, 5)) else draw(st.sampled_from(SUFFIXES))
    if draw(st.integers(0, 3)) == 0:
        packing = draw(st.sampled_from([name for name in PACKERS if name]))
        content = PACKERS[packing](content)
        suffix += f".{packing if draw(st.integers(0, 4)) else draw(st.sampled_from(list(PACKERS)))}".rstrip(".")
        if draw(st.booleans()):
            content = draw(mutate_bytes(content))
    return form, f"data{suffix}", content


@st.composite
def write_lines(draw: st.DrawFn, rows: list) -> bytes:
    """Lines of JSON, with some that are none."""
    lines = [dump_json(row, ensure_ascii=draw(st.booleans())) for row in rows]
    for line in draw(st.lists(st.sampled_from(LINES), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    ending = draw(st.sampled_from((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b"\x0b", b"")))
    content = ending.join(lines) + ending
    encoding = draw(st.sampled_from(("", "", "", "", "", "utf-16", "utf-8-sig", "utf-32-le")))
    content = content.decode("utf-8", "replace").encode(encoding) if encoding else content
    return draw(mutate_bytes(content, 2)) if draw(st.integers(0, 5)) == 0 else content


@st.composite
def write_table(draw: st.DrawFn, rows: list, separator: str) -> bytes:
    """CSV of the rows' keys and values, with odd cells and rows of other lengths; quoted where it is needed, or not."""
    rows = [row for row in rows if isinstance(row, dict)] or [{"text": "a"}]
    header = [str(name) for name in rows[0]] + draw(st.lists(texts, max_size=2))
    cells = [[row.get(name) for name in header] for row in rows]
    table = [header, *([cell if isinstance(cell, str) else json.dumps(cell) for cell in line] for line in cells)]
    for line in draw(st.lists(st.lists(texts, max_size=5), max_size=2)):
        table.insert(draw(st.integers(0, len(table))), line)
    quoted = re.compile(draw(st.sampled_from(('[,\t\r\n"]', '[,\t\r\n"]', "", "(?!)"))))
    lines = [
        separator.join('"{}"'.format(cell.replace('"', '""')) if quoted.search(cell) else cell for cell in line)
        for line in table
    ]
    ending = draw(st.sampled_from(("\n", "\n", "\r\n", "\r")))
    encoding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")))
    return "".join(line + ending for line in lines).encode(
        encoding, "surrogatepass" if "utf" in encoding else "replace"
    )
