"""The importance matrix of an export: where it comes from, and whether a level is better with it.

impruver-train leaves `imatrix.safetensors` in output_dir, by transformers' names of modules; llama-imatrix writes an
imatrix.gguf, by the GGUF's names of tensors. What is quantized with is the latter form.
"""

from dataclasses import dataclass
from pathlib import Path

from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import hash_file
from impruver_core.recipe.paths import find_local

from impruver_gguf.quantization.collected_imatrix import COLLECTED_FILE, convert_imatrix, read_collected_imatrix
from impruver_gguf.quantization.imatrix_file import read_imatrix, write_imatrix
from impruver_gguf.quantization.matrix_quantizer import find_library, get_matrix_quantizer_name
from impruver_gguf.quantization.quant_types import WITH_IMATRIX

IMATRIX_FILE = "imatrix.gguf"


@dataclass(frozen=True)
class MatrixPlan:
    """The importance matrix to quantize with."""

    source: Path  # an imatrix.gguf, or what impruver-train collected
    target: Path  # where it comes to stand
    identity: str  # its sha256 and what quantizes with it, for the manifest
    compared: bool  # levels without it are made, too, and the better ones stay

    def write(self, path: Path, unquantized: Path) -> None:
        """Write it to `path` in llama.cpp's form, for the tensors of the file `unquantized`."""
        is_collected = self.source.suffix == ".safetensors"
        write_imatrix(path, convert_imatrix(self.source, unquantized) if is_collected else read_imatrix(self.source))


@dataclass(frozen=True)
class LevelChoice:
    """How far a level is from the unquantized file with the matrix and without; None for what was not measured."""

    level: str
    divergence: float | None  # KL with the matrix
    plain_divergence: float | None

    @property
    def with_matrix(self) -> bool:
        """Whether the file with the matrix is the better one."""
        if self.divergence is None or self.plain_divergence is None:
            return self.plain_divergence is None
        return self.divergence < self.plain_divergence

    def log(self) -> None:
        """Say which file stays."""
        if self.divergence is not None and self.plain_divergence is not None:
            log_info(
                f"{self.level}: KL {self.divergence:.4f} with the importance matrix, {self.plain_divergence:.4f} "
                f"without; written {'with' if self.with_matrix else 'without'} it"
            )


def plan_matrix(
    wanted: str, recipe_dir: Path | None, output_dir: Path, levels: list[str], program: str | None, compared: bool
) -> MatrixPlan | None:
    """Find the matrix that `gguf.imatrix` names, for files in `output_dir`/gguf; None where there is none.

    ImpruverError where a level needs one, where it can't be read, or where nothing is installed that quantizes with it.
    """
    collected = output_dir / COLLECTED_FILE
    found = collected if wanted == "auto" and collected.is_file() else None
    path = found if wanted in ("auto", "none") else find_local(wanted, recipe_dir)
    if wanted not in ("auto", "none") and (path is None or not path.is_file()):
        raise ImpruverError(f"gguf.imatrix: {wanted} is not there: give the path of an imatrix.gguf, auto or none")
    needy = [level for level in levels if level in WITH_IMATRIX]
    if path is None:
        if needy:
            raise ImpruverError(
                f"gguf.quantization_levels: {needy[0]} needs an importance matrix, and gguf.imatrix is {wanted}, which "
                f"finds none in {output_dir}: let impruver-train --imatrix_only collect it, give an imatrix.gguf, or "
                "take a level with more bits"
            )
        return None
    if not levels:
        return None
    if program is None:
        find_library()
    read_collected_imatrix(path) if path == found else read_imatrix(path)
    quantizer = program or get_matrix_quantizer_name()
    return MatrixPlan(
        path,
        output_dir / "gguf" / IMATRIX_FILE,
        f"{hash_file(path)} {quantizer}{'' if compared else ', not compared'}",
        compared,
    )


def get_candidate_path(path: Path) -> Path:
    """The name of a level's file with the matrix while it is compared with the one without."""
    return path.with_name(f"{path.stem}.imatrix{path.suffix}")
