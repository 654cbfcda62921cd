"""Compare the tools with those of an earlier revision, in turn and in one run.

    uv run python tools/compare_versions.py REVISION MODEL_FOLDER DATA.jsonl [--rounds 5] [--only compose] [--rows N]

REVISION is checked out into a folder of its own; both versions run in this environment. Each round runs every tool once
in each version, whichever was second before goes first: `impruver-compose` on DATA (instruction, input, output) with an
empty and with a filled cache, `impruver-train` for six steps of LoRA in fp32 with two checkpoints, `impruver-gguf` to
q8_0 without verification, `impruver-chat` to answer 64 questions with the model that train made. `--only` chooses
tools; `--rows N` varies the rows of DATA to so many, as bench_compose.py does; `--converter` says how DATA is read.
Reported are seconds of CPU of the command and its children, imports included, least and median of the rounds: the least
is what a busy machine distorts least.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.workload import vary

ROOT = Path(__file__).parents[1]
PARTS = {  # what is measured: the module, its arguments, what is removed before
    "compose, empty cache": ("impruver_compose", (), ("rows", "cache/{version}")),
    "compose, filled cache": ("impruver_compose", ("--overwrite",), ()),
    "train": ("impruver_train", (), ("model",)),
    "gguf": ("impruver_gguf", ("--verify", "false"), ()),
    "chat": ("impruver_chat", ("--input", "questions.jsonl", "--output", "answers.jsonl"), ()),
}
QUESTIONS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the earlier version, as git names it")
    parser.add_argument("model", type=Path, help="folder of a chat model with its tokenizer")
    parser.add_argument("data", type=Path, help="JSONL of instruction, input and output")
    parser.add_argument("--rounds", type=int, default=5)
    tools = ("compose", "train", "gguf", "chat")
    parser.add_argument("--only", nargs="+", default=tools, choices=tools)
    parser.add_argument("--rows", type=int, help="vary the rows of DATA to so many")
    parser.add_argument("--converter", default="impruver.instruction_to_messages")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="versions.") as scratch:
        folder = Path(scratch)
        worktree = ["git", "-C", ROOT, "worktree"]
        subprocess.run([*worktree, "add", "--detach", folder / "old", arguments.revision], check=True)
        try:
            parts = {part: PARTS[part] for part in PARTS if part.split(",")[0] in arguments.only}
            recipe = write_recipe(folder, arguments)
            seconds = measure(recipe, parts, folder, arguments.rounds)
        finally:
            subprocess.run([*worktree, "remove", "--force", folder / "old"], check=True)
    for part in parts:
        old, new = seconds[part, "old"], seconds[part, "new"]
        ratios = min(new) / min(old), statistics.median(new) / statistics.median(old)
        print(f"{part}: {min(old):.2f} s, now {min(new):.2f} s; {ratios[0]:.3f} times (medians {ratios[1]:.3f})")


def write_recipe(folder: Path, arguments: argparse.Namespace) -> Path:
    """Writes the recipe that all commands have; its path."""
    (folder / "model-folder").symlink_to(arguments.model.resolve())
    if arguments.rows:
        vary([arguments.data], arguments.rows, folder / "data.jsonl")
    else:
        shutil.copy(arguments.data, folder / "data.jsonl")
    keys = {
        "datasets": [{"name": "data.jsonl", "converter": arguments.converter}],
        "tokenizer": {"max_tokens_count": 512},
        "model": {"name": "./model-folder", "dtype": "fp32"},
        "train_path": "rows/train.jsonl",
        "val_path": "rows/val.jsonl",
        "output_dir": "model",
        "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {
            "max_steps": 6,
            "per_device_train_batch_size": 1,
            "save_steps": 3,
            "logging_steps": 1,
            "use_cpu": True,
        },
        "gguf": {"quantization_levels": ["q8_0"]},
        "chat": {"do_sample": False, "max_new_tokens": 8},
    }
    rows = map(json.loads, (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()[:QUESTIONS])
    questions = [json.dumps({"prompt": row["instruction"]}) + "\n" for row in rows if "instruction" in row]
    (folder / "questions.jsonl").write_text("".join(questions), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


def measure(recipe: Path, parts: dict[str, tuple], folder: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of CPU of each part in each version, a number for each round."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for version in ("old", "new") if number % 2 == 0 else ("new", "old"):
            for part, (module, more, removed) in parts.items():
                for path in folder.glob("answers.jsonl*"):
                    path.unlink()
                for name in removed:
                    shutil.rmtree(folder / name.format(version=version), ignore_errors=True)
                shutil.rmtree(folder / "model/gguf", ignore_errors=True)
                root = folder / "old" if version == "old" else ROOT
                took = run(root, [module, "--config", str(recipe), *more], folder, folder / "cache" / version)
                seconds.setdefault((part, version), []).append(took)
                print(f"round {number + 1}, {version}, {part}: {took:.2f} s", file=sys.stderr, flush=True)
    return seconds


def run(root: Path, command: list[str], folder: Path, cache: Path) -> float:
    """Seconds of CPU that a command of the version in `root` takes, with its children."""
    sources = [root / "core/src", root / "configs", *(root / "packages").glob("*/src")]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "IMPRUVER_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{root}: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
