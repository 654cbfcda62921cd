"""Markdown at a terminal, drawn piece by piece: what stands there in the end is what one drawing would have made."""

import re

import pytest
from impruver_chat.terminal.display import PlainDisplay

DRAW = """
import sys, time
from impruver_chat.terminal import display as screen
screen.FASTEST = screen.SLOWEST = 0
text, size = open(sys.argv[1], encoding="utf-8").read(), int(sys.argv[2])
page = screen.make_display(plain=False)
for number, part in enumerate(text.split("@")):
    if number:
        print(f"\\x1b]2;{number}\\x07", end="", flush=True)  # as the window's title: how far it is
        while screen.get_terminal_size() == before:
            time.sleep(0.01)
    before = screen.get_terminal_size()
    for at in range(0, len(part), size):
        page.feed(sys.argv[3], part[at:at + size])
page.finish()
print("END")
"""
LONG = (
    "# Заголовок\n\nПервый абзац с **жирным** словом и 🍎, 中文字符也在这里，"
    + "слово " * 40
    + "\n\n"
    + "".join(f"{number}. пункт {number} 🍎 из списка\n" for number in range(1, 31))
    + "\n```python\n"
    + "".join(f"line_{number} = {number}\n" for number in range(40))
    + "```\n\n| a | b |\n|---|---|\n| 1 | два |\n\nfirst line\nsecond line with a <b>tag</b>\n\n"
    + "last слово🍎 " * 60
)


@pytest.fixture
def drawn(terminal, tmp_path):
    """Draws a text in pieces of that many characters; the Terminal, and the lines that stand on it."""

    def draw(text, size, kind="text", **options):
        path = tmp_path / "text.md"
        path.write_text(text, encoding="utf-8")
        window = terminal("-c", DRAW, path, size, kind, **options)
        lines = window.until("END").split("\n")
        assert lines[-1] == "END"
        return window, lines[:-1]

    return draw


def test_an_answer_taller_than_the_screen_stands_there_once(drawn):
    _, whole = drawn(LONG, len(LONG), columns=60, rows=200)
    _, pieces = drawn(LONG, 3, columns=60, rows=12)
    assert [line.split() for line in pieces] == [line.split() for line in whole]  # a list is indented as it grows
    assert sum("Заголовок" in line for line in pieces) == 1
    assert [line.split()[0] for line in pieces if "пункт" in line] == [str(number) for number in range(1, 31)]
    assert [line.strip() for line in pieces if "line_" in line] == [f"line_{n} = {n}" for n in range(40)]
    assert pieces[-8:].count("") <= 1
    assert "".join(pieces).count("🍎") == LONG.count("🍎")


def test_what_the_model_wrote_is_seen_as_it_wrote_it(drawn):
    window, lines = drawn("one\ntwo <b>three</b>\n\n\x1b[2J\x07four **five**", 1)
    assert lines == ["one", "two <b>three</b>", "", "�[2J�four five"]
    row = window.screen.buffer[3]
    assert [row[at].bold for at in range(10, 14)] == [True] * 4
    assert not row[5].bold


def test_unfinished_lines_are_drawn_anew_and_no_others(drawn):
    window, lines = drawn("finished\n\n" + "word " * 10, 2)
    assert lines == ["finished", "", ("word " * 10).strip()]
    assert b"finished" not in window.raw.split(b"word", 1)[1]


def test_characters_that_turn_others_round_are_lost(capsys):
    display = PlainDisplay()
    display.feed("text", "a\u061cb\u200ec\u200fd\u202ee\u2066f\x1b")
    assert capsys.readouterr().out == "abcdef\ufffd"


def test_reasoning_is_dim_and_no_markdown(drawn):
    window, lines = drawn("a **b**\n\nc", 1, "reasoning")
    assert lines == ["a **b**", "", "c"]
    assert b"\x1b[2m" in window.raw


def test_a_dumb_terminal_gets_plain_text(drawn):
    window, lines = drawn("a **b**\n", 1, TERM="dumb")
    assert lines[0] == "a **b**"
    assert b"\x1b" not in window.raw


def test_items_of_a_list_with_blank_lines_stay_one_list(drawn):
    text = "".join(f"{number}. item\n\n" for number in range(1, 8)) + "- a\n\n- b\n\nend"
    _, lines = drawn(text, 1)
    assert [line.strip() for line in lines] == [*(f"{n} item" for n in range(1, 8)), "", "• a", "• b", "", "end"]


WORDS = [f"слово{number:03}" for number in range(90)]
LISTED = [f"- пункт{number}" for number in range(10, 30)]
CODE = [f"line_{number} = {number}" for number in range(12)]
TEXTS = {
    "a paragraph": " ".join([*WORDS[:30], "@", *WORDS[30:60], "@", *WORDS[60:]]),
    "cut within a word": " ".join(WORDS[:30]) + "сло@во " + " ".join(WORDS[30:60]) + " 🍎 сл@ово",
    "bold": "**" + " ".join([*WORDS[:5], "@", *WORDS[5:30], "@", *WORDS[30:]]) + "**",
    "a list": "\n".join([*LISTED[:7], "- @", *LISTED[7:14], "- x@", *LISTED[14:]]),
    "code": "```\n" + "\n".join([*CODE[:4], "@", *CODE[4:8], "x@", *CODE[8:]]) + "\n```",
    "blocks": f"# {WORDS[0]}\n\n{WORDS[1]} @ {WORDS[2]}\n\n- {WORDS[3]}\n- {WORDS[4]} @\n\n---\n\n{WORDS[5]}",
}


@pytest.mark.parametrize("sizes", [(30, 90), (90, 30), (61, 60), (20, 12)], ids=str)
@pytest.mark.parametrize("name", TEXTS)
def test_a_resized_window_shows_nothing_twice_and_loses_nothing(name, sizes, terminal, tmp_path):
    path = tmp_path / "text.md"
    path.write_text(TEXTS[name], encoding="utf-8")
    window = terminal("-c", DRAW, path, 5, "text", columns=60, rows=60)
    for number, columns in enumerate(sizes, 1):
        window.until(lambda _, number=number: window.screen.title == str(number))
        window.resize(columns)
    assert inked(window.until("END")) == inked(TEXTS[name].replace("@", "")) + "END"


def inked(text):
    """What is to be read of a text, or of its Markdown."""
    return re.sub(r"[-`#*.•━┏┓┗┛┃─\s]", "", text)
