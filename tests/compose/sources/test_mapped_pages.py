"""Memory of rows that were read is given back, and nothing but that."""

import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from impruver_compose.sources.mapped_pages import release_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what is mapped")
NUMBERS = np.arange(1 << 22)  # 32 MiB


def resident_file_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_pages_of_a_mapped_file_go_and_are_read_again(tmp_path):
    path = tmp_path / "numbers.arrow"
    table = pyarrow.table({"numbers": NUMBERS})
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1 << 19)
    column = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all().column("numbers")
    assert column.to_numpy().sum() == NUMBERS.sum()
    read = resident_file_bytes()
    release_pages(column.chunks)
    assert read - resident_file_bytes() > 0.9 * NUMBERS.nbytes
    assert np.array_equal(column.to_numpy(), NUMBERS)


def test_what_is_in_memory_alone_stays():
    column, texts = pyarrow.array(NUMBERS.copy()), pyarrow.array(["a", None, "c"] * 9000)
    release_pages([column, texts])
    assert np.array_equal(column.to_numpy(), NUMBERS)
    assert texts.to_pylist() == ["a", None, "c"] * 9000


def test_what_may_be_written_to_stays(tmp_path):
    numbers = np.memmap(tmp_path / "numbers", np.int64, "w+", shape=NUMBERS.shape)
    numbers[:] = NUMBERS
    private = np.memmap(tmp_path / "numbers", np.int64, "c", shape=NUMBERS.shape)
    private[:] = 7  # on no disk
    release_pages([pyarrow.Array.from_buffers(pyarrow.int64(), len(private), [None, pyarrow.py_buffer(private)])])
    assert (private == 7).all()
