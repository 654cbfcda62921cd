"""GGUF files that came with a folder: read for --only_quantize, kept from an earlier run; forged ones are refused."""

import json

import pytest
from impruver_core.io.manifest import describe_file
from support.gguf_files import GgufFile

FORGED = {
    "overlapping": (lambda file: setattr(file.tensors[1], "offset", 0), "overlaps the tensor before it"),
    "countless": (lambda file: setattr(file, "tensor_count", 1 << 63), "it counts 9,223,372,036,854,775,808 tensors"),
    "no layers": (lambda file: file.set("llama.block_count", "u32", 0), "quantizing failed"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_not_quantized(what, tiny, gguf):
    change, words = FORGED[what]
    file, path = GgufFile(), tiny / "gguf/model-f16.gguf"
    change(file)
    path.parent.mkdir()
    content = file.write(path).read_bytes()
    code, out, told = gguf("--output_dir", tiny, "--only_quantize")
    assert code == 2, told
    assert out == ""
    assert words in told
    assert "Traceback" not in told
    assert told.count("error: ") == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == content


def test_a_forged_level_is_not_kept(tiny, gguf):
    """Even if the manifest that came with it says that it is ours."""
    assert gguf("--output_dir", tiny)[0] == 0
    path, manifest = tiny / "gguf/model-q8_0.gguf", tiny / "gguf/impruver.json"
    path.write_bytes(path.read_bytes() + b"x")
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for entry in content["outputs"]:
        if entry["path"] == path.name:
            entry |= describe_file(path, digest=True) | {"path": path.name}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    code, _, told = gguf("--output_dir", tiny)
    assert code == 2, told
    assert f"{path}: no GGUF file: 1 bytes follow its end" in told
