"""Errors of memory or a disk that was not enough, with what to do."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from impruver_core.errors import ImpruverError

from impruver_train.checkpointing import checkpoints

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
