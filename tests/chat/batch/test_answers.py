"""What counts as the same answer."""

import pytest
from impruver_chat.batch.rows import format_share, normalize_text


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Paris.", "paris", True),
        ("  The  capital\nis Paris!! ", "the capital is Paris", True),
        ("ﬁne — №1…", "FINE — No1", True),
        ("Straße", "STRASSE", True),
        ("Москва»", "москва", True),
        ("e\u0301", "é", True),
        ("Paris", "London", False),
        ("12.5", "125", False),
        ("?", "!", False),
        ("", "a", False),
    ],
)
def test_match(answer, reference, same):
    assert (normalize_text(answer) == normalize_text(reference)) is same


def test_share():
    assert format_share(10, 12) == "right: 10 of 12 (83.3%)"
