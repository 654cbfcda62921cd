"""--show: rows as they are trained on, and nothing else."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("impruver-compose")


@pytest.fixture
def shown(compose, files, tmp_path):
    """Runs with --show; stdout. Nothing may be written but what `datasets` keeps of its input."""

    def run(count, rows, **keys):
        if rows is not None:
            files.write("data.jsonl", rows)
        done = compose("--show", count, **keys)
        assert done.code == 0, done.err
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "cache/compose").exists()
        return done.out

    return run


def blocks(out):
    """[(title, text)] of what was shown, behind the legend."""
    parts = re.split(r"^(data set .*)\n", out, flags=re.MULTILINE)
    return [(title, text.strip("\n")) for title, text in zip(parts[1::2], parts[2::2], strict=True)]


def test_target_tokens_are_in_brackets_without_colours(shown, files):
    row = files.chat("один?", " Ответ 🍏🍎,  два\tслова\n\nи всё", "b", "\x1b[31mc\u200b⟦d⟧ ", system="s")
    out = shown(1, [row])
    assert "\x1b" not in out
    assert "\ufffd" not in out
    assert out.startswith("⟦trained on⟧, all else is not\n")
    ((title, text),) = blocks(out)
    assert re.fullmatch(r"data set 0 \(data.jsonl\), row 0, conversation 0: \d+ tokens, \d+ trained on", title)
    assert text == (
        "<s><|im_start|>system⏎\ns<|im_end|>⏎\n<|im_start|>user⏎\nодин?<|im_end|>⏎\n<|im_start|>assistant⏎\n"
        "⟦·Ответ 🍏🍎,··два→\tслова⏎\n⏎\nи всё<|im_end|>⟧⏎\n<|im_start|>user⏎\nb<|im_end|>⏎\n<|im_start|>assistant⏎\n"
        "⟦\\x1b[31mc\\u200b\\u27e6d\\u27e7 <|im_end|>⟧⏎"
    )


def test_what_is_shown_is_what_is_written(shown, composed, files, tokenizer):
    rows = [files.chat("a", "b", "c", "d"), files.chat("no answer"), {"text": "the river"}, *files.unlike(5)]
    files.write("data.jsonl", [row for row in rows if "text" not in row])
    files.write("text.jsonl", [{"text": "the river 🍏" * 9}])
    keys = {"datasets": [{"name": "data.jsonl", "turns": "each"}, {"name": "text.jsonl", "max_tokens_count": 30}]}
    found = blocks(shown(3, None, **keys))
    places = ["row 0", "row 0", "row 2", "row 0", "row 0", "row 0"]
    assert [re.search(r"row \d+", title)[0] for title, _ in found] == places
    plain = [re.sub("⏎|⟦|⟧", "", text).replace("·", " ").strip() for _, text in found]
    written = [tokenizer.decode(row["input_ids"]).strip() for row in composed(**keys).train]
    # a document may be cut within a character; what is left of it can't be shown
    assert {text for text in plain if "\ufffd" not in text} <= set(written)
    assert "⟦b<|im_end|>⟧" in found[0][1]
    assert "⟦" not in found[1][1].partition("d<|im_end|>")[0].removesuffix("⟦")


def test_fewer_rows_than_asked_for(shown, files):
    out = shown(9, [*files.unlike(2), files.chat("no answer")])
    assert "data set 0 (data.jsonl) gives 2 rows" in out
    assert "gives 0 rows; 1 bad_row; 2 nothing_to_learn" in shown(1, [files.chat("no answer")] * 2 + [{"messages": []}])


def test_neither_places_nor_an_end_is_needed(shown, files):
    """The recipe of one who only looks: no train_path, outputs of others in the way."""
    assert "row 1," in shown(2, files.unlike(3), train_path=None, val_path=None)


def test_few_rows_of_many_cost_little(shown, files, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def counted(row):\n    open('seen', 'a').write('x')\n    return row['messages']\n", encoding="utf-8"
    )
    shown(2, files.unlike(400), data={"converter": "mine.counted"})
    assert (tmp_path / "seen").stat().st_size < 150


@pytest.mark.parametrize("count", [0, -1])
def test_how_many(count, refused, files):
    files.write("data.jsonl", files.unlike(2))
    assert f"--show must be at least 1, not {count}" in refused("--show", count)


def on_a_terminal(arguments, **environment):
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, *arguments], stdout=theirs, stderr=subprocess.PIPE, env=os.environ | environment
    ) as run:
        os.close(theirs)
        found = b""
        try:
            while chunk := os.read(ours, 1 << 16):
                found += chunk
        except OSError:  # the other end is closed
            pass
        errors = run.stderr.read()
    os.close(ours)
    assert run.returncode == 0, errors.decode()
    return found.decode().replace("\r\n", "\n")


def test_colours_on_a_terminal_unless_it_wants_none(recipe, files):
    files.write("data.jsonl", [files.chat("hi", "yo\nyo")])
    arguments = ["--config", str(recipe()), "--quiet", "--show", "1"]
    environment = {"TERM": "xterm", "NO_COLOR": ""}
    found = on_a_terminal(arguments, **environment)
    assert "⟦" not in found
    assert "\x1b[32myo⏎\x1b[0m\n\x1b[32myo<|im_end|>\x1b[0m" in found
    assert "\x1b[90m<s><|im_start|>user⏎\x1b[0m\n\x1b[90mhi<|im_end|>⏎" in found
    found = on_a_terminal(arguments, **environment | {"NO_COLOR": "1"})
    assert "\x1b" not in found
    assert "⟦yo⏎\nyo<|im_end|>⟧" in found
