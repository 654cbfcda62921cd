"""What the documentation takes from the code is what the code says: help texts, keys, messages, links."""

import ast
import importlib.util
import re

import pytest
from impruver_core.recipe.registry import load_installed_sections
from impruver_core.recipe.sections import OWNERS
from support import ROOT

TOOLS = ("compose", "train", "gguf", "chat")


@pytest.fixture(scope="module")
def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools/write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", ["docs/recipe.md", "docs/mask.md", "core/README.md", *(f"packages/impruver-{t}/README.md" for t in TOOLS)]
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
    assert set(load_installed_sections()) == set(OWNERS)
    for name in OWNERS:
        assert re.search(rf"^(\| `{name}` \||## `{name}`$)", reference, re.MULTILINE), name
    for tool in TOOLS:
        text = (ROOT / f"packages/impruver-{tool}/README.md").read_text(encoding="utf-8")
        assert f"<!-- made: impruver-{tool} --help -->" in text


def told_in_the_sources() -> list[str]:
    """The texts in the sources, … for what is filled in."""
    found = []
    for path in [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("packages/*/src/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_in_troubleshooting_are_told_by_the_sources():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"\*\*`(.+?)`\*\*", page.replace("\n  ", " "))
    assert len(messages) > 40
    texts = told_in_the_sources()
    for message in messages:
        form = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
        assert any(form.search(text) for text in texts), message


def links():
    for path in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("c*/*.md"), *ROOT.glob("packages/*/*.md")]
    ):
        for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
            yield pytest.param(path, target, id=f"{path.relative_to(ROOT)}:{target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_lead_somewhere(page, target):
    name, _, heading = target.partition("#")
    linked = page.parent / name if name else page
    assert linked.exists()
    if heading:
        headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
