"""Models for the tests, made once for all workers: SmolLM2, small random ones, and llama.cpp's own files of them."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import run_in_process
from support.gguf_cases import (
    CASES,
    EXACT,
    FAMILIES,
    OLD_NAMES,
    make_family,
    save_byte_level,
    train_sentencepiece,
)
from support.gguf_families import SCRIPT_FLAGS
from support.models import QUICKSTART, make_llama, save_adapter
from support.oracles import (
    build_ollama,
    convert_with_llama_cpp,
    make_llama_server,
    render_with_ollama,
    unpack_llama_cpp,
)
from support.recipes import write_adapter_recipe
from support.shared import fill_once


@pytest.fixture(scope="session")
def cases(shared, smollm2) -> dict[str, Path]:
    """Model folders by name: small random ones of each kind, and SmolLM2."""

    def fill(folder: Path) -> None:
        for name, make in CASES.items():
            make(folder / name, smollm2)
        tokenizers = {"bytes": save_byte_level(folder / "bytes"), "pieces": train_sentencepiece(folder / "pieces")}
        for name in (*FAMILIES, *OLD_NAMES):
            make_family(name, folder / name, tokenizers)

    folder = fill_once(shared / "gguf-cases", fill)
    return {name: folder / name for name in (*CASES, *FAMILIES, *OLD_NAMES)} | {smollm2.name: smollm2}


@pytest.fixture(scope="session")
def oracle(shared, cases, llama_cpp_source) -> dict[tuple[str, str], Path]:
    """What llama.cpp's own script makes of each case and outtype."""
    folder = shared / "gguf-oracle"
    files = {(name, outtype): folder / f"{name}.{outtype}.gguf" for name, outtype in EXACT}
    runs = {
        file: (cases[name], "--outtype", outtype, *SCRIPT_FLAGS.get(name, ()))
        for (name, outtype), file in files.items()
    }
    fill_once(folder, lambda _: convert_with_llama_cpp(llama_cpp_source, runs))
    return files


@pytest.fixture(scope="session")
def llama_cpp_source(shared) -> Path:
    """llama.cpp's conversion scripts of today."""
    return fill_once(shared / "llama.cpp", unpack_llama_cpp)


@pytest.fixture(scope="session")
def llama_cpp(shared) -> Path:
    """A folder with a llama-server."""
    return fill_once(shared / "gguf-server", make_llama_server)


@pytest.fixture(scope="session")
def ollama(shared) -> Callable[[str, list], list[str]]:
    """Renders chats with a template in Go's language, in Go."""
    folder = fill_once(shared / "gguf-go", build_ollama)
    return lambda template, chats: render_with_ollama(folder, template, chats)


@pytest.fixture(scope="session")
def tiny_base(shared) -> Path:
    """A small random Llama with the quickstart's tokenizer."""
    folder = fill_once(shared / "gguf-base", lambda folder: make_llama(folder / "tiny", QUICKSTART, vocab_size=2048))
    return folder / "tiny"


@pytest.fixture
def tiny(tmp_path, tiny_base) -> Path:
    """A copy of it, as training would leave it: with its recipe."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / "recipe.yaml").write_text("gguf: {quantization_levels: [q8_0]}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def adapter_once(shared, tiny_base) -> Path:
    modules = ["q_proj", "v_proj"]
    folder = shared / "gguf-adapter"
    fill_once(folder, lambda folder: save_adapter(tiny_base, folder / "adapter", target_modules=modules))
    return folder / "adapter"


@pytest.fixture
def adapter(tmp_path, tiny_base, adapter_once) -> Path:
    """An adapter on the small Llama, as training would leave it."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter_once, folder)
    write_adapter_recipe(folder, tiny_base)
    return folder


@pytest.fixture
def case(tmp_path, cases):
    """Makes a copy of a case with a recipe."""

    def copied(name: str, recipe: str = "seed: 1\n") -> Path:
        folder = shutil.copytree(cases[name], tmp_path / name)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        return folder

    return copied


@pytest.fixture
def gguf(compared):
    """Runs the command without its proof, which test_proof.py is about."""
    return lambda *argv: compared(*argv, "--verify", "false")


@pytest.fixture
def proven(compared, monkeypatch):
    """Runs the command where no torch is, whose import costs seconds."""
    monkeypatch.setattr("impruver_gguf.verification.transformers_parity.has_torch", lambda: False)
    return compared


@pytest.fixture
def compared(capsys, monkeypatch):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    from impruver_gguf.cli import main

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)

    return lambda *words: run_in_process(main, words, capsys)


@pytest.fixture
def free_room(monkeypatch):
    """Has every disk tell that so many bytes are free."""
    usage = namedtuple("usage", "total used free")

    def told(count: int) -> None:
        monkeypatch.setattr("impruver_core.io.atomic.shutil.disk_usage", lambda path: usage(10**9, 0, count))

    return told


@pytest.fixture
def refused(gguf):
    """Runs the command, which must refuse with these words and leave no gguf folder behind."""

    def refused(folder, *words, flags=()):
        code, out, told = gguf("--output_dir", folder, *flags)
        assert code == 2, told
        assert out == ""
        assert "Traceback" not in told
        assert told.count("error: ") == 1
        for word in words:
            assert word in told, told
        assert not (folder / "gguf").exists()

    return refused
