"""Quantize a GGUF file: with cyllama's llama.cpp in a process of its own, or with a llama-quantize at hand.

    python -m impruver_gguf.quantization.quantize SOURCE THREADS FTYPE=TARGET …

A process of its own can be stopped at any time, and where llama.cpp aborts nothing else ends.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from subprocess import CalledProcessError

from impruver_core.cli.console import log_info, open_progress
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.llama_bindings import quantize_file
from impruver_core.system import available_cpus
from impruver_core.worker_process import claim_stdout, get_log_tail

from impruver_gguf.quantization.quant_types import QUANT_TYPES
from impruver_gguf.worker_process import describe_failure, stream_lines

MATRIX_QUANTIZER = "impruver_gguf.quantization.matrix_quantizer"
NOT_FINITE = re.compile(r"found (?:nan|inf) value")  # ggml's words
CHUNK_BYTES = 1 << 22  # looked at together
FULL_DISK = 1 << 20  # fewer free bytes than this


def get_quantizer_name(program: str | None) -> str:
    """What makes the levels, for the manifest: `program`, a llama-quantize, else cyllama with its version."""
    return program or f"cyllama {version('cyllama')}"


def quantize(
    source: Path, targets: Mapping[str, Path], program: str | None = None, matrix: Path | None = None
) -> Iterator[str]:
    """Make the file of each level from `source`, and yield the level when its file is whole.

    `program` is a llama-quantize, which waits for the caller to come back; without it cyllama's library (with an
    importance `matrix` ggml in xllamacpp's) is at work on the next level by then. Who closes the iterator ends that.
    """
    if not targets:
        return
    cpus = str(available_cpus())
    if program:
        options = ["--imatrix", str(matrix)] if matrix else []
        commands = [[program, *options, str(source), str(path), level, cpus] for level, path in targets.items()]
        done = ([*_run_quantizer(command, source)] for command in commands)
    elif matrix:
        pairs = [f"{level}={path}" for level, path in targets.items()]
        done = _run_quantizer([sys.executable, "-m", MATRIX_QUANTIZER, str(source), str(matrix), cpus, *pairs], source)
    else:  # our process prints a line for each level
        pairs = [f"{QUANT_TYPES[level].ftype}={path}" for level, path in targets.items()]
        done = _run_quantizer([sys.executable, "-m", __name__, str(source), cpus, *pairs], source)
    with closing(done), open_progress(len(targets), "levels quantized") as bar:
        for (level, path), _ in zip(targets.items(), done, strict=True):
            if not path.is_file():
                raise ImpruverError(f"quantizing {source.name} left no {path}")
            log_fallbacks(level, path)
            bar.update(1)
            yield level


def _run_quantizer(command: list[str], source: Path) -> Iterator[str]:
    """Run a command and yield the lines that it prints; ImpruverError with the end of its log where it fails."""
    try:
        yield from stream_lines(command)
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
    """Run as the process of its own: print a line for each file that is done."""
    results = claim_stdout()
    source, workers, *pairs = arguments
    for pair in pairs:
        ftype, _, target = pair.partition("=")
        try:
            quantize_file(source, target, int(ftype), int(workers))
        except RuntimeError as error:  # it knows no reason
            full = shutil.disk_usage(Path(target).parent).free < FULL_DISK
            print(f"{target}: {'no room left; make room and run it again' if full else error}", file=sys.stderr)
            return 1
        print(target, file=results, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
