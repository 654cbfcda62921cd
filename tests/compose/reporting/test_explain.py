"""--explain: what the last run made of a row."""

import pytest

LONG = "river stone cloud lamp tiger bread window garden silver market winter candle forest engine pepper bridge "
LONG += " ".join(str(number * number) for number in range(60)) + " "
MINE = """
def several(row):
    if row.get("skip"):
        return None
    return row["parts"]
"""


@pytest.fixture
def explained(compose, files):
    """Runs a recipe once, then explains a place; stdout."""

    def run(place, code=0, **keys):
        done = compose("--explain", place, **keys)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        return done.out if code == 0 else done.err.partition("impruver-compose: error: ")[2]

    return run


@pytest.fixture
def past(composed, files, tmp_path):
    """A run over two data sets with rows of every fate; the recipe's keys."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    first = [
        files.chat("the first question", LONG + "one two", system="be kind"),
        files.chat("the first question", LONG + "one  three", system="be brief"),
        files.chat("only a question"),
        {"messages": []},
        files.chat("long", "river " * 600),
        files.chat("yes?", "да 🍏"),
    ]
    pair = files.chat("yes?", "да 🍏")["messages"]
    second = [{"parts": [pair, files.chat("другой", "вопрос")["messages"]]}, {"skip": True, "parts": None}]
    files.write("a.jsonl", first)
    files.write("b.jsonl", second)
    keys = {
        "datasets": [{"name": "a.jsonl", "max_tokens_count": 500}, {"name": "b.jsonl", "converter": "mine.several"}]
    }
    done = composed(**keys)
    assert {line["reason"] for line in done.dropped} >= {"exact_duplicate", "near_duplicate", "too_long", "bad_row"}
    return keys


FATES = {
    "0:0": ["row 0, conversation 0: kept\n", "  0:1:0 repeats it, similarity 0."],
    "0:2": ["conversation 0: dropped, nothing_to_learn: no assistant's turn"],
    "0:3": ["conversation 0: dropped, bad_row: messages is empty"],
    "0:4": ["dropped, too_long: ", "at most 500"],
    "1:0:1": ["data set 1 (b.jsonl), row 0, conversation 1: kept\n"],
    "1:1": ["data set 1 (b.jsonl), row 1, conversation 0: dropped, converter_skipped\n"],
}


@pytest.mark.parametrize("place", FATES)
def test_what_became_of_a_row(place, past, explained):
    out = explained(place, **past)
    assert all(part in out for part in FATES[place]), out


def test_every_part_of_a_row(past, explained):
    out = explained("1:0", **past)
    assert "row 0, conversation 0: dropped, exact_duplicate, similarity 1.0\n" in out
    assert "row 0, conversation 1: kept\n" in out
    assert "conversation 1" not in explained("1:0:0", **past)


def test_a_duplicate_is_shown_beside_what_was_kept(past, explained):
    out = explained("0:1", **past)
    assert "row 1, conversation 0: dropped, near_duplicate, similarity 0." in out
    assert "kept was data set 0 (a.jsonl), row 0, conversation 0\n" in out
    assert "system, dropped:\n  be [-brief-]\n" in out
    assert "system, kept:\n  be {+kind+}\n" in out
    assert out.count("user, both:\n  the first question\n") == 1
    assert " one[-··three-]\n" in out
    assert " one{+ two+}\n" in out


def test_an_exact_duplicate_of_another_data_set(past, explained):
    out = explained("1:0:0", **past)
    assert "kept was data set 0 (a.jsonl), row 5, conversation 0\n" in out
    assert "user, both:\n  yes?\nassistant, both:\n  да 🍏\n" in out


def test_duplicate_documents_of_any_length(composed, explained, files):
    text = "".join(f"the river {number} 🍏 " for number in range(4000))
    files.write("data.jsonl", [{"text": text + "end"}, {"text": text + "stop"}])
    composed()
    out = explained("0:1")
    assert "text, dropped:" in out
    assert "[-stop-]" in out
    assert "{+end+}" in out


def test_it_writes_nothing(past, explained, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    explained("0:1", **past)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


BAD = {
    "x": "not of the form <dataset_index>:<row>[:<part>], as in 0:17",
    "1": "not of the form",
    "0:-1": "not of the form",
    "0:1:2:3": "not of the form",
    "0:١": "not of the form",
    "2:0": "there are 2 data sets, numbered from 0: no 2",
    "0:6": "data set 0 (a.jsonl) has 6 rows, numbered from 0: no 6",
    "1:0:2": "row 0 of data set 1 has 2 conversations, numbered from 0",
}


@pytest.mark.parametrize("place", BAD)
def test_places_that_are_none(place, past, explained):
    assert BAD[place] in explained(place, code=2, **past)


def test_before_the_first_run(explained, files, tmp_path):
    files.write("data.jsonl", files.unlike(2))
    assert "out/train.jsonl.manifest.json is not there: run impruver-compose" in explained("0:0", code=2)
    assert not (tmp_path / "out").exists()


def test_a_ledger_that_is_gone(composed, explained, files, tmp_path):
    files.write("data.jsonl", files.unlike(2))
    composed()
    (tmp_path / "out/train.dropped.jsonl").unlink()
    assert "out/train.dropped.jsonl is not there" in explained("0:0", code=2)


def test_data_that_has_changed(composed, compose, files):
    rows = files.unlike(2)
    files.write("data.jsonl", [*rows, rows[1]])
    composed()
    files.write("data.jsonl", [rows[0], {"messages": "no JSON"}, rows[1]])
    done = compose("--explain", "0:2")
    assert done.code == 0
    assert "warning: the data is not that of the last run any more" in done.err
    assert "the data no longer holds both" in done.out
