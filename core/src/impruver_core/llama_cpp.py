"""llama.cpp's models, opened; a file with anything unusual in its header first in a process of its own.

    python -m impruver_core.llama_cpp FILE SECONDS

What llama.cpp does not expect ends the process that it runs in, and some vocabularies have it loop or fill the memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.errors import ImpruverError, describe_error
from impruver_core.io.gguf_families import LISTS, is_usual_model
from impruver_core.io.gguf_file import COPY_AGAIN, read_gguf_parts
from impruver_core.llama_bindings import (
    BEYOND,
    OLDEST,
    decode_tokens,
    is_supported,
    make_context,
    make_greedy_sampler,
    open_model,
)
from impruver_core.system import available_cpus, get_installed_version
from impruver_core.trial import build_trial_command, build_verdict_name, has_passed, set_trial_limits, write_verdict
from impruver_core.worker_process import ENVIRONMENT, describe_exit

if TYPE_CHECKING:
    from impruver_core.llama_bindings import LlamaModel, LlamaVocab

TRIAL_SECONDS, TRIAL_BYTES_PER_SECOND = 4, 100 << 20  # of processors' time
TRIAL_PATIENCE = 4  # times as much on the clock, where others compute too, or the disk is slow
TRIAL_MEMORY = 3 << 29  # bytes besides the file's own
TRIAL_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", **ENVIRONMENT}
TRIAL_TOKENS, CONTEXT_TOKENS = 4, 256
# With each byte that UTF-8 has: llama.cpp aborts at the first for which a vocabulary has no token.
TRIAL_CHARACTERS = (*range(1, 0xC0), *range(0xC0, 0x800, 0x40), 0x800, *range(0x1000, 0x10000, 0x1000))
TRIAL_TEXT = "Hello, world!\n\n  <s></s>" + "".join(
    map(chr, (*TRIAL_CHARACTERS, *range(0x10000, 0x110000, 0x40000), 0x100000))
)
LOADING_FAILED, RUNNING_FAILED = 3, 4  # exit codes
BYTE_ATTRIBUTE = 32  # llama.cpp's, of a token that stands for a byte


def check_cyllama_installed(needed_by: str, package: str) -> None:
    """ImpruverError with the way to get it where cyllama, of a tool's extra `gguf`, is absent or of another version."""
    install = f'pip install "{package}[gguf]"'
    if find_spec("cyllama") is None:
        raise ImpruverError(f"{needed_by} needs a further package: {install}")
    installed = get_installed_version("cyllama")
    if installed is not None and not is_supported(installed):
        raise ImpruverError(
            f"{needed_by} needs cyllama from {OLDEST} on, below {BEYOND}, and {installed} is installed: {install}"
        )


def load_gguf(path: Path, **settings: object) -> LlamaModel:
    """The model in a GGUF file, without llama.cpp's log; ImpruverError for a broken file, or one that does harm.

    `settings` are llama.cpp's model parameters, such as `n_gpu_layers=0` or `check_tensors=True`.
    """
    check_gguf(path)
    return load_checked_gguf(path, **settings)


def check_gguf(path: Path) -> None:
    """ImpruverError for a file with a broken header, or one that does harm where it is tried first."""
    parts = read_gguf_parts(path, LISTS)
    if not is_usual_model(parts):
        _try_once(path, parts[0].data_start)


def load_checked_gguf(path: Path, **settings: object) -> LlamaModel:
    """`load_gguf` of a file that `check_gguf` passed, as another process may have had it checked."""
    try:
        return open_model(path, **settings)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        raise _build_loading_error(path, " ".join(str(error).split())) from error


def _build_loading_error(path: Path, reason: str) -> ImpruverError:
    return ImpruverError(
        f"{path} can't be loaded by llama.cpp: it is cut off, or of a kind that this version does not know ({reason})"
    )


def _try_once(path: Path, header_size: int) -> None:
    """`_try_model`, unless a file with this header passed before: a large one takes its time."""
    with path.open("rb") as file:
        verdict = build_verdict_name("cyllama", f"{path.stat().st_size}\n".encode() + file.read(header_size))
    if not has_passed(verdict):
        _try_model(path)
        write_verdict(verdict, new_folder=True)


def _try_model(path: Path) -> None:
    """Have a process of its own load a model and compute a few tokens; ImpruverError where that does harm."""
    seconds = TRIAL_SECONDS + path.stat().st_size // TRIAL_BYTES_PER_SECOND
    try:
        done = subprocess.run(
            build_trial_command(__name__, path, seconds),
            env=os.environ | TRIAL_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRIAL_PATIENCE * seconds,
            check=False,
        )
        code, log = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, log = -signal.SIGKILL, ""
    if code == 0:
        return
    name = describe_exit(code)
    if name in ("SIGXCPU", "SIGKILL"):
        raise ImpruverError(f"{path}: llama.cpp is not done with its header after {seconds} s; {COPY_AGAIN}")
    reason = ([line.strip() for line in log.splitlines() if line.strip()] or [name])[-1]
    if code == LOADING_FAILED:
        raise _build_loading_error(path, reason)
    raise ImpruverError(f"{path}: llama.cpp fails on what its header says ({reason}); {COPY_AGAIN}")


def main(path: str, seconds: str) -> int:
    """Run as the process of its own: load and use the model at `path`; the exit code, with a reason on stderr."""
    set_trial_limits(int(seconds), TRIAL_MEMORY)
    failed = LOADING_FAILED
    try:
        model = open_model(Path(path), n_gpu_layers=0, use_extra_bufts=False)
        failed = RUNNING_FAILED
        _read_vocabulary(model.get_vocab())
        _compute_tokens(model)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        print(describe_error(error), file=sys.stderr)
        return failed
    return 0


def _read_vocabulary(vocab: LlamaVocab) -> None:
    """Ask a vocabulary for all that is asked of one later."""
    for number in range(vocab.n_vocab):
        text, attributes = vocab.get_text(number), vocab.get_attr(number)
        if attributes & BYTE_ATTRIBUTE:
            int(text[3:5], 16)
        vocab.is_control(number), vocab.is_eog(number)
    for special in (vocab.token_bos(), vocab.token_eos(), vocab.token_eot(), vocab.token_pad()):
        if special >= 0:
            vocab.get_text(special)


def _compute_tokens(model: LlamaModel) -> None:
    """Compute a few tokens, then one that is sampled; go back, and start anew."""
    ids = model.get_vocab().tokenize(TRIAL_TEXT, add_special=True, parse_special=True)[:TRIAL_TOKENS] or [0]
    context = make_context(model, CONTEXT_TOKENS, TRIAL_TOKENS, available_cpus())
    decode_tokens(context, ids, 0)
    decode_tokens(context, [make_greedy_sampler().sample(context, -1)], len(ids))
    context.get_state_seq_data(0)
    context.memory_seq_rm(0, len(ids), -1)
    context.kv_cache_clear()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
