"""Fields of `lora` that would have no effect: refused each with why; peft's own defaults are none."""

import json
from dataclasses import fields

import pytest
from impruver_core.errors import ImpruverError
from impruver_train.config.lora_fields import SWITCHES, check_quantization, find_ineffective_fields

REFUSED = [
    ({"peft_type": "LOHA"}, "peft_type", "what is trained is LORA"),
    ({"peft_type": "ADALORA", "r": 8}, "peft_type", "leave it out"),
    ({"auto_mapping": {"base_model_class": "X"}}, "auto_mapping", "peft writes it"),
    ({"base_model_name_or_path": "gpt2"}, "base_model_name_or_path", "model.name"),
    ({"revision": "v1"}, "revision", "no effect"),
    ({"peft_version": "0.1.0"}, "peft_version", "the one that is installed"),
    ({"inference_mode": True}, "inference_mode", "nothing of the model would be trained"),
    ({"runtime_config": {"ephemeral_gpu_offload": True}}, "runtime_config", "no effect"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config", "lora.init_lora_weights: loftq"),
    ({"eva_config": {"rho": 1.0}}, "eva_config", "lora.init_lora_weights: eva"),
    ({"corda_config": {"corda_method": "kpm"}, "init_lora_weights": "pissa"}, "corda_config", "corda"),
    ({"lora_ga_config": {"scale": "unit"}}, "lora_ga_config", "lora_ga"),
    ({"qalora_group_size": 32}, "qalora_group_size", "lora.use_qalora: true"),
    ({"layers_pattern": "layers"}, "layers_pattern", "lora.layers_to_transform"),
    ({"megatron_config": {"a": 1}}, "megatron_config", "Megatron"),
    ({"megatron_core": "my.core"}, "megatron_core", "lora.megatron_config"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config", "trained already"),
    ({"init_lora_weights": "eva"}, "init_lora_weights", "not done here"),
    ({"init_lora_weights": "corda"}, "init_lora_weights", "not done here"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights", "not done here"),
    ({"velora_config": {"num_group": 4}}, "velora_config", "did you mean num_groups"),
    ({"use_bdlora": {"nblock": 2}}, "use_bdlora", "did you mean nblocks"),
    ({"kasa_config": {"beta": 0.5}}, "kasa_config", "beta: only a loss of peft's own"),
    ({"monteclora_config": {"kl_loss_weight": 1.0}}, "monteclora_config", "kl_loss_weight"),
]
TAKEN = [
    {"r": 8, "lora_alpha": 16, "use_dora": True, "bias": "lora_only"},
    {"peft_type": "lora"},
    {"peft_type": "LoRA", "task_type": "CAUSAL_LM"},
    {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    {"init_lora_weights": "pissa_niter_4"},
    {"use_qalora": True, "qalora_group_size": 32},
    {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    {"velora_config": {"num_groups": 4}, "kasa_config": {}, "monteclora_config": {"num_samples": 4}},
]


@pytest.mark.parametrize(("values", "name", "words"), REFUSED)
def test_refused(values, name, words):
    faults = list(find_ineffective_fields(values))
    assert [fault[0] for fault in faults] == [name]
    assert words in faults[0][1]


@pytest.mark.parametrize("values", TAKEN)
def test_taken(values):
    assert list(find_ineffective_fields(values)) == []


def test_names_are_pefts_own():
    from peft import LoraConfig

    names = {field.name for field in fields(LoraConfig)}
    assert names >= {name for values, *_ in REFUSED for name in values}
    assert names >= {*SWITCHES, *(switch for switch, _ in SWITCHES.values())}


def test_what_peft_writes_itself_trains_again(recipe, impruver_train, tmp_path):
    from peft import LoraConfig

    LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {"peft_type", "peft_version", "qalora_group_size", "megatron_core"} < written.keys()
    code, _, err = impruver_train(recipe(lora=written), "--dry_run")
    assert code == 0, err
    code, _, err = impruver_train(recipe(lora={"peft_type": "IA3", "eva_config": {"rho": 2}, "revision": "v1"}))
    assert code == 2
    assert "3 faults in the recipe" in err
    assert "recipe.yaml:1: lora.peft_type: 'IA3': what is trained is LORA" in err


def test_methods_about_quantization_are_told_before_weights(recipe, impruver_train):
    code, _, err = impruver_train(recipe(lora={"use_qalora": True}), "--dry_run")
    assert code == 2
    assert "lora.use_qalora: peft has it for bases in GPTQ alone" in err
    loftq = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    assert "lora.init_lora_weights: peft quantizes for loftq on a GPU" in impruver_train(recipe(lora=loftq)).err
    with pytest.raises(ImpruverError, match="load_in_4bit"):
        check_quantization(loftq, 4, None, "cuda")
    check_quantization({"use_qalora": True}, None, {"quant_method": "gptq"}, "cuda")
    check_quantization(loftq, None, None, "cuda")
