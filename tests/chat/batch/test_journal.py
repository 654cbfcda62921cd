"""A file of questions that was stopped midway: what the next run takes up, and when it starts anew."""

import pytest
from impruver_chat.backends.transformers.backend import TransformersBackend
from support.chat_models import WORDS
from support.jsonl import read_jsonl

QUESTIONS = ["red", "white", "blue", "green", "black"]


@pytest.fixture
def asked(monkeypatch):
    """Counts the prompts that the backend is asked; `asked.stop` is raised instead of its third answer."""

    class Asked(list):
        stop = None

    seen, whole = Asked(), TransformersBackend.answer_batch

    def counting(self, prompts, sampling, size):
        seen.append(len(prompts))
        for number, pair in enumerate(whole(self, prompts, sampling, size)):
            if seen.stop and number == 2:
                raise seen.stop
            yield pair

    monkeypatch.setattr(TransformersBackend, "answer_batch", counting)
    return seen


@pytest.fixture
def command(chat, recipe, write_jsonl, tmp_path):
    """Runs the command on QUESTIONS, or other rows, with further flags; (exit code, stdout, stderr)."""
    output = tmp_path / "out" / "a.jsonl"

    def run(*flags, rows=None, folder="full"):
        path = write_jsonl(rows or [{"prompt": word} for word in QUESTIONS])
        return chat("--config", recipe(folder), "--input", path, "--output", output, *flags)

    return run


@pytest.fixture
def stopped(command, asked):
    """Two answers are there: the command was stopped at the third."""
    asked.stop = KeyboardInterrupt
    assert command()[0] == 130
    asked.stop = None
    asked.clear()


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_it_goes_on_where_it_stopped(stop, code, command, asked, tmp_path):
    assert command()[0] == 0
    folder = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    asked.stop = stop
    assert command()[:2] == (code, "")
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    journal = after.pop(".a.jsonl.partial")
    assert after == before  # the old file
    assert len(journal.splitlines()) == 3
    asked.stop = None
    asked.clear()
    code, _, err = command()
    assert (code, asked) == (0, [3])
    assert "2 answers are those of the run that was stopped" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "changed",
    [
        {"flags": ["--max_new_tokens", "7"]},
        {"flags": ["--seed", "1"]},
        {"flags": ["--system_prompt", "be brief"]},
        {"flags": ["--overwrite"]},
        {"rows": [{"prompt": word} for word in reversed(QUESTIONS)]},
        {"folder": "babbler"},
    ],
    ids=str,
)
def test_of_another_input_model_or_setting_nothing_is_taken_up(changed, command, asked, stopped):
    assert command(*changed.pop("flags", []), **changed)[0] == 0
    assert asked == [5]


def test_other_fields_may_change(command, asked, stopped, tmp_path):
    assert command("--batch_size", "2", rows=[{"prompt": word, "id": word} for word in QUESTIONS])[0] == 0
    rows = read_jsonl(tmp_path / "out/a.jsonl")
    assert [row["id"] for row in rows] == QUESTIONS
    assert asked == [3]


@pytest.mark.parametrize("cut", [b'{"place": 3, "te', b"{}\n", b"\xff\n", b'{"place":99,"text":"x","ended":true}\n'])
def test_a_journal_that_is_torn_does_no_harm(cut, command, stopped, tmp_path):
    with (tmp_path / "out/.a.jsonl.partial").open("ab") as file:
        file.write(cut)
    code, _, err = command()
    assert code == 0, err
    rows = read_jsonl(tmp_path / "out/a.jsonl")
    assert [row["messages"][-1]["content"] for row in rows] == [WORDS[word] for word in QUESTIONS]


def test_stopped_before_any_answer_it_leaves_nothing(command, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformersBackend, "answer_batch", stop)
    assert command()[0] == 130
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_answered_in_batches_and_a_file_sorted_further(chat, recipe, write_jsonl, asked, tmp_path):
    path = write_jsonl([{"prompt": word} for word in QUESTIONS])
    flags = ["--config", recipe(), "--input", path, "--batch_size", "2", "--output"]
    code, out, _ = chat(*flags, "-")
    assert (code, asked, len(out.splitlines())) == (0, [2, 2, 1], 5)
    assert chat(*flags, tmp_path / "b.jsonl")[0] == 0
    assert asked == [2, 2, 1, 5]
    assert (tmp_path / "b.jsonl").read_text() == out


def test_a_file_of_somebody_else_under_the_journals_name_stays(command, asked, tmp_path):
    (tmp_path / "out").mkdir(exist_ok=True)
    notes = tmp_path / "out/.a.jsonl.partial"
    notes.write_text("my notes", encoding="utf-8")
    code, _, err = command()
    assert (code, "is no file of ours" in err) == (2, True), err
    assert notes.read_text(encoding="utf-8") == "my notes"
