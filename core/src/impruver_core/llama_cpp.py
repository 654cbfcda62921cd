"""llama.cpp's models, opened through cyllama."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    from cyllama.llama.llama_cpp import LlamaModel


def check_cyllama_installed(needed_by: str, package: str) -> None:
    """ImpruverError with the way to get it where cyllama, of a tool's extra `gguf`, is not installed."""
    if find_spec("cyllama") is None:
        raise ImpruverError(f'{needed_by} needs a further package: pip install "{package}[gguf]"')


def load_gguf(path: Path, **settings: object) -> LlamaModel:
    """The model in a GGUF file, without llama.cpp's log; ImpruverError where llama.cpp can't load it.

    `settings` are llama.cpp's model parameters, such as `n_gpu_layers=0` or `check_tensors=True`.
    """
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        """With the size that cyllama's contexts ask their model for."""

        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    parameters = llama_cpp.LlamaModelParams()
    for name, value in settings.items():
        setattr(parameters, name, value)
    try:
        return Model(path_model=str(path), params=parameters)
    except Exception as error:  # cyllama raises several kinds, bare ones among them
        raise ImpruverError(
            f"{path} can't be loaded by llama.cpp: it is cut off, or of a kind that this version does not know "
            f"({' '.join(str(error).split())})"
        ) from error
