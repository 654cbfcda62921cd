"""Benchmark impruver-train.

    uv run python tools/benchmarks/bench_train.py MODEL_FOLDER ROWS.jsonl [--parts step lora packing start]

MODEL_FOLDER: SmolLM2; ROWS.jsonl: token rows of mixed length made by impruver-compose with its tokenizer. Pairs of one
run, taking turns, the best of each:

- step, lora: a step of the Trainer that a recipe gets (quickstart's model; LoRA on MODEL_FOLDER) against a bare PyTorch
  loop over the same batches, with the same optimizer, clipping and schedule;
- packing: target tokens a second, packed and with plain padding, and the padding of both;
- start: the command's start to its first step on 100,000 rows whose cache is there, against importing and loading.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from results import record

LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
LOADING = (
    "import sys, torch, datasets; from transformers import AutoModelForCausalLM, Trainer; from peft import LoraConfig, "
    "get_peft_model; get_peft_model(AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32), "
    "LoraConfig(r=16, target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj']))"
)
FIRST_STEP = (
    "import os, time\nfrom transformers import Trainer\n\n\nclass FirstStep(Trainer):\n"
    "    def training_step(self, *args, **kwargs):\n        os._exit(7)\n"
)


def recipe_file(folder: Path, name: str, keys: dict) -> Path:
    """Writes a recipe of these keys."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"output_dir": str(folder / "out")} | keys), encoding="utf-8")  # JSON is YAML
    return path


def make_plan(path: str, overrides: list[str]):
    """The recipe, the plan and the data as impruver-train makes them."""
    from impruver_core.recipe.loading import load_recipe
    from impruver_train import run

    recipe = load_recipe(path, overrides)
    shutil.rmtree(recipe.output_dir, ignore_errors=True)  # of the part before, in the benchmark's own folder
    inputs = run.check(recipe, None, False, True, 0)
    plan = run.plan_run(recipe, inputs)
    data = run.load_data(plan, inputs, recipe.tokenizer.max_tokens_count, False)
    inputs.output_dir.mkdir(parents=True, exist_ok=True)
    return inputs, plan, data


def ours(inputs, plan, data, steps: int) -> float:
    """Seconds a step of the recipe's Trainer, the first left out."""
    from impruver_train.signals import StopSignal
    from impruver_train.training.callbacks.run_callbacks import build_callbacks
    from impruver_train.training.trainer import build_run_trainer
    from transformers import TrainerCallback

    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ends.append(time.perf_counter())

    plan.arguments.max_steps = steps + 1
    callbacks = build_callbacks(inputs.output_dir, inputs.files["train"], StopSignal(), {}, inputs.start)
    callbacks.callbacks.append(Watch())
    build_run_trainer(plan, data, callbacks).train()
    return (ends[-1] - ends[0]) / steps


def bare(plan, data, steps: int) -> float:
    """Seconds a step of a PyTorch loop over the same batches, the first left out."""
    import itertools

    import torch
    from impruver_train.data.collator import make_collator
    from impruver_train.training.trainer import load_trained_model

    model = load_trained_model(plan).train()
    model.config.use_cache = False
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.arguments.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    batches = torch.utils.data.DataLoader(
        data.datasets["train"],
        batch_size=plan.arguments.train_batch_size,
        collate_fn=make_collator(plan.tokenizer),
    )
    ends = []
    for batch in itertools.islice(itertools.cycle(batches), steps + 1):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / steps


def compare_steps(name: str, path: str, overrides: list[str], steps: int, turns: int) -> None:
    """Prints both, taking turns."""
    sequential = ["trainer.train_sampling_strategy=sequential", "trainer.eval_strategy=no", "trainer.save_strategy=no"]
    inputs, plan, data = make_plan(path, [*overrides, *sequential, "trainer.use_cpu=true", "trainer.report_to=none"])
    pairs = [(bare(plan, data, steps), ours(inputs, plan, data, steps)) for _ in range(turns)]
    least, most = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    print(f"{path}: bare {least * 1e3:.1f} ms a step, ours {most * 1e3:.1f} ms, {most / least:.3f} times")
    record(name, most / least)


def compare_packing(recipe_path: str, steps: int) -> None:
    """Prints target tokens a second with plain padding and packed."""
    from impruver_train.planning.run_estimate import compute_padding

    speeds = {}
    for packing, batch in ((False, 8), (True, 1)):
        sets = [f"trainer.packing={str(packing).lower()}", f"trainer.per_device_train_batch_size={batch}"]
        inputs, plan, data = make_plan(recipe_path, sets)
        rows, sizes = data.datasets["train"], data.batches.sizes
        learned = sum(sum(label >= 0 for label in rows[i]["labels"]) for i in range(0, len(rows), 7))
        learned = learned / len(range(0, len(rows), 7))
        waste, width = compute_padding(sizes, plan.arguments)
        # A step of drawn batches varies: what a place costs is measured, how many places there are is known.
        sample = draw(rows, sizes, batch, steps, width)
        seconds = ours(inputs, plan, replace(data, datasets={"train": sample}), steps)
        speeds[packing] = learned * batch / seconds
        print(f"packing {packing}: {speeds[packing]:.1f} target tokens a second, {waste:.1%} padding, {seconds:.1f} s")
    print(f"packing: {speeds[True] / speeds[False]:.2f} times the target tokens a second")
    record("packing", speeds[True] / speeds[False])
    record("padding", waste)


def draw(rows, sizes, batch: int, steps: int, width: float):
    """Batches whose longest is nearest to the mean, for so many steps and one to warm up."""
    import numpy as np
    from torch.utils.data import Subset

    order = np.random.default_rng(0).permutation(len(sizes))
    parts = [order[at : at + batch] for at in range(0, len(order) - batch, batch)]
    parts.sort(key=lambda part: abs(int(np.max(np.asarray(sizes)[part])) - width))
    return Subset(rows, np.concatenate(parts[: steps + 1]).tolist())


def compare_start(folder: Path, model: str, data: Path, turns: int) -> None:
    """Prints the command's start to its first step against importing and loading the model."""
    lines = data.read_text(encoding="utf-8").splitlines()
    many = folder / "many.jsonl"
    with many.open("w", encoding="utf-8") as file:
        file.writelines(lines[number % len(lines)] + "\n" for number in range(100_000))
    (folder / "first_step.py").write_text(FIRST_STEP, encoding="utf-8")
    trainer = {"class": "first_step.FirstStep", "use_cpu": True, "per_device_train_batch_size": 4}
    keys = {"train_path": str(many), "model": {"name": model, "dtype": "fp32"}, "lora": LORA, "trainer": trainer}
    keys["output_dir"] = str(folder / "start")  # the steps before left theirs in the usual one
    recipe = recipe_file(folder, "start", keys)
    command = [sys.executable, "-m", "impruver_train", "--config", str(recipe), "--overwrite"]
    first = subprocess.run(command, capture_output=True, text=True)  # makes the cache
    assert first.returncode == 7, first.stderr

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode in (0, 7), ended.stderr
        return time.perf_counter() - start

    pairs = [(seconds([sys.executable, "-c", LOADING, model]), seconds(command)) for _ in range(turns)]
    least, most = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    print(f"start: import and load {least:.1f} s, to the first step {most:.1f} s, {most / least:.2f} times")
    record("start", most / least)


def main() -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--parts", nargs="*", default=["step", "lora", "packing", "start"])
    parser.add_argument(
        "--steps", type=int, default=3, help="of SmolLM2; quickstart's model takes twenty times as many"
    )
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smol = {"train_path": str(given.rows), "model": {"name": given.model, "dtype": "fp32"}, "lora": LORA}
        trainer = {"use_cpu": True, "save_strategy": "no", "per_device_train_batch_size": 1}
        path = str(recipe_file(folder, "smol", smol | {"trainer": trainer}))
        if "step" in given.parts:
            rows = [f"train_path={folder}/quick.jsonl", f"val_path={folder}/quickval.jsonl", f"output_dir={folder}/q"]
            sets = [part for row in rows for part in ("--set", row)]
            subprocess.run(
                [sys.executable, "-m", "impruver_compose", "--config", "quickstart/tiny_full", *sets],
                check=True,
                capture_output=True,
            )
            compare_steps("step", "quickstart/tiny_full", rows, 20 * given.steps, given.turns)
        if "lora" in given.parts:
            compare_steps("lora", path, [], given.steps, given.turns)
        if "packing" in given.parts:
            compare_packing(path, given.steps)
        if "start" in given.parts:
            compare_start(folder, given.model, given.rows, given.turns)


if __name__ == "__main__":
    main()
