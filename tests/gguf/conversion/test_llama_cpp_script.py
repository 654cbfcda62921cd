"""Architectures that are left to llama.cpp's own script: how it is brought, which Python runs it, what it is told."""

import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cyllama.llama import llama_cpp
from gguf import GGUFReader
from support.models import QUICKSTART, edit_json, make_model
from support.oracles import require_program, write_program
from tokenizers import Tokenizer

BACKEND = """
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = Path(folder) / "llama_cpp_python-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 99.0\\n")
    return info.name
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def starcoder(tmp_path) -> Path:
    """A model of a family that is not converted here, with a vocabulary that llama.cpp never saw."""
    make_model("Starcoder2", tmp_path / "starcoder", QUICKSTART)
    (tmp_path / "starcoder/recipe.yaml").write_text("gguf: {quantization_levels: []}\n", encoding="utf-8")
    return tmp_path / "starcoder"


def test_a_vocabulary_is_recognized_by_its_splitting_rule(starcoder, gguf, llama_cpp_source):
    code, _, told = gguf("--output_dir", starcoder, "--llama_cpp", llama_cpp_source)
    assert code == 0, told
    path = starcoder / "gguf/model-f16.gguf"
    assert GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    tokenizer = Tokenizer.from_file(str(starcoder / "tokenizer.json"))
    llama_cpp.disable_logging()
    loaded = llama_cpp.LlamaModel(path_model=str(path), params=llama_cpp.LlamaModelParams())
    for text in ("What is the capital of France?", "Привет, мир! 12345"):
        assert loaded.get_vocab().tokenize(text, False, True) == tokenizer.encode(text, add_special_tokens=False).ids


def test_one_that_splits_as_none_that_llama_cpp_has(starcoder, gguf, llama_cpp_source):
    splits = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    edit_json(starcoder / "tokenizer.json", pre_tokenizer=splits)
    code, _, told = gguf("--output_dir", starcoder, "--llama_cpp", llama_cpp_source)
    assert code == 2
    assert "BPE pre-tokenizer was not recognized" in told


def pack_source(source: Path, folder: Path) -> None:
    """An archive as that of the package: llama.cpp's source in `vendor`; its metadata need nothing of an index."""
    folder.mkdir()
    with tarfile.open(folder / "llama_cpp_python-99.0.tar.gz", "w:gz") as archive:
        for name, text in (("pyproject.toml", BUILD), ("backend.py", BACKEND)):
            entry = tarfile.TarInfo(f"llama_cpp_python-99.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        for name in ("convert_hf_to_gguf.py", "conversion", "gguf-py"):
            archive.add(source / name, f"llama_cpp_python-99.0/vendor/llama.cpp/{name}")


def test_the_commands_of_the_message(starcoder, gguf, llama_cpp_source, tmp_path, monkeypatch):
    """All of them but pip's last, in whose place the new environment borrows this one's packages."""
    uv, path = require_program("uv"), os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, told = gguf("--output_dir", starcoder)
    assert code == 2
    *commands, install = [line.strip() for line in told.splitlines() if line.startswith("  ")]
    pack_source(llama_cpp_source, tmp_path / "index")
    write_program(tmp_path / "pip", f'#!/bin/sh\nexec {uv} -q tool run pip "$@"\n')
    options = {"PATH": f"{tmp_path}:{path}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    monkeypatch.chdir(tmp_path)
    for command in commands:
        done = subprocess.run(command, shell=True, env=os.environ | options, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    python = Path(shlex.split(install)[0])
    assert python.is_file()
    assert shlex.split(install)[1:5] == ["-m", "pip", "install", "torch"]
    site = next((python.parents[1] / "lib").glob("python*/site-packages"))
    borrowed = next(folder for folder in sys.path if (Path(folder) / "torch").is_dir())
    mark = f"import pathlib; pathlib.Path({str(tmp_path / 'started')!r}).touch()"
    (site / "borrowed.pth").write_text(f"{borrowed}\n{mark}\n", encoding="utf-8")
    flag = next(word for word in told.splitlines() if word.startswith("then add "))
    code, _, told = gguf("--output_dir", starcoder, *shlex.split(flag.removeprefix("then add ")))
    assert code == 0, told
    assert (tmp_path / "started").exists()  # by the Python beside the script
    assert (starcoder / "gguf/model-f16.gguf").is_file()
    shutil.rmtree(tmp_path / "llama_cpp")
