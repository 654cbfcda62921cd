"""Compare impruver-train with TRL's SFTTrainer on a GPU.

    uv run --with trl python tools/benchmarks/bench_trl.py TOKENIZER_FOLDER ROWS.jsonl [--liger] [--hidden 2048 …]

The real impruver-train and TRL's SFTTrainer, each in a process of its own, on one model made from its config (Llama of
the 1B class by default; --hidden and --layers for a smaller one), the same token rows, batch, length, padding to a
multiple of 8, LoRA, attention and kernels: tokens a second (padding aside) and peak memory, with plain padding and
packed. ROWS.jsonl: token rows made by impruver-compose with the tokenizer. Meant for a GPU; it runs on a CPU as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from results import record

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
THEIRS = """
import json, sys, time, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

given = json.loads(sys.argv[1])
rows = [json.loads(line) for line in open(given["rows"], encoding="utf-8")]
rows = [{"input_ids": row["input_ids"], "completion_mask": [int(n >= 0) for n in row["labels"]]} for row in rows]
model = AutoModelForCausalLM.from_pretrained(
    given["model"], dtype=given["dtype"], attn_implementation=given["attention"]
)
arguments = SFTConfig(
    output_dir=given["out"], max_steps=given["steps"], per_device_train_batch_size=given["batch"], logging_steps=1,
    packing=given["packing"], max_length=given["length"], pad_to_multiple_of=8, learning_rate=1e-4, bf16=given["bf16"],
    use_cpu=given["cpu"], use_liger_kernel=given["liger"], gradient_checkpointing=False, report_to="none",
    save_strategy="no", seed=1,
)
seen, steps = [0], []


class Watch(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        torch.accelerator.synchronize() if torch.accelerator.is_available() else None
        self.at, self.tokens = time.perf_counter(), seen[0]

    def on_step_end(self, *args, **kwargs):
        torch.accelerator.synchronize() if torch.accelerator.is_available() else None
        steps.append((time.perf_counter() - self.at, seen[0]))


trainer = SFTTrainer(
    model=model, args=arguments, train_dataset=Dataset.from_list(rows), callbacks=[Watch()],
    processing_class=AutoTokenizer.from_pretrained(given["model"]), peft_config=LoraConfig(**given["lora"]),
)
forward = trainer.model.get_base_model().forward


def counted(*args, **kwargs):
    mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
    seen[0] += int(mask.sum()) if mask is not None and mask.dim() == 2 else ids.numel()
    return forward(*args, **kwargs)


trainer.model.get_base_model().forward = counted
trainer.train()
timed = steps[len(steps) // 3 :]
memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
if not memory:
    memory = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
tokens = timed[-1][1] - steps[len(steps) // 3 - 1][1]
print(json.dumps({"speed": tokens / sum(seconds for seconds, _ in timed), "memory": memory}))
"""


def make_model(folder: Path, tokenizer: str, hidden: int, layers: int, dtype: str) -> None:
    """A Llama of this width with random weights, and the tokenizer, in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=-(-len(loaded) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)


def ours(folder: Path, given: dict) -> dict:
    """Tokens a second and peak memory of impruver-train, from its own speed.jsonl."""
    trainer = {
        "max_steps": given["steps"],
        "per_device_train_batch_size": given["batch"],
        "packing": given["packing"],
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "use_liger_kernel": given["liger"],
        "use_cpu": given["cpu"],
    }
    recipe = {
        "output_dir": str(folder / "ours"),
        "seed": 1,  # as theirs: both draw the same padded batches
        "train_path": given["rows"],
        "tokenizer": {"max_tokens_count": given["length"]},
        "model": {
            "name": given["model"],
            "dtype": "bf16" if given["bf16"] else "fp32",
            "attn_implementation": given["attention"],
        },
        "lora": given["lora"],
        "trainer": trainer,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "impruver_train", "--config", str(path), "--overwrite"]
    subprocess.run(command, check=True, capture_output=True)
    steps = [json.loads(line) for line in (folder / "ours" / "speed.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = steps[len(steps) // 3 :]
    speed = sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed)
    return {"speed": speed, "memory": max(step["memory"] for step in steps)}


def theirs(folder: Path, given: dict) -> dict:
    """The same of TRL's SFTTrainer."""
    words = json.dumps(given | {"out": str(folder / "theirs")})
    done = subprocess.run([sys.executable, "-c", THEIRS, words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the four runs and their ratios."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("rows", type=Path)
    for name, default in (("hidden", 2048), ("layers", 16), ("steps", 30), ("batch", 8), ("length", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--liger", action="store_true", help="with Liger's kernels (GPU)")
    parser.add_argument("--attention", default="sdpa")
    flags = parser.parse_args()
    gpu = torch.cuda.is_available()
    print(f"on {torch.cuda.get_device_name() if gpu else 'a CPU'}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = "bfloat16" if gpu else "float32"
        make_model(folder / "model", flags.tokenizer, flags.hidden, flags.layers, dtype)
        told = {"model": str(folder / "model"), "rows": str(flags.rows), "lora": LORA, "steps": flags.steps}
        told |= {"batch": flags.batch, "length": flags.length, "liger": flags.liger, "attention": flags.attention}
        told |= {"bf16": gpu, "cpu": not gpu, "dtype": dtype}
        seen = {}
        for kind in ("padded", "packed"):
            given = told | {"packing": kind == "packed"}
            for who in (theirs, ours):
                run = seen[who.__name__, kind] = who(folder, given)
                print(f"{who.__name__}, {kind}: {run['speed']:,.0f} tokens/s, peak {run['memory'] / 2**20:,.0f} MiB")
        for packing, against in (("padded", "padded"), ("packed", "packed"), ("packed", "padded")):
            mine, trls = seen["ours", packing], seen["theirs", against]
            speed, memory = (mine[name] / trls[name] for name in ("speed", "memory"))
            print(f"ours {packing} against TRL's {against}: {speed:.2f} times as fast, {memory:.2f} times the memory")
            record(f"{packing}_{against}", speed)
            if packing == against:
                record(f"memory_{packing}", memory)


if __name__ == "__main__":
    main()
