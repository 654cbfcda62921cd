"""`impruver env`: what a bug report needs. Versions come from metadata, nothing heavy is imported, no secrets."""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

from impruver_core.cli.console import format_table, print_result
from impruver_core.commands.installed_tools import TOOLS
from impruver_core.system import find_program, get_installed_version, get_total_memory

OURS = ("impruver-core", "impruver-configs", *TOOLS)
LIBRARIES = (
    *("torch", "transformers", "tokenizers", "datasets", "peft", "accelerate", "bitsandbytes", "safetensors"),
    *("torchao", "datasketch", "gguf", "cyllama", "jinja2", "pyyaml", "argparse-dataclass", "numpy", "wandb"),
)


def main(argv: Sequence[str]) -> int:
    """Prints a table of names and versions on stdout."""
    argparse.ArgumentParser("impruver env", description=__doc__).parse_args(argv)
    rows = [
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        ("processors", f"{os.cpu_count()} ({platform.machine()})"),
        ("memory", f"{get_total_memory() / 2**30:.1f} GiB"),
        ("GPU", _describe_gpus()),
        *((package, get_installed_version(package) or "-") for package in (*OURS, *LIBRARIES)),
    ]
    print_result(format_table(("WHAT", "VERSION"), rows))
    return 0


def _describe_gpus() -> str:
    """What nvidia-smi says, which needs no torch; `none` without it."""
    program = find_program("nvidia-smi")
    if program is None:
        return "none (no nvidia-smi)" if sys.platform != "darwin" else "-"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi failed: {type(error).__name__}"
    return "; ".join(line.strip() for line in output.splitlines() if line.strip()) or "none"
