"""Tables, durations, and what strangers' texts may do to a terminal."""

import pytest
from impruver_core.cli.console import format_duration, format_table, make_visible, print_coloured


def test_table_aligns_numbers_to_the_right():
    assert format_table(("what", "rows"), [("да", 5), ("longer", 1200)]) == "what    rows\nда         5\nlonger  1200"


def test_table_of_nothing():
    assert format_table(("a", "b"), []) == "a  b"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (185, "3 m 05 s"), (8040, "2 h 14 m")])
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_table_shows_what_a_terminal_would_obey_and_stays_aligned():
    assert format_table(("a", "b"), [("\x1b[2J", "x"), ("two\nlines", "y")]) == (
        "a           b\n\\x1b[2J     x\ntwo\\nlines  y"
    )


def test_every_control_character_but_line_ends_and_tabs_is_shown():
    shown = {code: make_visible(chr(code)) for code in range(0x110000)}
    hidden = {code for code, text in shown.items() if text != chr(code)}
    assert hidden >= {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {0x09, 0x0A}
    assert hidden <= {*range(0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x2070), *range(0xD800, 0xE000)}
    assert all(shown[code].isascii() and shown[code].isprintable() for code in hidden)
    assert make_visible("й\U0001f34e\tя\n") == "й\U0001f34e\tя\n"


def test_colours_of_our_own_stay(capsys):
    print_coloured("\x1b[32mgreen\x1b[0m \x1b[2J\x1b]0;x\x07")
    assert capsys.readouterr().out == "\x1b[32mgreen\x1b[0m \\x1b[2J\\x1b]0;x\\x07\n"
