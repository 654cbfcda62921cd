"""Quantize a GGUF file: with cyllama's llama.cpp in a process of its own, or with a llama-quantize at hand.

    python -m impruver_gguf.quantization.quantize SOURCE THREADS FTYPE TARGET

A process of its own can be stopped at any time, and where llama.cpp aborts nothing else ends. Several levels are made
at once where their tensors are small: llama.cpp computes with several threads, but reads and writes with one.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from math import prod
from pathlib import Path
from subprocess import CalledProcessError

from impruver_core.cli.console import log_info, open_progress
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.llama_bindings import quantize_file
from impruver_core.system import available_cpus
from impruver_core.worker_process import claim_stdout, get_log_tail

from impruver_gguf.quantization.quant_types import QUANT_TYPES
from impruver_gguf.worker_process import describe_failure, run_commands

MATRIX_QUANTIZER = "impruver_gguf.quantization.matrix_quantizer"
NOT_FINITE = re.compile(r"found (?:nan|inf) value")  # ggml's words
CHUNK_BYTES = 1 << 22  # looked at together
MOST_AT_ONCE = 4  # levels that are made at once
PRIVATE_BYTES = 1 << 30  # of memory that they take together: each has a tensor's values twice, as float32
FULL_DISK = 1 << 20  # fewer free bytes than this


def get_quantizer_name(program: str | None) -> str:
    """What makes the levels, for the manifest: `program`, a llama-quantize, else cyllama with its version."""
    return program or f"cyllama {version('cyllama')}"


def quantize(
    source: Path, targets: Mapping[str, Path], program: str | None = None, matrix: Path | None = None
) -> Iterator[str]:
    """Make the file of each level from `source`, and yield the level when its file is whole, in any order.

    `program` is a llama-quantize; without it cyllama's library is at work, with an importance `matrix` ggml in
    xllamacpp's. Who closes the iterator ends what runs.
    """
    if not targets:
        return
    commands = _build_commands(source, targets, program, matrix)
    own_threads = matrix is not None and not program
    done = _run_quantizers(commands, source, 1 if own_threads else _count_at_once(source))
    with closing(done), open_progress(len(targets), "levels quantized") as bar:
        for level in done:
            if not targets[level].is_file():
                raise ImpruverError(f"quantizing {source.name} left no {targets[level]}")
            log_fallbacks(level, targets[level])
            bar.update(1)
            yield level


def _build_commands(
    source: Path, targets: Mapping[str, Path], program: str | None, matrix: Path | None
) -> dict[str, list[str]]:
    """Build the command that makes the file of each level."""
    cpus = str(available_cpus())
    if program:
        own = [program, *(["--imatrix", str(matrix)] if matrix else []), str(source)]
        return {level: [*own, str(path), level, cpus] for level, path in targets.items()}
    if matrix:
        own = [sys.executable, "-m", MATRIX_QUANTIZER, str(source), str(matrix), cpus]
        return {level: [*own, level, str(path)] for level, path in targets.items()}
    own = [sys.executable, "-m", __name__, str(source), cpus]
    return {level: [*own, str(QUANT_TYPES[level].ftype), str(path)] for level, path in targets.items()}


def _count_at_once(source: Path) -> int:
    """Count the levels to be made at once of a file."""
    largest = max((prod(tensor.shape) for tensor in read_gguf_header(source).tensors), default=0)
    return max(1, min(MOST_AT_ONCE, available_cpus(), PRIVATE_BYTES // max(1, 8 * largest)))


def _run_quantizers(commands: Mapping[str, Sequence[str]], source: Path, at_once: int) -> Iterator[str]:
    """Run the commands of levels and yield each that is done; ImpruverError with the log's end where one fails."""
    try:
        yield from run_commands(commands, at_once)
    except CalledProcessError as ended:
        tensor = _find_non_finite_tensor(source) if NOT_FINITE.search(ended.stderr) else None
        if tensor:
            raise CheckFailedError(f"{source}: {tensor} holds NaN or infinity: no level is made of it") from None
        failure = describe_failure(ended.returncode, get_log_tail(ended.stderr))
        raise ImpruverError(f"quantizing failed {failure}") from None


def _find_non_finite_tensor(path: Path) -> str | None:
    """Name the first tensor in a GGUF file that holds NaN or infinity, if any."""
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, CHUNK_BYTES // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            if not np.isfinite(dequantize(rows[start : start + step], tensor.tensor_type)).all():
                return tensor.name
    return None


def log_fallbacks(level: str, path: Path) -> None:
    """Name the tensors in a quantized file that have another type than the level's since their rows do not fit."""
    block = QUANT_TYPES[level].block
    fallbacks: dict[str, str] = {}
    try:
        tensors = read_gguf_header(path).tensors
    except ImpruverError:  # of a program that a flag names: the proof is about what it wrote
        return
    for name, shape, kind in tensors:
        if len(shape) > 1 and shape[0] % block and kind != "F32":  # what stays in 32 bits is never quantized
            fallbacks[f"{re.sub(r'[.][0-9]+[.]', '.*.', name)} ({shape[0]} values a row)"] = kind.lower()
    if fallbacks:
        named = ", ".join(f"{name}: {kind}" for name, kind in fallbacks.items())
        log_info(f"{level}: its blocks of {block} values do not fit these tensors, which fall back: {named}")


def main(arguments: Sequence[str]) -> int:
    """Run as the process of its own."""
    claim_stdout()
    source, threads, ftype, target = arguments
    try:
        quantize_file(source, target, int(ftype), int(threads))
    except RuntimeError as error:  # it knows no reason
        full = shutil.disk_usage(Path(target).parent).free < FULL_DISK
        print(f"{target}: {'no room left; make room and run it again' if full else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
