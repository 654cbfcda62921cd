"""Opening a GGUF file with cyllama."""

import pytest
from impruver_core import llama_cpp
from impruver_core.errors import ImpruverError


def test_what_is_no_gguf(tmp_path, capfd):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ImpruverError, match=r"model.gguf can't be loaded by llama.cpp: it is cut off, or of a kind"):
        llama_cpp.load_gguf(path, n_gpu_layers=0, check_tensors=True)
    assert capfd.readouterr() == ("", "")


def test_cyllama_is_absent(monkeypatch):
    llama_cpp.check_cyllama_installed("--gguf", "impruver-chat")
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    with pytest.raises(ImpruverError, match=r'--gguf needs a further package: pip install "impruver-chat\[gguf\]"'):
        llama_cpp.check_cyllama_installed("--gguf", "impruver-chat")
