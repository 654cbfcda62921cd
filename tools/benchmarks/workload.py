"""What benchmarks work on: rows of questions and answers, and a tool that runs on a recipe."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def questions(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """(asked, answer) of the rows of JSONL files that have an instruction, input or not, and output or response."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [row for row in rows if "instruction" in row]
    answers = [row.get("output", row.get("response", "")) for row in asked]
    return [
        ("\n".join(filter(None, (row["instruction"], row.get("input")))), answer)
        for row, answer in zip(asked, answers, strict=True)
        if answer.strip()
    ]


def chat(asked: str, answer: str) -> list[dict]:
    """A question and its answer as messages."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def run_tool(module: str, recipe: dict, folder: Path) -> None:
    """Runs a tool on this recipe, which is written into `folder`."""
    path = folder / f"{module}.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", module, "--config", path, "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
