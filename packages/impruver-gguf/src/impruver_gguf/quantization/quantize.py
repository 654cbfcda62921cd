"""Quantizes a GGUF file: with cyllama's llama.cpp in a process of its own, or with a llama-quantize at hand.

    python -m impruver_gguf.quantization.quantize SOURCE THREADS FTYPE=TARGET …

A process of its own can be stopped at any time, and what llama.cpp aborts on takes nobody with it.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from subprocess import CalledProcessError

import numpy as np
from impruver_core.cli.console import log_info, open_progress
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.system import available_cpus

from impruver_gguf.gguf_reader import tensor_types
from impruver_gguf.quantization.quant_types import LEVELS
from impruver_gguf.worker_process import last_lines, lines_of, own_channel


def tell_fallbacks(level: str, path: Path) -> None:
    """Names the tensors in the quantized file at `path` that have another type since their rows do not fit."""
    block = LEVELS[level].block
    found: dict[str, str] = {}
    for name, shape, kind in tensor_types(path):
        if len(shape) > 1 and shape[0] % block and kind != "F32":  # what stays in 32 bits is never quantized
            found[f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} ({shape[0]} values a row)"] = kind.lower()
    if found:
        named = ", ".join(f"{name}: {kind}" for name, kind in found.items())
        log_info(f"{level}: its blocks of {block} values do not fit these tensors, which fall back: {named}")


KEPT_FINE = ("token_embd.weight", "output.weight")  # llama.cpp gives these more bits


NOT_FINITE = re.compile(r"found (?:nan|inf) value")  # ggml's words


PIECE = 1 << 22  # bytes looked at together


FULL = 1 << 20  # fewer free bytes than this: a disk that is full


def size_of(level: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """About how many bytes a level takes, rather too many than too few."""
    total = 0.0
    for name, shape in shapes.items():
        bits = 32.0
        if len(shape) > 1:
            bits = LEVELS[level].odd_bits if shape[-1] % LEVELS[level].block else LEVELS[level].bits
            bits = max(bits, 8.5) if name in KEPT_FINE else bits
        total += prod(shape) * bits / 8
    return round(total)


def quantize(source: Path, targets: Mapping[str, Path], program: str | None = None) -> None:
    """Makes each level's file from `source`; `program` is a llama-quantize, else cyllama's library does it."""
    if not targets:
        return
    if program:
        commands = [[program, str(source), str(path), level, str(available_cpus())] for level, path in targets.items()]
    else:
        pairs = [f"{LEVELS[level].ftype}={path}" for level, path in targets.items()]
        commands = [[sys.executable, "-m", __name__, str(source), str(available_cpus()), *pairs]]
    with open_progress(len(targets), "levels quantized") as bar:
        for command in commands:
            _run(command, source, bar if program is None else None)
            if program:
                bar.update(1)
    lost = [str(path) for path in targets.values() if not path.is_file()]
    if lost:
        raise ImpruverError(f"quantizing {source.name} left no {lost[0]}")
    for level, path in targets.items():
        tell_fallbacks(level, path)


def _run(command: list[str], source: Path, bar) -> None:
    """Runs a command; each line that it prints on stdout counts in `bar`. Its last words tell why it failed."""
    try:
        for _ in lines_of(command):
            if bar is not None:
                bar.update(1)
    except CalledProcessError as ended:
        tensor = _not_finite(source) if NOT_FINITE.search(ended.stderr) else None
        if tensor:
            raise CheckFailedError(f"{source}: {tensor} holds NaN or infinity: no level is made of it") from None
        raise ImpruverError(f"quantizing failed (exit {ended.returncode}): {last_lines(ended.stderr)}") from None


def _not_finite(path: Path) -> str | None:
    """The first tensor's name; None where all are numbers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, PIECE // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            if not np.isfinite(dequantize(rows[start : start + step], tensor.tensor_type)).all():
                return tensor.name
    return None


def main(arguments: Sequence[str]) -> int:
    """The process of its own: a line on stdout for each file that is done."""
    from cyllama.llama import llama_cpp

    channel = own_channel()
    source, workers, *pairs = arguments
    llama_cpp.disable_logging()
    for pair in pairs:
        ftype, _, target = pair.partition("=")
        parameters = llama_cpp.LlamaModelQuantizeParams()
        parameters.ftype, parameters.nthread = int(ftype), int(workers)
        try:
            llama_cpp.model_quantize(source, target, parameters)
        except RuntimeError as error:  # it knows no reason
            full = shutil.disk_usage(Path(target).parent).free < FULL
            print(f"{target}: {'no room left; make room and run it again' if full else error}", file=sys.stderr)
            return 1
        print(target, file=channel, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
