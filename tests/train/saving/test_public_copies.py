"""Paths of a machine in texts that are published."""

from pathlib import Path

import pytest
from impruver_train.saving.public_copies import hide_paths, make_path_hider

PRIVATE = [Path("/home/u"), Path("/home/u/work/run"), Path("/data/my models"), Path("/data/my models/big base")]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/home/u/work/run/out", "out"),
        ("/home/u/work/run/data/train.jsonl", "data/train.jsonl"),
        ("/home/u/work/run", "."),
        ("/home/u/other/base", "base"),
        ("/data/my models/big base", "big base"),
        ("/home/u/work/run/../run/out", "out"),
        ("~/elsewhere/base", "base"),
        ("see /home/u/notes/a.txt, and (/home/u/work/run/b)", "see a.txt, and (b)"),
        ("<td>/data/my models/big base</td>", "<td>big base</td>"),
        ("file:///home/u/notes/a.txt", "a.txt"),
        ("/home/user2/base", "/home/user2/base"),
        ("https://example.org/home/u/x", "https://example.org/home/u/x"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("/no_think", "/no_think"),
    ],
)
def test_paths_become_relative_or_names(text, hidden, monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    hide = make_path_hider(PRIVATE, Path("/home/u/work/run"))
    assert hide(text) == hidden
    assert hide_paths({"a": [text, 3, None]}, hide) == {"a": [hidden, 3, None]}
