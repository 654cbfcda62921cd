"""The command from outside: fast help, nothing heavy imported, the way without --config."""

import os
import resource
import subprocess
import sys

import pytest

LIGHT = """
import sys
from impruver_gguf.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "accelerate"} & set(sys.modules)
raise SystemExit(f"imported {heavy}" if heavy else code)
"""


def run(*command):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)


def test_help_is_fast_and_names_the_keys():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", "impruver_gguf", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "--only_quantize" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_and_sections_import_neither_numpy_nor_a_model_library():
    code = "import sys, impruver_gguf.cli, impruver_gguf.sections; print(*sys.modules)"
    loaded = run("-c", code).stdout.split()
    assert not {"numpy", "gguf", "cyllama", "tokenizers", "huggingface_hub"} & set(loaded)


def test_an_export_imports_neither_torch_nor_transformers(adapter):
    done = run("-c", LIGHT, "--output_dir", str(adapter), "--quantization_levels", "q8_0")
    assert done.returncode == 0, done.stderr
    assert (adapter / "gguf" / "model-q8_0.gguf").is_file()


@pytest.mark.parametrize("flag", ["--quantisation_levels", "--only-quantise"])
def test_a_misspelt_flag(flag, gguf):
    code, _, told = gguf(flag)
    assert code == 2
    assert "did you mean" in told
