"""`impruver demo [FOLDER]`: the whole chain on the quickstart, offline, into one folder.

Composes data, trains a tiny model from scratch, converts it to GGUF, then asks the model and its q8_0 file the
questions that were held out.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from impruver_core.cli.console import format_duration, print_result
from impruver_core.commands.installed_tools import require_program
from impruver_core.errors import CheckFailedError, ImpruverError

RECIPE = "quickstart/tiny_full"
ASKING = ("--input", "val.quickstart_tiny.jsonl", "--output")
MODEL, GGUF = "answers.model.jsonl", "answers.q8_0.jsonl"
STEPS = (
    ("impruver-compose",),
    ("impruver-train", "--overwrite"),  # the folder is the demo's own, whatever an earlier one left in it
    ("impruver-gguf", "--set", "gguf.quantization_levels=[q8_0]"),
    ("impruver-chat", *ASKING, MODEL, "--expect"),
    ("impruver-chat", "--gguf", "models/quickstart_tiny_full/gguf/model-q8_0.gguf", *ASKING, GGUF, "--expect"),
)
RIGHT_AT_LEAST = 0.8
LAST_LINES = 6
MARK = ".impruver-demo"  # in a folder that is the demo's own


def main(argv: Sequence[str]) -> int:
    """Runs the demo; CheckFailedError where fewer than 80% of the answers are right."""
    parser = argparse.ArgumentParser(
        "impruver demo", description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = "where all of it goes (default: %(default)s)"
    parser.add_argument("folder", nargs="?", default="impruver_demo", help=where)
    folder = Path(parser.parse_args(argv).folder).expanduser()
    if folder.exists() and not (folder / MARK).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ImpruverError(f"{folder} is there and holds something else: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    for program in dict.fromkeys(step[0] for step in STEPS):
        require_program(program)
    start = time.monotonic()
    for program, *flags in STEPS:
        _run_step(program, ["--config", RECIPE, *flags], folder)
    shares = [_print_answers("the model", folder / MODEL), _print_answers("its q8_0 GGUF", folder / GGUF)]
    print_result(f"\n{format_duration(time.monotonic() - start)}; everything is in {folder}")
    if min(shares) < RIGHT_AT_LEAST:
        raise CheckFailedError(f"fewer than {RIGHT_AT_LEAST:.0%} of the answers are right")
    return 0


def _run_step(program: str, flags: list[str], folder: Path) -> None:
    """Runs one command in the folder, its caches there too, and prints its last lines."""
    print_result(f"\n$ {' '.join([program, *flags])}")
    cache = folder.absolute() / "cache"
    inside = {name: str(cache / name.lower()) for name in ("IMPRUVER_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR")}
    (cache / "tmpdir").mkdir(parents=True, exist_ok=True)
    # Threads that spin while they wait cost several times the work on a machine that does something else, too.
    environment = os.environ | inside | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    start = time.monotonic()
    code, output = _run_command([require_program(program), *flags], cwd=folder, env=environment)
    lines = output.rstrip().splitlines()
    if code:
        raise ImpruverError("\n".join([f"{program} ended with exit code {code}", *lines[-20:]]))
    print_result("\n".join(f"  {line}" for line in lines[-LAST_LINES:]))
    print_result(f"  ({format_duration(time.monotonic() - start)})")


def _run_command(command: list, **options) -> tuple[int, str]:
    """(exit code, output) of a command; stopped from outside it stops the command too, which saves its work."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, encoding="utf-8", errors="replace", **pipes, **options) as child:
        try:
            output = child.communicate()[0]
        except BaseException:
            child.terminate()
            child.communicate()
            raise
        return child.returncode, output


def _print_answers(name: str, answers: Path) -> float:
    """Prints the score and a few answers; returns the share that is right."""
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    right = sum(bool(row.get("match")) for row in rows)
    print_result(f"\n{name}: {right} of {len(rows)} held-out questions right ({right / len(rows):.1%})")
    for row in rows[:3]:
        question, answer = row["messages"][-2]["content"], row["messages"][-1]["content"]
        print_result(f"  {question}\n    {answer}")
    return right / len(rows)
