"""What of a row nothing reads is named: columns, and keys of messages that the template does not render."""

import json

import pytest
from support.messages import assistant, user
from support.tokenizers import CHATML

NAMED = CHATML.replace("<|im_end|>", "{{ m.get('name', '') }}<|im_end|>", 1)


def unused(done) -> dict[str, int]:
    """Rows by name of what the manifest says nothing reads."""
    (entry,) = done.manifest["gate"]
    return {each["name"]: each["rows"] for each in entry.get("unused", [])}


ROWS = [
    {"instruction": "a", "input": "", "output": "b", "source": "web", "score": 0.97, "label": "ok", "empty": ""},
    {"instruction": "c", "input": "", "output": "d", "source": "web", "score": None, "tags": []},
    {"instruction": "e", "input": "", "output": "f", "source": "book", "score": 0, "history": None},
]


def test_columns_are_named_once(composed, compose, files):
    files.write("data.jsonl", ROWS)
    done = composed()
    assert unused(done) == {"label": 1, "score": 2, "source": 3}
    told = "nothing reads label (1 rows, row 0: 'ok'), score (2 rows, row 0: '0.97'), source (3 rows, row 0: 'web')"
    assert done.err.count("nothing reads") == 1
    assert told in done.err
    report = (files.folder / "out/train.report.html").read_text(encoding="utf-8")
    assert all(name in report for name in ("Not read", "score", "source"))
    assert told in compose("--dry_run").err
    assert unused(composed("--overwrite")) == {"label": 1, "score": 2, "source": 3}  # of rows in the cache


def test_what_several_shards_and_processes_count(composed, files):
    rows = [
        {"text": f"{text['messages'][0]['content']}", "url": "u" * (n % 3)} for n, text in enumerate(files.unlike(2100))
    ]
    files.write("data.jsonl", rows)
    assert unused(composed("--num_proc", "2", dedup={"method": "none"})) == {"url": 1400}


def test_strict_columns(compose, refused, composed, files):
    files.write("data.jsonl", ROWS)
    message = refused(data={"strict_columns": True})
    assert "data set 0 (data.jsonl): strict_columns is set, and nothing reads label" in message
    assert "mapping: {label: _, score: _, source: _}" in message
    assert compose("--dry_run", data={"strict_columns": True}).code == 2
    mapping = {"label": "_", "score": "_", "source": "_"}
    assert unused(composed(data={"strict_columns": True, "mapping": mapping})) == {}
    files.write("data.jsonl", [*files.unlike(300), files.chat("a", "b") | {"late": 1}])
    done = compose("--overwrite", data={"strict_columns": True})
    assert done.code == 2
    assert "late (1 rows, row 300: '1')" in done.err


def test_strict_columns_tell_what_to_do_with_what_is_no_column(refused, files):
    files.write("data.jsonl", [{"messages": MESSAGES, "chat_template_kwargs": {"mood": 1}, "score": 1}])
    message = refused(data={"strict_columns": True})
    assert "by mapping: {score: _}; take chat_template_kwargs.mood, messages[].id, messages[].name," in message


def test_a_column_is_judged_row_by_row(composed, files):
    """What one row's weight, label or images say is read; another row's may be nothing that is known."""
    rows = [
        {"messages": [user("a"), assistant("b")], "weight": 0, "label": True},
        {"messages": [user("c"), assistant("d")], "weight": None, "label": 0},
        {"messages": [user("e"), assistant("f")], "images": ["x"], "label": True},
        {"messages": [user("g"), assistant("h")], "label": True},
    ]
    files.write("data.jsonl", rows)
    done = composed()
    assert [line["row"] for line in done.dropped] == [0, 2]
    assert unused(done) == {"label": 1}


def test_arguments_that_the_template_does_not_read(composed, files):
    rows = [files.chat("a", "b") | {"chat_template_kwargs": {"mood": "calm", "other": 1}}]
    files.write("data.jsonl", rows)
    template = CHATML.replace("{% for", "{{ mood }}{% for", 1)
    assert unused(composed(tokenizer={"chat_template": template})) == {"chat_template_kwargs.other": 1}


MESSAGES = [user("q", name="Ann", id=7), assistant("a", prefix=True)]


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (CHATML, {"messages[].id": 1, "messages[].name": 1, "messages[].prefix": 1}),
        (NAMED, {"messages[].id": 1, "messages[].prefix": 1}),
        (CHATML.replace("m['content']", "('>' if m.prefix else '') + m['content']", 1), None),
        ("{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>\n{% endfor %}", None),
    ],
    ids=["ChatML", "a template with names", "a condition", "a template of JSON"],
)
def test_keys_of_messages(template, named, compose, files):
    files.write("data.jsonl", [{"messages": MESSAGES}, {"messages": [user("r"), assistant("s", train=True)]}])
    done = compose("--dry_run", tokenizer={"chat_template": template})
    told = [name for name in ("messages[].id", "messages[].name", "messages[].prefix") if name in done.err]
    if named is not None:
        assert done.code == 0, done.err
        assert unused(compose(tokenizer={"chat_template": template})) == named
        assert told == [*named]
    else:
        assert "messages[].prefix" not in told


OWN = """
import json
def some(row): return pair(row["q"], row.get("a"))
def popped(row): return pair(row.pop("q"), row.pop("a", ""))
def copied(row): return pair(dict(row)["q"], {**row}["a"])
def dumped(row): return pair(json.loads(json.dumps(row))["q"], "b")
def changed(row):
    row["q"] = row["q"] + "?"
    return pair(row["q"], row["a"])
def pair(q, a): return [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
"""


@pytest.mark.parametrize("name", ["some", "popped", "copied", "dumped", "changed"])
def test_what_an_own_converter_reads(name, composed, files):
    (files.folder / "mine.py").write_text(OWN)
    files.write("data.jsonl", [{"q": "hi", "a": "yo", "score": 1}])
    done = composed(data={"converter": f"mine.{name}"})
    assert unused(done) == ({} if name in ("copied", "dumped") else {"score": 1})
    files.write("data.jsonl", [json.loads(json.dumps({"q": "hi", "a": "yo", "weight": 0.5, "rejected": "x"}))])
    assert unused(composed("--overwrite", data={"converter": "mine.some"})) == {"rejected": 1, "weight": 1}
