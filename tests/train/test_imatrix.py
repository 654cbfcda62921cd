"""The importance matrix that training leaves: sums of squared inputs, against those that a model's own modules had."""

import json

import pytest
from support.jsonl import read_jsonl, write_jsonl

METHODS = {
    "lora": {},
    "lora-4bit": {"model": {"load_in_4bit": True}},
    "full": {"lora": None},
    "packed": {"lora": None, "trainer": {"packing": True}},
}


@pytest.mark.integration
@pytest.mark.parametrize("method", METHODS)
def test_sums_are_those_of_the_inputs_on_training_rows(method, recipe, impruver_train, tmp_path, parts):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    changes = METHODS[method]
    trainer = changes.get("trainer", {})
    config = recipe(**changes | {"trainer": trainer | {"imatrix_rows": 1000}})
    code, _, err = impruver_train(config)
    assert code == 0, err
    out = tmp_path / "out"
    tensors = load_file(out / "imatrix.safetensors")
    rows = [row["input_ids"] for row in read_jsonl(parts / "train.jsonl")]
    count = sum(map(len, rows))
    assert all(int(value) == count for name, value in tensors.items() if name.endswith(".counts"))
    manifest = json.loads((out / "impruver.json").read_text(encoding="utf-8"))
    assert "imatrix.safetensors" in {entry["path"] for entry in manifest["outputs"]}
    if method == "lora-4bit":
        names = {name.rpartition(".")[0] for name in tensors}
        assert {"lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"} < names
        assert not any("lora" in name or "base" in name for name in names)
        return
    source = parts / "base" if (out / "adapter_config.json").exists() else out
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, out).merge_and_unload() if source != out else model
    expected = {name: 0 for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, module in model.named_modules():
        if name in expected:
            module.register_forward_pre_hook(
                lambda module, args, name=name: expected.update({name: expected[name] + args[0][0].square().sum(0)})
            )
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    assert {f"{name}.in_sum2" for name in expected} == {name for name in tensors if name.endswith(".in_sum2")}
    for name, sums in expected.items():
        torch.testing.assert_close(tensors[f"{name}.in_sum2"][0], sums, rtol=2e-3, atol=1e-4)


@pytest.mark.integration
def test_it_changes_nothing_else_and_can_be_made_later(recipe, impruver_train, tmp_path, parts):
    """Weights are the same with and without it; --imatrix_only makes the same file of the finished run."""
    without, beside = recipe(lora=None), recipe
    assert impruver_train(without)[0] == 0
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    code, _, err = impruver_train(without, "--imatrix_only", "--set", "trainer.imatrix_rows=7")
    assert code == 0, err
    later = (tmp_path / "out/imatrix.safetensors").read_bytes()
    assert "nothing to do" in impruver_train(without)[1]  # the run is whole with it
    config = beside(lora=None, trainer={"imatrix_rows": 7}, output_dir=str(tmp_path / "out2"))
    code, _, err = impruver_train(config)
    assert code == 0, err
    assert (tmp_path / "out2/model.safetensors").read_bytes() == weights
    assert (tmp_path / "out2/imatrix.safetensors").read_bytes() == later
    code, _, err = impruver_train(config, "--imatrix_only", "--set", "seed=8")
    assert code == 2
    assert "holds another run" in err or "holds this" in err


@pytest.mark.integration
def test_held_out_rows_are_not_among_them(recipe, impruver_train, tmp_path, parts):
    from safetensors.torch import load_file

    rows = read_jsonl(parts / "train.jsonl")
    messages = [{"role": "user", "content": "q"}]
    write_jsonl(tmp_path / "val.jsonl", [row | {"messages": messages} for row in rows[:40]])
    config = recipe(lora=None, val_path=str(tmp_path / "val.jsonl"), trainer={"imatrix_rows": 1000})
    code, _, err = impruver_train(config)
    assert code == 0, err
    forbidden = {tuple(row["input_ids"]) for row in rows[:40]}
    count = sum(len(row["input_ids"]) for row in rows if tuple(row["input_ids"]) not in forbidden)
    assert int(load_file(tmp_path / "out/imatrix.safetensors")["lm_head.counts"]) == count


@pytest.mark.unit
def test_experts_are_counted_apart():
    """Each expert's inputs, of both its matrices, as those of a loop over experts written here."""
    import torch
    from impruver_train.saving.imatrix import collect_imatrix
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 50}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2)).eval()
    ids, seen = [[5, 6, 7, 8, 9, 10, 11], [3, 2, 1]], []
    experts = model.model.layers[0].mlp.experts
    hook = experts.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), args[1].clone())))
    tensors = collect_imatrix(model, ids, None, None)
    hook.remove()
    name = "model.layers.0.mlp.experts"
    assert tensors[f"{name}.gate_up_proj.counts"].sum() == 2 * 10
    for expert in range(4):
        inputs = torch.cat([states[(chosen == expert).any(-1)] for states, chosen in seen])
        assert int(tensors[f"{name}.gate_up_proj.counts"][expert]) == len(inputs)
        gate, up = (inputs @ experts.gate_up_proj[expert].T).chunk(2, -1)
        inner = (torch.nn.functional.silu(gate) * up).square().sum(0)
        torch.testing.assert_close(tensors[f"{name}.gate_up_proj.in_sum2"][expert], inputs.square().sum(0))
        torch.testing.assert_close(tensors[f"{name}.down_proj.in_sum2"][expert], inner)
