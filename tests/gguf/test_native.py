"""What llama.cpp prints or aborts with stays out of the results."""

import subprocess
import sys

from impruver_gguf.native import last_words

PRINTS = """
import os
from impruver_gguf.native import own_channel
out = own_channel()
os.write(1, b"[New LWP 5]\\n")
print("printed")
print("{}", file=out, flush=True)
"""


def test_only_results_come_on_stdout():
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert "New LWP" in done.stderr
    assert "printed" in done.stderr


def test_the_assertion_is_the_reason():
    assert last_words("a\nggml.c:12: GGML_ASSERT(x > 0) failed\n#1 frame\n[Inferior 1 detached]\n").endswith("failed")
    assert last_words("a\nb\n\n") == "b"
    assert last_words("") == ""
