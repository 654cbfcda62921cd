"""LoRA on the experts of a mixture: merged as peft merges it."""

import json
import shutil

import numpy as np
import pytest
from gguf import GGUFReader
from support.models import edit_weights, merge_with_peft, save_adapter
from support.recipes import write_adapter_recipe

F32 = ("--quantization_levels", "--set", "gguf.outtype=f32")


def read_tensors(folder) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in GGUFReader(folder / "gguf/model-f32.gguf").tensors}


@pytest.fixture
def adapted(tmp_path, cases):
    """Makes a copy of a case and an adapter on it."""

    def make(name: str, **settings):
        base, adapter = shutil.copytree(cases[name], tmp_path / "base"), tmp_path / "adapter"
        save_adapter(base, adapter, **settings)
        write_adapter_recipe(adapter, base)
        return base, adapter

    return make


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("deepseek3", {"target_modules": "all-linear"}),
        ("gigachat3", {"target_modules": "all-linear", "lora_alpha": 32}),
        ("deepseek2-tied", {"target_modules": ["kv_b_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
        ("qwen3-moe", {"target_modules": ["gate_proj", "up_proj", "q_proj"], "use_rslora": True}),
        ("qwen3-moe-fused", {"target_modules": "all-linear", "r": 3}),
    ],
)
def test_experts_are_merged_as_peft_does(name, settings, adapted, tmp_path, gguf):
    base, adapter = adapted(name, **settings)
    assert json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["target_parameters"]
    merge_with_peft(base, adapter, tmp_path / "merged")
    (tmp_path / "merged/recipe.yaml").touch()
    for folder in (adapter, tmp_path / "merged"):
        code, _, err = gguf("--output_dir", folder, *F32)
        assert code == 0, err
    ours, theirs = read_tensors(adapter), read_tensors(tmp_path / "merged")
    assert list(ours) == list(theirs)
    for tensor in ours:
        np.testing.assert_allclose(ours[tensor], theirs[tensor], rtol=0, atol=1e-6, err_msg=tensor)


def test_stacks_that_are_held_otherwise_are_refused(adapted, refused):
    """As gpt-oss holds them: inputs before outputs."""
    base, adapter = adapted("deepseek3", target_modules=["q_b_proj"], target_parameters=["mlp.experts.down_proj"])

    def stack(tensors: dict) -> None:
        for layer in (1, 2):
            experts = f"model.layers.{layer}.mlp.experts"
            for key in [key for key in tensors if key.startswith(f"{experts}.")]:
                del tensors[key]
            tensors[f"{experts}.gate_up_proj"] = np.zeros((8, 64, 64), np.float32)
            tensors[f"{experts}.down_proj"] = np.zeros((8, 32, 64), np.float32)

    to_float32(base)
    edit_weights(base / "model.safetensors", stack)
    refused(adapter, "mlp.experts", "fits no stack of the base's experts")


def test_a_rank_of_another_training_is_refused(adapted, refused):
    _, adapter = adapted("deepseek3", target_modules=["q_b_proj"], target_parameters=["mlp.experts.down_proj"])
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"rank_pattern": {r".*\.experts\.down_proj": 8}}
    path.write_text(json.dumps(settings), encoding="utf-8")
    refused(adapter, "8 experts of rank 8")


def to_float32(folder) -> None:
    """numpy has no bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
