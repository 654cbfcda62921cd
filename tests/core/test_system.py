"""Processors and memory, labels, suggestions: small things that all tools share."""

import os
import sys

import pytest
from impruver_core.labels import count_target_tokens, find_target_positions
from impruver_core.suggestions import find_similar, suggest
from impruver_core.system import (
    available_cpus,
    get_available_memory,
    get_process_memory,
    get_total_memory,
)
from support.cli import run_python


def test_memory():
    assert 1 <= available_cpus() <= os.cpu_count()
    assert 10**7 < get_process_memory() < get_total_memory()
    assert 0 < get_available_memory() <= get_total_memory()


PEAK = """
import sys
from impruver_core.system import get_peak_memory, get_process_memory, reset_peak_memory
size = int(sys.argv[1])
bytearray(b"x") * size
reset_peak_memory()
print(get_peak_memory(), get_process_memory())
bytearray(b"x") * size
print(get_peak_memory(), get_process_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak")
def test_the_peak_is_of_what_came_since_it_was_reset():
    size = 1 << 27
    done = run_python(PEAK, size, check=True)
    before, held, peak, after = map(int, done.stdout.split())
    assert abs(before - held) < size // 4
    assert peak - before > size // 2
    assert after - before < size // 2


@pytest.mark.parametrize(
    ("labels", "positions"), [([], []), ([-100], []), ([5], []), ([5, 6, -100, 7], [1, 3]), ([-100, 6, -100], [1])]
)
def test_the_first_label_is_no_target(labels, positions):
    assert find_target_positions(labels) == positions
    assert count_target_tokens(labels) == len(positions)


def test_suggestions():
    assert suggest("Train-Pth", ["train_path", "val_path"]) == "; did you mean train_path?"
    assert suggest("x", ["train_path", "val_path"]) == " (valid: train_path, val_path)"
    assert suggest("x", ["train_path"], list_valid=False) == ""
    assert suggest("x", []) == ""
    assert suggest("q80", ["q8_0"], cutoff=0.5, form=", or {}") == ", or q8_0"
    assert find_similar("autotokenzer", ["AutoToken", "AutoTokenizer", "Other"], 2) == ["AutoTokenizer", "AutoToken"]
