"""What stands in a GGUF before its tensors: names, hyperparameters, vocabulary; in llama.cpp's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_gguf.architectures import Architecture
from impruver_gguf.vocabulary import Vocabulary, write_vocabulary


def write_metadata(
    writer: Any, architecture: Architecture, config: dict[str, Any], vocabulary: Vocabulary, folder: Path
) -> None:
    """Fills `writer`, which knows its tensors already; names come from README.md, config.json and the folder's name."""
    import gguf

    total, shared, expert, experts = writer.get_total_parameter_count()
    general = gguf.Metadata.load(None, folder, None, total)
    general.name = general.name or folder.name
    general.size_label = general.size_label or gguf.size_label(total, shared, expert, experts)
    writer.add_type(gguf.GGUFType.MODEL)
    general.set_gguf_meta_model(writer)
    architecture.parameters(writer, config)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.vocabulary_before(writer, config, vocabulary.config)
    write_vocabulary(writer, vocabulary)
    architecture.vocabulary_after(writer, config)
