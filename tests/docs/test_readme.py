"""README.md and README.ru.md say the same."""

import re

import pytest
from support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUSSIAN = (ROOT / "README.ru.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def structure(text: str) -> dict:
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {
        "headings": re.findall(r"^#+", outside, re.MULTILINE),
        "blocks": [re.sub(r" +# .*|─▶.*", "", block) for block in blocks(text)],
        "links": [link for link in re.findall(r"\]\(([^)]+)\)", outside) if not link.startswith("README")],
        "table": [row.split(" | ")[0] for row in re.findall(r"^\| \[.*", outside, re.MULTILINE)],
        "code": sorted(set(re.findall(r"`([^`\n]+)`", outside))),
    }


@pytest.mark.parametrize("part", ["headings", "blocks", "links", "table", "code"])
def test_both_languages_say_the_same(part):
    assert structure(README)[part] == structure(RUSSIAN)[part]
    assert len(structure(README)[part]) > 3


def test_the_russian_one_is_in_russian():
    prose = re.sub(r"```.*?```|`[^`]*`|\([^)]*\)", "", RUSSIAN, flags=re.DOTALL)
    letters = re.findall(r"[A-Za-z]|[А-Яа-яё]", prose)
    assert sum(letter > "z" for letter in letters) > 0.75 * len(letters)
    assert len(RUSSIAN) > 0.8 * len(README)
