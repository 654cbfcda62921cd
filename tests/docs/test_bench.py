"""tools/bench.py: a real benchmark into BENCHMARKS.md, and what a missed target looks like."""

import subprocess
import sys

import pytest
from impruver_core.recipe.paths import find_recipes_root
from support import ROOT


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools/benchmarks"))
    import targets

    return targets


def test_benchmarks_are_listed_and_the_quickest_writes_its_part(targets, tmp_path):
    assert {f"bench_{name}.py" for name in targets.BENCHMARKS} == {
        path.name for path in ROOT.glob("tools/benchmarks/bench_*.py")
    }
    page = tmp_path / "BENCHMARKS.md"
    page.write_text("# Benchmarks\n\n<!-- bench: masks -->\nof before\n<!-- /bench -->\n\nkept\n", encoding="utf-8")
    command = [sys.executable, ROOT / "tools/bench.py", "--only", "masks", "--out", page]
    tokenizer = find_recipes_root() / "quickstart" / "tokenizer"
    done = subprocess.run([*command, "--model", tokenizer], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "of before" not in text
    assert text.endswith("<!-- /bench -->\n\nkept\n")
    assert "transformers" in text
    assert "encode_batch" in text
    row = next(line for line in text.splitlines() if line.startswith("| 200 turns"))
    assert " times | at most 3.00 times | " in row
    assert row.endswith(("| met |", ": not looked into yet |"))


def test_a_benchmark_that_fails_is_said_so(tmp_path):
    page = tmp_path / "BENCHMARKS.md"
    command = [sys.executable, ROOT / "tools/bench.py", "--only", "masks", "--out", page, "--model", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "did not go through: masks" in done.stderr
    assert "**It ended with 1.**" in page.read_text(encoding="utf-8")
    assert "not measured" in page.read_text(encoding="utf-8")


def test_a_missed_target_says_by_how_much_and_why(targets):
    target = targets.Target("x", "what", 2.0, why="it is late")
    assert (
        target.row([1.0, 2.5, 1.5])
        == "| what | 2.50 times | at most 2.00 times | **missed** by 0.50 times: it is late |\n"
    )
    least = targets.Target("x", "what", 0.95, least=True, form=".1%", unit="")
    assert least.row([0.99, 0.96]) == "| what | 96.0% | at least 95.0% | met |\n"
    assert "not looked into yet" in least.row([0.9])
