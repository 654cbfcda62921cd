"""Measure what exact loss masks cost, as ratios within one run.

    uv run python tools/benchmarks/bench_masks.py TOKENIZER_FOLDER [ROWS.jsonl …]

Rows (instruction and output or response; default: the quickstart's) against one `encode_batch` of the same rendered
texts; and 200 turns against rendering and tokenizing them plainly. Each is the best of three.
"""

import sys
import time
from pathlib import Path

from impruver_core import Encoded, encode_chats
from impruver_core.recipe.paths import find_recipes_root
from results import record
from workload import chat, questions


def best(work) -> float:
    """The shortest of three runs, in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints both ratios."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    backend = tokenizer.backend_tokenizer
    paths = [Path(path) for path in sys.argv[2:]] or [find_recipes_root() / "quickstart/countries.jsonl"]
    rows = [chat(*each) for each in questions(paths)]
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
