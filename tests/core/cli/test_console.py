"""Tables and durations."""

import pytest
from impruver_core.cli.console import format_duration, format_table


def test_table_aligns_numbers_to_the_right():
    assert format_table(("what", "rows"), [("да", 5), ("longer", 1200)]) == "what    rows\nда         5\nlonger  1200"


def test_table_of_nothing():
    assert format_table(("a", "b"), []) == "a  b"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (185, "3 m 05 s"), (8040, "2 h 14 m")])
def test_duration(seconds, text):
    assert format_duration(seconds) == text
