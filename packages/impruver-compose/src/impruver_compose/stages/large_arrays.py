"""Arrays that may be larger than memory: those above a limit lie in a file, which the system reads and writes back."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
from impruver_core.io.atomic import make_folder, reserve_space


class ArrayStore(NamedTuple):
    """Where arrays of more than `limit` bytes lie: in `folder`, without a name, so that they go with the process."""

    folder: Path
    limit: int

    def make(self, count: int, dtype: np.typing.DTypeLike) -> np.ndarray:
        """Makes an array (count,) of zeros; ImpruverError where the disk has no room for it."""
        size = count * np.dtype(dtype).itemsize
        if size <= self.limit:
            return np.zeros(count, dtype)
        make_folder(self.folder)
        with reserve_space(self.folder, size), TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process by SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                os.ftruncate(file.fileno(), size)
            return np.memmap(file, dtype, "r+", shape=(count,))
