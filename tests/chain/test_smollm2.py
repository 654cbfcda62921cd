"""A real chat model through the real commands: composed, a LoRA trained, still itself."""

import json

import pytest

RECIPE = """
output_dir: ./adapter
train_path: ./train.jsonl
val_path: ./val.jsonl
datasets:
  - {{name: quickstart/countries.jsonl, split: "train[:60]"}}
split: {{val_rows: 4}}
dedup: {{method: exact}}
model: {{name: {base}, dtype: fp32}}
lora: {{r: 4, lora_alpha: 8, lora_dropout: 0.0, target_modules: [q_proj, v_proj]}}
trainer: {{max_steps: 3, per_device_train_batch_size: 2, learning_rate: 1e-4, eval_strategy: "no", save_strategy: "no"}}
"""


@pytest.fixture
def recipe(tmp_path, smollm2):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=smollm2), encoding="utf-8")
    return path


def test_it_answers(smollm2):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, do_sample=False, max_new_tokens=12)
    assert (
        tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        == "The capital of France is Paris."
    )


def test_compose_and_train(recipe, run, tmp_path, smollm2):
    composed = run("impruver-compose", "--config", str(recipe))
    assert composed.returncode == 0, composed.stderr
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for line in (tmp_path / "val.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        learned = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert learned == row["messages"][-1]["content"] + "<|im_end|>"
    checked = run("impruver", "check", "--config", str(recipe))
    assert checked.returncode == 0, checked.stderr
    trained = run("impruver", "run", "finetune", "--config", str(recipe))
    assert trained.returncode == 0, trained.stderr
    metrics = [
        json.loads(line) for line in (tmp_path / "adapter/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["step"] for row in metrics if "loss" in row] == [1, 2, 3]
    config = json.loads((tmp_path / "adapter/generation_config.json").read_text(encoding="utf-8"))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in config["eos_token_id"]
    converted = run("impruver", "run", "convert_gguf", "--output_dir", "adapter", "--quantization_levels", "q8_0")
    assert converted.returncode == 0, converted.stderr
    assert (tmp_path / "adapter/gguf/model-q8_0.gguf").stat().st_size > 100_000_000
    modelfile = (tmp_path / "adapter/gguf/Modelfile.q8_0").read_text(encoding="utf-8")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    again = run("impruver-train", "--config", str(recipe))
    assert again.returncode == 0, again.stderr
