"""imatrix.safetensors, the importance matrix that impruver-train leaves in output_dir, brought under the GGUF's names.

It has `MODULE.in_sum2` (matrices, columns), sums of squared inputs, and `MODULE.counts` (matrices,), of how many, under
transformers' names of modules.
"""

from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map
from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import read_gguf_header
from impruver_core.io.model_files import read_safetensors_header

from impruver_gguf.quantization.imatrix_file import COUNTS, SUMS, Imatrix, ImatrixEntry
from impruver_gguf.weights.text_model import get_text_name

COLLECTED_FILE = "imatrix.safetensors"
AGAIN = "make it again with impruver-train --imatrix_only"
HEAD, EMBEDDINGS = "output.weight", "token_embd.weight"
# A part of a module's name → those of modules, as gguf knows them, that share its inputs.
FUSED = {"experts.gate_up_proj": ("experts.gate_proj", "experts.up_proj")}


def read_collected_imatrix(path: Path) -> dict[str, ImatrixEntry]:
    """Read the matrix, by module; ImpruverError where it is none."""
    tensors, found = read_safetensors_header(path, AGAIN), {}
    content = np.memmap(path, np.uint8, "r")
    for name in (name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)):
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        types = (sums.dtype, counts and counts.dtype)
        if types != ("F32", "I64") or len(sums.shape) != 2 or counts.shape != sums.shape[:1]:
            raise ImpruverError(f"{path}: {name}: sums and counts do not belong together; {AGAIN}")
        values = content[sums.start : sums.stop].copy().view("<f4").reshape(sums.shape)
        numbers = content[counts.start : counts.stop].copy().view("<i8")
        if not np.isfinite(values).all() or (values < 0).any() or (numbers < 0).any():
            raise ImpruverError(f"{path}: {name}: holds what is no sum of squares; {AGAIN}")
        found[name] = ImatrixEntry(values, numbers)
    if not found:
        raise ImpruverError(f"{path}: no importance matrix: it has no tensor *{SUMS}; {AGAIN}")
    return found


def convert_imatrix(path: Path, unquantized: Path) -> Imatrix:
    """Bring a collected matrix under the names of the tensors in a GGUF file; ImpruverError where none fits."""
    modules, header = read_collected_imatrix(path), read_gguf_header(unquantized)
    architecture = header.values["general.architecture"].value
    kind = next((key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        raise ImpruverError(f"gguf.imatrix: gguf knows no names of {architecture}: set it to none")
    name_map = get_tensor_name_map(kind, int(header.values[f"{architecture}.block_count"].value))
    present, entries = {tensor.name for tensor in header.tensors}, {}
    for module, entry in modules.items():
        entries |= dict.fromkeys(_find_tensors(module, name_map, present), entry)
    if not entries:
        raise ImpruverError(f"gguf.imatrix: no module in {path} is one of {unquantized.name}; {AGAIN}")
    return Imatrix(entries, [path.name], 1, max(int(entry.counts.sum()) for entry in modules.values()))


def _find_tensors(module: str, name_map: TensorNameMap, present: set[str]) -> list[str]:
    """The GGUF's tensors that have a module's inputs, of those that are `present`."""
    plain = get_text_name(module)
    part = next((part for part in FUSED if part in plain), "")
    wanted = [plain.replace(part, each) for each in FUSED[part]] if part else [plain]
    names = [f"{name_map.get_name(name)}.weight" for name in wanted]
    # A head without a tensor of its own is the embeddings.
    names = [EMBEDDINGS if name == HEAD and HEAD not in present else name for name in names]
    return [name for name in names if name in present]
