"""Pages of memory-mapped files that were read and are not needed again: they would count as this process's memory."""

import ctypes
import mmap
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import pyarrow

MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-.. \S+ \S+ [1-9]\d* ", re.MULTILINE)  # of a file (an inode), read-only


def release_pages(chunks: Iterable[pyarrow.Array]) -> None:
    """Has the system take back the pages of these chunks that are those of a read-only file; others stay as they are.

    They are read again if somebody asks for them. Only Linux has such lists of what is mapped.
    """
    if sys.platform != "linux":
        return
    mappings = [(int(start, 16), int(end, 16)) for start, end in MAPPING.findall(Path("/proc/self/maps").read_text())]
    starts = [start for start, _ in mappings]
    libc = ctypes.CDLL(None, use_errno=True)
    for chunk in chunks:
        for buffer in chunk.buffers():
            if buffer is None or not buffer.size:
                continue
            start = buffer.address // mmap.PAGESIZE * mmap.PAGESIZE
            end = -(-(buffer.address + buffer.size) // mmap.PAGESIZE) * mmap.PAGESIZE
            place = bisect_right(starts, start) - 1
            if place >= 0 and end <= mappings[place][1]:  # what can't be written to is on the disk as it is here
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
