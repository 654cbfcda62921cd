"""What the documentation takes from the code is what the code says: help texts, keys, messages, links."""

import importlib.util
import re
from pathlib import Path

import pytest
from impruver_core.recipe.sections import OWNERS, installed_sections

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("compose", "train", "gguf", "chat")


@pytest.fixture(scope="module")
def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools/write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", ["docs/recipe.md", "core/README.md", *(f"packages/impruver-{t}/README.md" for t in TOOLS)]
)
def test_the_blocks_are_as_the_code_says(write_docs, page):
    assert ROOT / page in write_docs.pages()
    text = (ROOT / page).read_text(encoding="utf-8")
    assert write_docs.BLOCK.search(text)
    assert write_docs.made_anew(text) == text, "run `uv run python tools/write_docs.py`"


def test_what_changed_in_the_code_is_found_and_written(write_docs, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- made: keys of split -->\nold\n<!-- /made -->\nbehind\n")
    monkeypatch.setattr(write_docs, "ROOT", tmp_path)
    assert write_docs.main(["--check"]) == 1
    assert "page.md" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert write_docs.main([]) == 0
    assert "| `val_ratio` | number | `0.05` | share of the conversations |\n" in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("<!-- /made -->\nbehind\n")
    assert write_docs.main(["--check"]) == 0


def test_every_key_and_every_flag_is_told():
    reference = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    assert set(installed_sections()) == set(OWNERS)
    for name in OWNERS:
        assert re.search(rf"^(\| `{name}` \||## `{name}`$)", reference, re.MULTILINE), name
    for tool in TOOLS:
        text = (ROOT / f"packages/impruver-{tool}/README.md").read_text(encoding="utf-8")
        assert f"<!-- made: impruver-{tool} --help -->" in text
