"""Errors of memory or a disk that was not enough, of a process that ended, of a checkpoint that does not fit.

Each becomes one message with what to do.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError, describe_error

from impruver_train.checkpointing import checkpoints
from impruver_train.checkpointing.resume import check_best

if TYPE_CHECKING:
    from transformers import Trainer

LOADERS = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory")
DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded", "os error 122", "os error 27")
WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.\n]+)|exited unexpectedly)"
)
TORN = ("PytorchStreamWriter", "file write failed", "unexpected pos")  # torch's words when it can't write on


@contextmanager
def translate_resource_errors(output_dir: Path, advice: Callable[[], list[str]]) -> Iterator[None]:
    """Makes a lack of memory (with `advice()`) or disk space, or a loader's worker that was killed, an ImpruverError.

    Removes half-written checkpoints.
    """
    try:
        yield
    except BaseException as error:
        for path in checkpoints.list_checkpoints(output_dir):
            if not (path / checkpoints.MARKER).exists():
                checkpoints.remove_checkpoint(path)
        if is_out_of_memory(error):
            words = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            lines = [f"out of memory ({words}); what helps, the greatest effect first:", *advice()]
            raise ImpruverError("\n  ".join(lines)) from None
        if is_disk_full(error):
            raise ImpruverError(
                f"{output_dir}: the disk is full; make room and {describe_way_on(output_dir)}"
            ) from None
        worker = describe_lost_worker(error)
        if worker is not None:
            raise ImpruverError(
                f"{worker}: as a rule memory was not enough; set a smaller trainer.dataloader_num_workers (0: rows are "
                "read by the training process itself) or trainer.dataloader_prefetch_factor, or free memory, and "
                f"{describe_way_on(output_dir)}"
            ) from None
        raise


def describe_way_on(output_dir: Path) -> str:
    """What the same command does after a run that ended before its time."""
    good = checkpoints.list_complete_checkpoints(output_dir, resumable=True)
    return (
        "give the same command again: it resumes from "
        f"{good[-1] if good else 'the beginning, as there is no complete checkpoint'}"
    )


def describe_lost_worker(error: BaseException | None) -> str | None:
    """Which DataLoader worker ended before its time, and by which signal, if `error` or what it came from says so."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        found = WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
        if found:
            numbers = {signal.strsignal(number): number.name for number in signal.Signals}
            how = f"was killed by {numbers.get(found[2], found[2])}" if found[2] else "ended before its time"
            return f"the DataLoader worker with process id {found[1]} {how}"
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def check_best_before_loading(trainer: Trainer) -> None:
    """Has `trainer` verify the best checkpoint before it takes its weights, and say in one message what is wrong."""
    load = trainer._load_best_model

    @wraps(load)
    def check_and_load(*args: Any, **options: Any) -> Any:
        best = Path(trainer.state.best_model_checkpoint)
        check_best(best)
        return _translate_errors(load, best)(*args, **options)

    trainer._load_best_model = check_and_load


def translate_loading_errors(trainer: Trainer, checkpoint: Path) -> None:
    """Makes what `trainer` can't load of a checkpoint an ImpruverError: states of another model, of other versions."""
    for name in LOADERS:
        if hasattr(trainer, name):
            setattr(trainer, name, _translate_errors(getattr(trainer, name), checkpoint))


def _translate_errors(load: Callable, checkpoint: Path) -> Callable:
    @wraps(load)
    def load_or_tell(*args: Any, **options: Any) -> Any:
        try:
            return load(*args, **options)
        except ImpruverError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # torch's text advises to load the pickle all the same.
            why = "torch refuses a pickle of it" if isinstance(error, UnpicklingError) else describe_error(error)[:300]
            raise ImpruverError(
                f"{checkpoint} can't be loaded into this run: {why}; resume from another checkpoint, or begin anew"
            ) from error

    return load_or_tell


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's, torch's or a driver's way to say that memory was not enough."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is a library's way to say that the disk is full."""
    if not isinstance(error, Exception) or isinstance(error, ImpruverError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(words in str(error) for words in (*DISK_FULL, *TORN)) or is_disk_full(
        error.__cause__ or error.__context__
    )
