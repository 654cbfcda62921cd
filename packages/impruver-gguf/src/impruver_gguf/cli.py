"""Flags of the command `impruver-gguf`."""

# ruff: noqa: RUF009  (flag() makes a field)
import os
from collections.abc import Sequence
from dataclasses import dataclass

from impruver_core.cli.flags import FolderFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool
from impruver_core.recipe.loading import Recipe


@dataclass
class Flags(FolderFlags):
    """Turns the model or adapter in output_dir into GGUF files, quantized, with Modelfiles for Ollama."""

    output_dir: str | None = from_recipe("output_dir")
    quantization_levels: list | None = from_recipe("gguf.quantization_levels", type=str, nargs="*")
    only_quantize: bool = flag(bool, False, help="quantize the model-f16.gguf that is there, convert nothing")
    verify: bool = flag(bool, True, help="prove the files on heldout.jsonl: ids, template, quality of each level")
    merged: str | None = flag(
        str,
        None,
        help="write the merged model to this folder instead: 16-bit safetensors, for vLLM or another training",
    )
    llama_cpp: str | None = flag(
        str, None, help="folder of llama.cpp, for other architectures (default: $LLAMA_CPP_DIR, PATH)"
    )
    llama_cpp_convert_script: str | None = flag(str, None, help="its convert_hf_to_gguf.py")
    llama_cpp_quantize_bin: str | None = flag(str, None, help="its llama-quantize, used for every architecture")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""

    def run(recipe: Recipe, flags: Flags) -> None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would start beside ours, before it is imported
        from impruver_gguf.conversion.llama_cpp_tools import LlamaCppPaths
        from impruver_gguf.export import export, export_merged

        if flags.merged is not None:
            export_merged(recipe, flags.merged, dry_run=flags.dry_run, overwrite=flags.overwrite)
            return
        export(
            recipe,
            LlamaCppPaths(flags.llama_cpp_convert_script, flags.llama_cpp_quantize_bin, flags.llama_cpp),
            dry_run=flags.dry_run,
            overwrite=flags.overwrite,
            only_quantize=flags.only_quantize,
            verified=flags.verify,
        )

    return run_tool("impruver-gguf", Flags, run, argv, config_from_output_dir=True)
