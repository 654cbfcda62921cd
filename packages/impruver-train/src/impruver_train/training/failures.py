"""Errors of memory or a disk that was not enough, and of a checkpoint that does not fit, with what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError, describe_error

from impruver_train.checkpointing import checkpoints

if TYPE_CHECKING:
    from transformers import Trainer

LOADERS = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory")
DISK_FULL = ("No space left", "os error 28", "Disk quota exceeded", "os error 122", "os error 27")
TORN = ("PytorchStreamWriter", "file write failed", "unexpected pos")  # torch's words when it can't write on


@contextmanager
def translate_resource_errors(output_dir: Path, advice: Callable[[], list[str]]) -> Iterator[None]:
    """Makes a lack of memory (with `advice()`) or of disk space an ImpruverError; removes half-written checkpoints."""
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
            good = checkpoints.list_complete_checkpoints(output_dir, resumable=True)
            raise ImpruverError(
                f"{output_dir}: the disk is full; make room and give the same command again: it resumes from "
                f"{good[-1] if good else 'the beginning, as there is no complete checkpoint'}"
            ) from None
        raise


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
