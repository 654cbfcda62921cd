"""Measure recall and precision of near-duplicate detection against brute force.

    uv run python tools/benchmarks/bench_dedup.py TOKENIZER_FOLDER DATA_FOLDER [--threshold]

impruver-compose runs on the folder's JSONL (instruction, input, output or response), and on the same rows with a
changed copy of each third: a share of its answer's words drawn anew. What it dropped and kept is then judged by brute
force: the exact Jaccard similarity of sets of 5-tuples of tokens, of all pairs that share one.

Recall: of the rows with a kept earlier row at least 0.05 above the threshold, exact duplicates aside, those that were
dropped. Precision: of the near-duplicates, those at least as similar to the row in `kept` as the threshold says.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np
from results import record
from scipy.sparse import csr_matrix
from workload import chat, questions, run_tool

ABOVE = 0.05


def with_copies(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows, and behind them copies of a third with up to a tenth of the answer's words drawn anew."""
    chance = random.Random(0)
    words = [word for _, answer in rows for word in answer.split(" ")]
    copies = []
    for asked, answer in rows[::3]:
        share = chance.uniform(0, 0.1)
        own = [chance.choice(words) if chance.random() < share else word for word in answer.split(" ")]
        copies.append((asked, " ".join(own)))
    return [*rows, *copies]


def compose(tokenizer: str, rows: list[tuple[str, str]], threshold: float, folder: Path) -> list[dict]:
    """The ledger of a run on these rows."""
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": asked, "completion": answer}) + "\n" for asked, answer in rows)
    recipe = {
        "train_path": str(folder / "train.jsonl"),
        "val_path": str(folder / "val.jsonl"),
        "model": {"name": str(Path(tokenizer).absolute())},
        "datasets": [{"name": str(folder / "rows.jsonl")}],
        "dedup": {"threshold": threshold},
    }
    run_tool("impruver_compose", recipe, folder)
    return [json.loads(line) for line in (folder / "train.dropped.jsonl").read_text("utf-8").splitlines()]


def similarities(tokenizer: str, rows: list[tuple[str, str]]) -> csr_matrix:
    """Of all pairs of rows that share a 5-tuple of tokens: the exact Jaccard similarity of their sets of these."""
    from impruver_core import encode_chats
    from transformers import AutoTokenizer

    numbers: dict[tuple, int] = {}
    columns, ends = [], [0]
    for row in encode_chats(AutoTokenizer.from_pretrained(tokenizer), [chat(*row) for row in rows]):
        said = [token for _, start, end in row.texts for token in row.input_ids[start:end]]
        grams = {tuple(said[at : at + 5]) for at in range(max(1, len(said) - 4))}
        columns += [numbers.setdefault(gram, len(numbers)) for gram in grams]
        ends.append(len(columns))
    sets = csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=(len(rows), len(numbers)))
    shared = (sets @ sets.T).tocoo()
    sizes = np.diff(ends)
    union = sizes[shared.row] + sizes[shared.col] - shared.data
    return csr_matrix((shared.data / union, (shared.row, shared.col)), shape=shared.shape)


def judge(tokenizer: str, rows: list[tuple[str, str]], threshold: float, what: str) -> None:
    """Prints recall and precision."""
    with tempfile.TemporaryDirectory() as scratch:
        ledger = compose(tokenizer, rows, threshold, Path(scratch))
    found = similarities(tokenizer, rows)
    dropped = {line["row"]: line["kept"]["row"] for line in ledger if "kept" in line}
    near = {line["row"]: line["similarity"] for line in ledger if line["reason"] == "near_duplicate"}
    right = sum(found[row, dropped[row]] >= threshold - 1e-9 for row in near)
    pairs = found.tocoo()
    earlier = (pairs.col < pairs.row) & (pairs.data >= threshold + ABOVE)
    sure = {int(row) for row, other in zip(pairs.row[earlier], pairs.col[earlier], strict=True) if other not in dropped}
    sure -= dropped.keys() - near.keys()  # exact duplicates
    hit = len(sure & near.keys())
    print(
        f"{what}: {len(rows)} rows, {len(dropped) - len(near)} exact duplicates, {len(near)} near; "
        f"recall {hit}/{len(sure)} = {hit / max(1, len(sure)):.4f}, "
        f"precision {right}/{len(near)} = {right / max(1, len(near)):.4f}",
        flush=True,
    )
    if sure:
        record("recall", hit / len(sure))
    if near:
        record("precision", right / len(near))


def main() -> None:
    """Prints the figures for the data as they are, and with planted copies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("data", type=Path)
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    args = parser.parse_args()
    rows = questions(sorted(args.data.glob("*.jsonl")))
    for threshold in args.threshold:
        judge(args.tokenizer, rows, threshold, f"threshold {threshold}, as it is")
        judge(args.tokenizer, with_copies(rows), threshold, f"threshold {threshold}, with copies")


if __name__ == "__main__":
    main()
