"""What llama.cpp prints or aborts with stays out of the results."""

import subprocess
import sys

import pytest
from impruver_core.worker_process import get_error_reason
from support.cli import is_ended, run_python

PRINTS = """
import os
from impruver_core.worker_process import claim_stdout
out = claim_stdout()
os.write(1, b"[New LWP 5]\\n")
print("printed")
print("{}", file=out, flush=True)
"""


def test_only_results_come_on_stdout():
    done = run_python(PRINTS, check=True)
    assert done.stdout == "{}\n"
    assert "New LWP" in done.stderr
    assert "printed" in done.stderr


def test_the_assertion_is_the_reason():
    assert get_error_reason("a\nggml.c:12: GGML_ASSERT(x > 0) failed\n#1 frame\n[Inferior 1 detached]\n").endswith(
        "failed"
    )
    assert get_error_reason("a\nb\n\n") == "b"
    assert get_error_reason("") == "without a word"


def test_a_nan_to_be_quantized_is_named(tiny, gguf):
    from gguf import GGUFReader

    assert gguf("--output_dir", tiny, "--quantization_levels")[0] == 0
    path = tiny / "gguf/model-f16.gguf"
    tensor = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset + 100)
        file.write(b"\xff\x7f")
    code, _, told = gguf("--output_dir", tiny, "--only_quantize", "--overwrite", "--quantization_levels", "q8_0")
    assert code == 3, told
    assert "blk.1.ffn_up.weight holds NaN" in told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_process_of_its_own_ends_with_a_parent_that_is_killed():
    child = (
        "from impruver_core.worker_process import claim_stdout; print(file=claim_stdout(), flush=True); "
        "import time; time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert is_ended(pid)


def test_what_a_killed_run_left_is_written_anew(tiny, gguf):
    left = tiny / "gguf/.model-q8_0.gguf.staged"
    left.parent.mkdir()
    with left.open("wb") as held:  # by a quantizer that nobody ended
        held.write(b"half")
        assert gguf("--output_dir", tiny)[0] == 0
        made = (tiny / "gguf/model-q8_0.gguf").read_bytes()
        held.write(b"x" * 100)
    assert (tiny / "gguf/model-q8_0.gguf").read_bytes() == made
