"""What exact masks cost: `uv run python tools/bench_masks.py TOKENIZER_FOLDER [ROWS.jsonl …]`, ratios of one run.

Rows (instruction and output or response; default: the quickstart's) against one `encode_batch` of the same rendered
texts; and 200 turns against rendering and tokenizing them plainly. Each is the best of three.
"""

import json
import sys
import time
from pathlib import Path

from figures import record
from impruver_core import Encoded, encode_chats
from impruver_core.recipe.lookup import recipes_root


def best(work) -> float:
    """The shortest of three runs, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def chats(paths: list[Path]) -> list[list[dict]]:
    """A question and its answer of each row."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [
        (f"{row['instruction']}\n{row.get('input') or ''}".strip(), row.get("output") or row["response"])
        for row in rows
    ]
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]


def main() -> None:
    """Prints both ratios."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    backend = tokenizer.backend_tokenizer
    rows = chats([Path(path) for path in sys.argv[2:]] or [recipes_root() / "quickstart/countries.jsonl"])
    long = [message for pair in (rows * 200)[:200] for message in pair]
    assert all(isinstance(row, Encoded) for row in encode_chats(tokenizer, rows))

    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    plain = best(lambda: backend.encode_batch(texts, add_special_tokens=False))
    ours = best(lambda: encode_chats(tokenizer, rows))
    print(f"{len(rows)} rows: encode_batch {plain:.2f} s, encode_chats {ours:.2f} s, {ours / plain:.2f} times")
    record("rows", ours / plain)

    plain = best(lambda: backend.encode(tokenizer.apply_chat_template(long, tokenize=False), add_special_tokens=False))
    ours = best(lambda: encode_chats(tokenizer, [long]))
    print(f"200 turns: plainly {plain * 1e3:.0f} ms, with masks {ours * 1e3:.0f} ms, {ours / plain:.2f} times")
    record("turns", ours / plain)


if __name__ == "__main__":
    main()
