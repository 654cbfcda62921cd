"""JSONL as the tests write and read it: without the code that is tested."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path


def format_jsonl(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """Writes the rows, compressed where the name ends in .gz; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = format_jsonl(rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_jsonl(path: Path | str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
