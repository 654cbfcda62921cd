"""No row of train holds text of a benchmark: the real command on real data, against brute force."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from support.interruptions import stop_behind_train
from support.jsonl import read_jsonl
from support.messages import assistant, conversation, user

EVAL = Path("out/train.contaminated_eval.jsonl")
QUICKSTART = Path(__file__).parents[3] / "configs/impruver_configs/quickstart/countries.jsonl"
LONG = "Which of the seven old bridges over the river was the first that the town rebuilt after the great flood?"
RUSSIAN = "Какой из семи старых мостов через реку город первым восстановил после большого наводнения прошлого века?"
ANSWER = "It was the narrow stone bridge beside the mill, which the guild of the weavers paid for in silver."
SHORT = "Name the longest river there."
TINY = "Why is that?"
BENCHMARK = [
    {"question": LONG, "answer": "The stone bridge"},
    {"question": RUSSIAN, "answer": "Каменный мост у мельницы"},
    {"question": TINY, "answer": ANSWER},
    {"question": SHORT, "answer": "the Nile"},
    {"question": TINY, "answer": "no"},
    {"question": f"Read this. {LONG}", "answer": "The stone bridge"},
]

RICH = (  # a template that writes reasoning and calls
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>\n{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(asked, said="nothing of it", **more):
    return {"messages": [user(asked), assistant(said, **more)]}


def call(arguments):
    function = {"name": "look_up", "arguments": arguments}
    return assistant("", tool_calls=[{"type": "function", "function": function}])


CONTAMINATED = {
    "a copy": chat(LONG),
    "in the middle of other text": chat(f"As they say, {LONG} That is what I wonder."),
    "in capitals": chat(LONG.upper()),
    "with other punctuation": chat(re.sub(r"[,?]", "", LONG).replace(" ", " - ")),
    "over several lines": chat(LONG.replace(" ", "\n\t")),
    "Cyrillic": chat(f"Скажи: {RUSSIAN}"),
    "Cyrillic in capitals": chat(RUSSIAN.upper()),
    "decomposed Cyrillic": chat(unicodedata.normalize("NFD", RUSSIAN.replace("ё", "е"))),
    "13 words of it": chat(" ".join(LONG.split()[3:16])),
    "in a system prompt": conversation("and now", "go on", system=f"Remember: {LONG}"),
    "in a later turn": conversation("hello there", "hi", LONG.lower(), "hm"),
    "in an answer": chat("tell me", f"They ask: {LONG}"),
    "the answer": chat("tell me", ANSWER),
    "in reasoning": chat("think of it", "done", reasoning_content=f"So the task is: {LONG} Let me see."),
    "in a call": {"messages": [user("look it up"), call({"query": LONG}), {"role": "tool", "content": "x"}]},
    "in a call as JSON text": {
        "messages": [user("look up"), call(json.dumps({"q": SHORT}, separators=(",", ":"))), assistant("so")]
    },
    "in parts": {"messages": [user([{"type": "text", "text": LONG[:40]}, {"type": "text", "text": LONG[40:]}])]}
    | {"messages": [user([{"type": "text", "text": LONG[:40]}, {"type": "text", "text": LONG[40:]}]), assistant("a")]},
    "a short one within": chat(f"I beg you to name the longest RIVER there: {SHORT}"),
}
CLEAN = {
    "12 words of it": chat(" ".join(LONG.split()[2:14])),
    "a word changed in each 13": chat(" ".join("so" if n % 12 == 5 else w for n, w in enumerate(LONG.split()))),
    "half of a short one": chat("Name the longest river of all"),
    "too short to be looked for": chat("Why is that? no", "the Nile"),
    "split over two turns": conversation(*LONG.split(" the first "), "and", "so"),
    "other words": chat("Which of the bridges is old?"),
}


def split_plainly(text):
    return re.sub(r"[^\w\s]|_", "", unicodedata.normalize("NFC", text).lower()).split()


def list_all_texts(value):
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in values for text in list_all_texts(each)]


def search_by_brute_force(benchmark, rows):
    """Of each row the numbers of the benchmark's rows that it holds text of."""
    grams = []
    for number, row in enumerate(benchmark):
        for text in list_all_texts(row):
            words = split_plainly(text)
            size = min(13, len(words))
            if size >= 5:
                grams += [(number, f" {' '.join(words[n : n + size])} ") for n in range(len(words) - size + 1)]
    texts = [[f" {' '.join(split_plainly(text))} " for text in list_all_texts(row)] for row in rows]
    return [sorted({number for number, gram in grams if any(gram in text for text in own)}) for own in texts]


def list_contaminated(done):
    return [(each["dataset_index"], each["row"]) for each in done.dropped if each["reason"] == "contaminated"]


@pytest.fixture
def planted(files):
    """Two data sets, one of planted rows and one of real ones with some in a document; the recipe's keys."""
    rows = [*CONTAMINATED.values(), *CLEAN.values()]
    random.Random(3).shuffle(rows)
    files.write("bench.jsonl", BENCHMARK)
    files.write("mine.jsonl", rows)
    documents = [
        {"text": f"A chapter. {'It rained for days. ' * 9}{text} So it went on."} for text in (LONG, "Nothing.")
    ]
    files.write("books.jsonl", documents)
    datasets = [
        {"name": "mine.jsonl"},
        {"name": "books.jsonl", "max_tokens_count": 40},
        {"name": "quickstart/countries.jsonl", "split": "train[:300]"},
    ]
    keys = {"dedup": {"method": "none"}, "tokenizer": {"chat_template": RICH}}
    return rows, {"datasets": datasets, "decontaminate": [{"name": "bench.jsonl"}], **keys}


def test_each_kind_of_copy_is_found_and_nothing_else(composed, files):
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", [*CONTAMINATED.values(), *CLEAN.values()])
    keys = {"dedup": {"method": "none"}, "tokenizer": {"chat_template": RICH}}
    done = composed(decontaminate=[{"name": "bench.jsonl"}], split={"val_ratio": 0.2}, **keys)
    names = [*CONTAMINATED, *CLEAN]
    assert {names[row] for _, row in list_contaminated(done)} == {*CONTAMINATED}
    (counts,) = done.manifest["counts"]
    assert counts["dropped"] == {"contaminated": len(CONTAMINATED)}
    assert counts["conversations"] == counts["train"] + counts["val"] + len(CONTAMINATED)
    report = (done.folder / "out/train.report.html").read_text(encoding="utf-8")
    assert "Benchmarks" in report
    assert "contaminated" in report


def test_it_is_what_brute_force_finds_on_real_data(planted, composed, files):
    mine, keys = planted
    real = read_jsonl(QUICKSTART)
    chance = random.Random(1)
    taken = [row for row in chance.sample(real[:300], 25) if len(row["instruction"].split()) > 4]
    shown = [{"question": row["instruction"].upper(), "answer": row["output"]} for row in taken]
    files.write("real.jsonl", shown)
    keys |= {"decontaminate": [{"name": "bench.jsonl"}, {"name": "real.jsonl"}]}
    done = composed(**keys)
    rows = {0: mine, 1: files.read("books.jsonl"), 2: real[:300]}
    found = {
        (index, number): hits
        for index, own in rows.items()
        for number, hits in enumerate(search_by_brute_force([*BENCHMARK, *shown], own))
        if hits or (index == 0 and own[number] is CONTAMINATED["in a call as JSON text"])
    }
    found[0, mine.index(CONTAMINATED["in a call as JSON text"])] = [3]  # brute force parses no JSON,
    found[0, mine.index(CONTAMINATED["in parts"])] = [0, 5]  # nor joins parts
    assert set(list_contaminated(done)) == set(found)
    assert len([place for place in found if place[0] == 2]) > 20
    hit = {
        (line["benchmark_index"] * len(BENCHMARK) + line["row"]): {(o["dataset_index"], o["row"]) for o in line["hit"]}
        for line in read_jsonl(EVAL)
    }
    affected = {number for hits in found.values() for number in hits}
    assert hit == {number: {place for place, hits in found.items() if number in hits} for number in affected}
    assert [each["affected"] for each in done.manifest["decontaminate"]] == [
        sum(number < len(BENCHMARK) for number in affected),
        sum(number >= len(BENCHMARK) for number in affected),
    ]


def test_the_ledger_and_the_list_of_benchmark_rows_name_each_other(composed, files):
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", [chat("clean"), chat(f"So: {LONG}"), chat("and", f"{SHORT} {ANSWER}")])
    done = composed(decontaminate=[{"name": "bench.jsonl"}])
    first, second = done.dropped
    assert first["benchmark"] == {"name": "bench.jsonl", "benchmark_index": 0, "row": 0}
    assert first["words"].split() == split_plainly(LONG)[:13]
    assert first["run"] == len(LONG.split())
    assert "row 0 of bench.jsonl" in first["detail"]
    assert (second["benchmark"]["row"], second["words"], second["run"]) == (3, "name the longest river there", 5)
    origin = {"dataset": "data.jsonl", "dataset_index": 0, "row": 1, "part": 0}
    rows = read_jsonl(EVAL)
    assert [line["row"] for line in rows] == [0, 2, 3, 5]
    assert rows[0] == {
        "benchmark": "bench.jsonl",
        "benchmark_index": 0,
        "row": 0,
        "conversations": 1,
        "hit": [origin],
    }
    assert rows[1]["hit"] == rows[2]["hit"] == [origin | {"row": 2}]
    entry = done.manifest["outputs"][-1]
    assert (entry["path"], entry["rows"]) == ("train.contaminated_eval.jsonl", 4)
    (described,) = done.manifest["decontaminate"]
    assert (described["rows"], described["searched"], described["affected"]) == (6, 5, 4)
    assert described["inputs"][0]["bytes"] == Path("bench.jsonl").stat().st_size
    assert "4 rows of benchmarks found in the data, see out/train.contaminated_eval.jsonl" in done.out


def read_outputs():
    names = ("train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html", "train.contaminated_eval.jsonl")
    return {name: Path("out", name).read_bytes() for name in names if Path("out", name).exists()}


def test_processes_and_the_cache_of_rows_change_nothing(planted, composed, files, monkeypatch):
    _, keys = planted
    composed("--num_proc", 1, **keys)
    first = read_outputs()
    files.write("bench.jsonl", [{"question": "What is the capital of Cuba then?", "answer": "-"}])
    assert list_contaminated(composed(**keys)) == []
    files.write("bench.jsonl", BENCHMARK)
    composed(**keys)
    assert read_outputs() == first
    monkeypatch.setenv("IMPRUVER_CACHE", str(files.folder / "another"))
    composed("--overwrite", "--num_proc", 2, **keys)
    assert read_outputs() == first


def test_without_benchmarks_all_is_as_it_was(keys, composed):
    done = composed(**keys | {"decontaminate": None})
    assert not EVAL.exists()
    assert "decontaminate" not in done.manifest
    assert "decontaminate" not in done.manifest["recipe"]
    assert "use" not in done.manifest["recipe"]["datasets"][0]
    before = read_outputs()
    done = composed(**keys | {"decontaminate": []})
    assert read_outputs() == before


@pytest.fixture
def keys(files):
    """The keys of a recipe over a few rows, two of which hold text of the benchmark."""
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", [*files.unlike(4), chat(LONG), chat(f"now: {SHORT}")])
    return {"decontaminate": [{"name": "bench.jsonl"}], "split": {"val_rows": 1}}


def test_the_list_is_replaced_and_goes_with_the_benchmarks(keys, composed, compose, files):
    without = keys | {"decontaminate": None}
    composed(**keys)
    assert len(read_jsonl(EVAL)) == 3
    files.write("bench.jsonl", BENCHMARK[3:4])
    composed(**keys)
    assert len(read_jsonl(EVAL)) == 1
    composed(**without)
    assert not EVAL.exists()
    composed(**keys)
    EVAL.write_text("changed")
    assert "contaminated_eval.jsonl was changed since Impruver made it" in compose(**keys).err
    composed(**without)  # it is the user's now
    assert EVAL.read_text() == "changed"
    assert "contaminated_eval.jsonl is there and Impruver did not make it" in compose(**keys).err
    composed("--overwrite", **keys)
    assert len(read_jsonl(EVAL)) == 1


def test_stopped_while_the_list_is_removed_the_next_start_finishes(keys, composed, compose, monkeypatch):
    without = keys | {"decontaminate": None}
    composed(**keys)
    with monkeypatch.context() as patch:
        stop_behind_train(patch)
        assert compose(**without).code == 143
    assert EVAL.exists()
    done = composed(**without)
    assert not EVAL.exists()
    assert [each["path"] for each in done.manifest["outputs"]] == [*read_outputs()]


ON = {
    "question": {"asked", "asked in Russian"},
    "answer": {"answered"},
    "both": {"asked", "asked in Russian", "answered"},
}


@pytest.mark.parametrize("on", ON)
def test_which_texts_are_looked_for(on, composed, files):
    files.write("bench.jsonl", BENCHMARK)
    rows = {
        "asked": chat(LONG),
        "asked in Russian": chat(RUSSIAN),
        "answered": chat("so", ANSWER),
        "clean": chat("a", "b"),
    }
    files.write("data.jsonl", rows.values())
    done = composed(decontaminate=[{"name": "bench.jsonl", "on": on}])
    assert {[*rows][row] for _, row in list_contaminated(done)} == ON[on]


def same(text):
    return [user(text), assistant(ANSWER)]


FORMATS = {  # rows of a benchmark, and the keys that it takes
    "a question alone": ([{"question": LONG}], {}),
    "numbers for answers": ([{"question": LONG, "choices": ["a", "b"], "answer": 1}], {}),
    "mapping": ([{"task": LONG, "solution": ANSWER}], {"mapping": {"instruction": "task", "output": "solution"}}),
    "an instruction and a short input": (
        [{"instruction": "Which of the seven", "input": "old bridges over", "output": "x"}],
        {},
    ),
    "an instruction that all rows have": ([{"instruction": SHORT, "input": LONG}], {"mapping": {"instruction": "_"}}),
    "turns of a stranger": ([{"question": [{"from": "sensei", "value": LONG}]}], {}),
    "messages": ([{"messages": same(LONG)}], {}),
    "messages without an answer": ([{"messages": [user(LONG)]}], {}),
    "a cell of messages": ([{"prompt": [{"role": "system", "content": SHORT}, user(LONG)]}], {}),
    "ShareGPT": ([{"conversations": [{"from": "human", "value": LONG}, {"from": "gpt", "value": "a"}]}], {}),
    "a document": ([{"text": f"It says: {LONG}"}], {}),
    "a converter": ([{"q": LONG}, {"q": None}], {"converter": "mine.convert"}),
}


@pytest.mark.parametrize("form", FORMATS)
def test_benchmarks_of_any_format(form, composed, files, tmp_path):
    rows, keys = FORMATS[form]
    (tmp_path / "mine.py").write_text(
        "def convert(row):\n    return row['q'] and [{'role': 'user', 'content': row['q']}]\n"
    )
    files.write("bench.jsonl", rows)
    files.write("data.jsonl", [chat(LONG), chat("clean", "row"), chat("so", SHORT)])
    done = composed(decontaminate=[{"name": "bench.jsonl", **keys}])
    assert list_contaminated(done) == [(0, 0)]


def test_of_a_folder_the_split_test_is_read(composed, files):
    files.write("bench/train.jsonl", [{"question": SHORT}])
    files.write("bench/test.jsonl", [{"question": LONG}])
    files.write("data.jsonl", [chat(LONG), chat(SHORT), chat("clean")])
    assert list_contaminated(composed(decontaminate=[{"name": "./bench"}])) == [(0, 0)]
    done = composed(decontaminate=[{"name": "./bench", "split": "train"}, {"name": "bench/test.jsonl"}])
    assert list_contaminated(done) == [(0, 0), (0, 1)]
    assert [line["benchmark_index"] for line in read_jsonl(EVAL)] == [0, 1]


BAD = {
    "no such column": ([{"question": LONG}], {"mapping": {"output": "solution"}}, "no such column (output: solution)"),
    "no such field": ([{"question": LONG}], {"mapping": {"instructoin": "question"}}, "did you mean instruction"),
    "no answers": ([{"question": LONG}], {"on": "answer"}, "mapping: {output: COLUMN}"),
    "other columns": ([{"a": LONG}], {}, "no converter fits the columns a"),
    "short texts": ([{"question": TINY}], {}, "has no text of 5 words or more"),
    "a bad row": ([{"messages": same(LONG)}, {"messages": 7}], {}, "row 1 of bench.jsonl can't be read"),
    "another on": ([{"question": LONG}], {"on": "all"}, "is none of question, answer, both"),
    "no file": (None, {}, "bench.jsonl"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_benchmarks(case, refused, files):
    rows, keys, told = BAD[case]
    files.write("data.jsonl", files.unlike(3))
    if rows:
        files.write("bench.jsonl", rows)
    message = refused(decontaminate=[{"name": "bench.jsonl", **keys}])
    assert told in message
    assert "decontaminate.0" in message


def test_nothing_left_says_why(refused, files):
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", [chat(LONG), chat(f"{LONG} now")])
    message = refused(decontaminate=[{"name": "bench.jsonl"}])
    assert "no usable rows are left of 2" in message
    assert "contaminated: they hold text of the benchmarks" in message


def test_an_output_is_no_benchmark(composed, compose, files):
    files.write("data.jsonl", files.unlike(5))
    composed(split={"val_rows": 2})
    done = compose(split={"val_rows": 2}, decontaminate=[{"name": "./out/val.jsonl"}])
    assert done.code == 2
    assert "out/val.jsonl" in done.err


def test_dry_run_reads_the_benchmarks_and_writes_nothing(composed, refused, files, tmp_path):
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", files.unlike(5))
    done = composed("--dry_run", decontaminate=[{"name": "bench.jsonl", "on": "question"}])
    assert "benchmark 0: bench.jsonl, 6 rows, columns question, answer, on question" in done.err
    assert "2 of 6 rows have no text of 5 words or more" in done.err
    assert not (tmp_path / "out").exists()
    files.write("bench.jsonl", [{"question": TINY}])
    assert "nothing of it can be looked for" in refused("--dry_run", decontaminate=[{"name": "bench.jsonl"}])


def test_explain_shows_both(composed, files):
    files.write("bench.jsonl", BENCHMARK)
    files.write("data.jsonl", [chat("clean"), conversation("hello", "hi", f"Say: {LONG.upper()} Now", "x")])
    keys = {"decontaminate": [{"name": "bench.jsonl"}]}
    composed(**keys)
    out = composed("--explain", "0:1", **keys).out
    assert "row 1, conversation 0: dropped, contaminated: 20 words in a row are in row 0 of bench.jsonl" in out
    assert f"benchmark bench.jsonl, row 0:\n  ⟦{LONG}⟧\n" in out
    assert f"user:\n  Say:·⟦{LONG.upper()}⟧·Now\n" in out
    assert "kept" in composed("--explain", "0:0", **keys).out
    files.write("bench.jsonl", [{"question": SHORT}])
    done = composed("--explain", "0:1", **keys)
    assert "the benchmarks are not those of the last run any more" in done.err
    assert f"benchmark bench.jsonl, row 0:\n  {SHORT}\n" in done.out
