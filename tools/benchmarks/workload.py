"""What benchmarks work on: rows of questions and answers, and a tool that runs on a recipe."""

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

KEPT = 0.6  # of the words of a varied row


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


def vary(files: list[Path], count: int, target: Path) -> None:
    """Writes `count` rows, in turn of each file's."""
    rows, words = [], {}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "instruction" in row:
                texts = [row["instruction"], row.get("input") or "", row.get("output") or row["response"]]
                rows.append((path.name, texts))
                words.setdefault(path.name, []).extend(word for text in texts for word in pieces(text))
    chance = random.Random(0)
    chance.shuffle(rows)
    with target.open("w", encoding="utf-8") as file:
        for number in range(count):
            name, texts = rows[number % len(rows)]
            new = [joined(text, words[name], chance) for text in texts]
            new[0] = f"{number} {' '.join(chance.choices(words[name], k=4))} {new[0]}"
            row = dict(zip(("instruction", "input", "output"), new, strict=True))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def pieces(text: str) -> list[str]:
    """Words; of a text without blanks (Chinese) every two characters."""
    words = text.split(" ")
    return words if len(words) > len(text) / 30 else [text[at : at + 2] for at in range(0, len(text), 2)]


def joined(text: str, words: list[str], chance: random.Random) -> str:
    """The text with some of its words drawn anew."""
    own = pieces(text)
    between = " " if own == text.split(" ") else ""
    return between.join(word if chance.random() < KEPT else chance.choice(words) for word in own)
