"""Benchmark impruver-compose.

    uv run python tools/benchmarks/bench_compose.py TOKENIZER_FOLDER DATA_FOLDER [--rows 100000 400000]

The tokenizer of the folder is one that gigatoken does not take (SmolLM2's); the other one is trained on the data, with
the split of Qwen's, and gigatoken takes it. Rows of the data folder's JSONL (instruction, input, output, response) are
varied to so many, none a near-duplicate of another: four words of ten are drawn from the file they stand in. For each
number of rows with the other tokenizer, and for the least with the folder's, every part in a process of its own and on
the same cores:

- `encode_batch` of the rendered texts with the tokenizer's own threads; imports and rendering are not counted;
- `impruver-compose` with masks, near-dedup, split and JSONL, imports not counted, with the peak of its processes'
  memory together (the sum of their proportional set sizes); and a second run, with its imports and all;
- for `--ray` rows, the same on a Ray cluster of two processors, which is started before; what the same takes on a
  hundred rows (connecting, and workers that import) is each engine's start-up, and is not counted; for `--large` rows,
  if given, the peak alone;
- for the least number of rows, the first impruver's way on every `--share`th row: each message rendered and tokenized
  by itself, MinHash token by token with datasketch, MinHashLSH.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from results import record
from workload import chat, questions, vary

PARTS = ("encode_batch", "compose", "compose_on_ray", "first_impruver")
VOCABULARY, TRAINED_ON = 50_000, 20_000  # tokens of the other tokenizer; rows that it is trained on
FEW = 100  # rows that tell what it takes to begin
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(rows: Path, target: Path) -> None:
    """Saves a byte-level BPE of 50,000 tokens, with the split of Qwen's and ChatML."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.normalizer, backend.decoder = normalizers.NFC(), decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(("\n".join(each) for each in questions([rows])), trainer)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHATML, **names).save_pretrained(target)


def encode_batch(tokenizer_folder: str, data: Path) -> dict:
    """One `encode_batch` of all rendered texts."""
    from impruver_core.chat_template.rendering.renderer import render_template
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    names = tokenizer.special_tokens_map
    texts = [render_template(tokenizer.chat_template, chat(*each), variables=names) for each in questions([data])]
    start = time.perf_counter()
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return {"seconds": time.perf_counter() - start, "tokens": sum(len(each) for each in encoded)}


def compose(tokenizer_folder: str, data: Path, more: str = "") -> dict:
    """All of impruver-compose but its imports."""
    from impruver_compose.torch_guard import hide_torch, import_libraries

    hide_torch()
    import_libraries()
    from impruver_compose.pipeline import compose
    from impruver_core.recipe.loading import load_recipe

    start = time.perf_counter()
    compose(load_recipe(str(recipe(tokenizer_folder, data, more))))
    return {"seconds": time.perf_counter() - start}


def compose_on_ray(tokenizer_folder: str, data: Path) -> dict:
    """The same on a Ray cluster of two processors on this machine, which is there before the time is taken."""
    start = "from ray.cluster_utils import Cluster; cluster = Cluster(True, head_node_args={'num_cpus': 2})"
    command = [sys.executable, "-c", f"import sys; {start}; print(cluster.address, flush=True); sys.stdin.read()"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as cluster:
        address = cluster.stdout.readline().strip()
        done = compose(tokenizer_folder, data, f"compose: {{engine: ray, address: '{address}'}}\n")
        cluster.stdin.close()
    return done


def recipe(tokenizer_folder: str, data: Path, more: str) -> Path:
    """A recipe beside the data."""
    path = data.with_suffix(".yaml")
    out = data.parent / f"{data.stem}.out"
    path.write_text(
        f"train_path: {out}/train.jsonl\nval_path: {out}/val.jsonl\n"
        f"model: {{name: {os.path.abspath(tokenizer_folder)}}}\ndatasets: [{{name: {data}}}]\n{more}"
    )
    return path


def first_impruver(tokenizer_folder: str, data: Path) -> dict:
    """The first impruver's algorithm (EvilFreelancer/impruver, recipes/compose_dataset.py), in our words."""
    from datasketch import LeanMinHash, MinHash, MinHashLSH
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [chat(*each) for each in questions([data])]
    start = time.perf_counter()
    index, sketches, kept = MinHashLSH(threshold=0.8, num_perm=128), [], []
    for number, messages in enumerate(rows):
        ids, *turns = (
            tokenizer.apply_chat_template(part, add_special_tokens=False, tokenize=True, return_dict=False)
            for part in (messages, *([message] for message in messages))
        )
        labels = []
        for message, turn in zip(messages, turns, strict=True):
            labels += turn if message["role"] == "assistant" else [-100] * len(turn)
        sketch = MinHash(num_perm=128)
        for token in ids:
            sketch.update(token.to_bytes(8, byteorder="little"))
        sketches.append(LeanMinHash(sketch))
        if not any(sketches[-1].jaccard(sketches[other]) > 0.8 for other in index.query(sketches[-1])):
            index.insert(number, sketches[-1])
            kept.append(json.dumps({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}))
    data.with_suffix(".first.jsonl").write_text("\n".join(kept))
    return {"seconds": time.perf_counter() - start, "rows": len(rows)}


def apart(work: str, tokenizer_folder: str, data: Path) -> dict:
    """Runs one part in a process of its own: what it told, its wall time with imports, its peak memory in bytes."""
    start = time.perf_counter()
    command = [sys.executable, __file__, tokenizer_folder, str(data), "--part", work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = [0]
        watch = threading.Thread(target=watch_memory, args=(process, peak))
        watch.start()
        out, err = process.communicate()
        watch.join()
    if process.returncode:
        sys.exit(err)
    return json.loads(out.splitlines()[-1]) | {"wall": time.perf_counter() - start, "peak": peak[0]}


def watch_memory(process: subprocess.Popen, peak: list[int]) -> None:
    """Keeps the highest sum of proportional set sizes of a process and all below it."""
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(memory, family(process.pid))))
        time.sleep(0.1)


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        below = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in below for each in family(child))]


def memory(pid: int) -> int:
    """The proportional set size of a process in bytes; 0 for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(tokenizer_folder: str, data: Path, name: str, share: int | None) -> None:
    """Prints the figures of rows with one tokenizer; `name` is that of the figure of times."""
    count = sum(1 for _ in data.open("rb"))
    shutil.rmtree(os.environ["IMPRUVER_CACHE"], ignore_errors=True)
    shutil.rmtree(data.with_suffix(".out"), ignore_errors=True)
    limit = apart("encode_batch", tokenizer_folder, data)
    ours = apart("compose", tokenizer_folder, data)
    again = apart("compose", tokenizer_folder, data)
    out = data.with_suffix(".out")
    encoder = json.loads((out / "train.jsonl.manifest.json").read_text())["encoders"][0].partition(",")[0]
    duplicates = sum("duplicate" in line for line in (out / "train.dropped.jsonl").open())
    print(
        f"{count} rows, {limit['tokens'] / 1e6:.1f} M tokens: encode_batch {limit['seconds']:.1f} s; compose with "
        f"{encoder} {ours['seconds']:.1f} s, {ours['seconds'] / limit['seconds']:.2f} times, peak "
        f"{ours['peak'] / 1e9:.2f} GB; again {again['wall']:.1f} s with imports, {again['wall'] / ours['wall']:.1%} of "
        f"the first ({ours['wall']:.1f} s); {duplicates} duplicates",
        flush=True,
    )
    record(name, ours["seconds"] / limit["seconds"])
    record("peak", ours["peak"] / 1e9)
    record("again", again["wall"] / ours["wall"])
    if share:
        part = data.with_suffix(".part.jsonl")
        with data.open(encoding="utf-8") as rows, part.open("w", encoding="utf-8") as file:
            file.writelines(row for number, row in enumerate(rows) if number % share == 0)
        theirs = apart("first_impruver", tokenizer_folder, part)
        rate, own = theirs["rows"] / theirs["seconds"], count / ours["seconds"]
        print(
            f"the first impruver's way: {rate:.0f} rows/s; compose {own:.0f} rows/s, {own / rate:.1f} times", flush=True
        )
        record("first_impruver", own / rate)


def measure_ray(tokenizer_folder: str, data: Path, few: Path) -> None:
    """Prints what Ray takes against processes of this machine; both begin with nothing encoded."""
    seconds, starts, written = {}, {}, []
    for part in ("compose", "compose_on_ray"):
        shutil.rmtree(os.environ["IMPRUVER_CACHE"], ignore_errors=True)
        shutil.rmtree(data.with_suffix(".out"), ignore_errors=True)
        starts[part] = apart(part, tokenizer_folder, few)["seconds"]
        seconds[part] = apart(part, tokenizer_folder, data)["seconds"]
        written.append((data.with_suffix(".out") / "train.jsonl").read_bytes())
    work = {part: seconds[part] - starts[part] for part in seconds}
    local, ray = (f"{work[part]:.1f} s and {starts[part]:.1f} s to begin" for part in ("compose", "compose_on_ray"))
    ratio = work["compose_on_ray"] / work["compose"]
    print(
        f"{sum(1 for _ in data.open('rb'))} rows: engine local {local}; ray {ray}; {ratio:.2f} times the time, "
        f"{seconds['compose_on_ray'] / seconds['compose']:.2f} with the beginning; the same bytes: "
        f"{written[0] == written[1]}",
        flush=True,
    )
    record("ray", ratio)


def measure_large(tokenizer_folder: str, data: Path) -> None:
    """Prints the time and the memory of very many rows."""
    shutil.rmtree(os.environ["IMPRUVER_CACHE"], ignore_errors=True)
    count = sum(1 for _ in data.open("rb"))
    done = apart("compose", tokenizer_folder, data)
    rate = count / done["seconds"]
    print(f"{count} rows: {done['seconds']:.0f} s, {rate:.0f} rows/s, peak {done['peak'] / 1e9:.2f} GB", flush=True)
    record("large", done["peak"] / 1e9)


def main() -> None:
    """Prints all figures, or does one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--share", type=int, default=20)
    parser.add_argument("--ray", type=int, default=200_000, help="rows that Ray is compared on; 0: none")
    parser.add_argument("--large", type=int, help="rows of which the memory alone is measured, such as 4000000")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print("\n" + json.dumps(globals()[args.part](args.tokenizer, args.data)))
        return
    files = sorted(args.data.glob("*.jsonl"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["IMPRUVER_CACHE"] = f"{scratch}/cache"
        vary(files, TRAINED_ON, scratch / "trained_on.jsonl")
        train_tokenizer(scratch / "trained_on.jsonl", scratch / "tokenizer")
        for count in sorted(args.rows):
            data, is_least = scratch / f"{count}.jsonl", count == min(args.rows)
            vary(files, count, data)
            if is_least:
                measure(args.tokenizer, data, "refused", None)
            measure(str(scratch / "tokenizer"), data, "times", args.share if is_least else None)
        if args.ray:
            vary(files, args.ray, scratch / "ray.jsonl")
            vary(files, FEW, scratch / "few.jsonl")
            measure_ray(str(scratch / "tokenizer"), scratch / "ray.jsonl", scratch / "few.jsonl")
        if args.large:
            vary(files, args.large, scratch / "large.jsonl")
            measure_large(str(scratch / "tokenizer"), scratch / "large.jsonl")


if __name__ == "__main__":
    main()
