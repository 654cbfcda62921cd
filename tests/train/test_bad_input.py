"""Bad input: exit code 2, one message that names what and where, no traceback, nothing half-written."""

import json
import shutil

import pytest
from support.jsonl import read_jsonl, write_jsonl
from support.models import edit_json

GOOD = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}


@pytest.fixture
def refused(impruver_train, tmp_path):
    """Runs the command and returns its message; exit code 2, no traceback, nothing on stdout, nothing in output_dir."""

    def run(config, *flags, code=2):
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        ended, stdout, err = impruver_train(config, *flags)
        assert ended == code, err
        assert stdout == ""
        assert "Traceback" not in err
        assert err.count("impruver-train: error:") == 1
        after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert after == before
        return err[err.index("impruver-train: error:") :]

    return run


BAD_ROWS = {
    "an id beyond the vocabulary": (
        [GOOD, {"input_ids": [5, 999], "labels": [-100, 5]}],
        "line 2",
        "vocabulary of 400",
    ),
    "a label beyond the vocabulary": ([GOOD, {"input_ids": [5, 6], "labels": [-100, 400]}], "line 2", "id 400"),
    "an id that is too large, beside one that is not": (
        [{"input_ids": [2**40, 6], "labels": [5, 6]}],
        "line 1",
        str(2**40),
    ),
    "a negative id": ([{"input_ids": [5, -1], "labels": [-100, 5]}], "line 1", "-1"),
    "labels of another length": ([GOOD, GOOD, {"input_ids": [5, 6], "labels": [5]}], "line 3", "length"),
    "ids that are text": ([{"input_ids": "5 6", "labels": [5, 6]}], "line 1", "input_ids"),
    "ids that are fractions": ([{"input_ids": [5, 6.5], "labels": [5, 6]}], "line 1", "input_ids"),
    "no labels": ([{"input_ids": [5, 6]}], "line 1", "labels"),
    "an empty row": ([{"input_ids": [], "labels": []}], "line 1", "empty"),
    "a messages row": ([{"messages": [{"role": "user", "content": "a"}]}], "line 1", "impruver-compose"),
    "a mask that hides all": (
        [GOOD | {"attention_mask": [0, 0, 0]}] * 2,
        "nothing to train on",
        "2 rows",
    ),
    "nothing to learn": ([{"input_ids": [5, 6], "labels": [-100, -100]}] * 3, "nothing to train on", "3 rows"),
    "only a first label, which is never a target": (
        [{"input_ids": [5, 6], "labels": [5, -100]}],
        "nothing to train on",
        "",
    ),
    "no rows": ([], "no rows", "impruver-compose"),
    "a row longer than the positions": ([{"input_ids": [5] * 65, "labels": [5] * 65}], "line 1", "64 positions"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(name, recipe, refused, tmp_path, tiny):
    rows, *wanted = BAD_ROWS[name]
    data = write_jsonl(tmp_path / "bad.jsonl", rows)
    for flags in ([], ["--dry_run"]):
        message = refused(recipe(train_path=str(data)), *flags)
        assert str(data) in message
        assert all(part in message for part in wanted), message


def test_malformed_line(recipe, refused, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps(GOOD) + '\n{"input_ids": [1,\n')
    message = refused(recipe(train_path=str(data)))
    assert f"{data}, line 2" in message


def test_a_bad_row_leaves_no_cache_that_hides_it(recipe, refused, tmp_path, tiny):
    data = write_jsonl(tmp_path / "bad.jsonl", [GOOD, {"input_ids": [5], "labels": []}])
    assert refused(recipe(train_path=str(data))) == refused(recipe(train_path=str(data)))


def test_data_file_missing(recipe, refused, tmp_path):
    message = refused(recipe(train_path=str(tmp_path / "none.jsonl")))
    assert "none.jsonl" in message
    assert "impruver-compose" in message


@pytest.mark.parametrize("part", ["tokenizer", "template"])
def test_rows_of_another_tokenizer_or_template(part, recipe, refused, parts, tmp_path):
    data = shutil.copy(parts / "train.jsonl", tmp_path / "train.jsonl")
    made = {"impruver": 1, "tool": "impruver-compose", part: {"fingerprint": "0" * 64}}
    (tmp_path / "train.jsonl.manifest.json").write_text(json.dumps(made))
    message = refused(recipe(train_path=str(data)))
    assert f"made with another {'tokenizer' if part == 'tokenizer' else 'chat template'}" in message


ARGUMENTS = [
    ({"trainer": {"learning_rat": 1}}, ["trainer.learning_rat", "learning_rate", "recipe.yaml:1"]),
    ({"trainer": {"max_steps": "many"}}, ["trainer.max_steps", "many"]),
    ({"trainer": {"lr_scheduler_type": "cosin"}}, ["cosin", "cosine"]),
    ({"trainer": {"report_to": "wandbb"}}, ["wandbb", "wandb"]),
    ({"trainer": {"packing": "yes, please"}}, ["trainer.packing", "neither true nor false"]),
    ({"trainer": {"packing": True, "group_by_length": True}}, ["trainer.packing", "one length"]),
    ({"trainer": {"hub_token": "hf_x"}}, ["trainer.hub_token", "HF_TOKEN"]),
    ({"lora": {"task_type": "SEQ_CLS"}}, ["lora.task_type", "CAUSAL_LM"]),
    ({"lora": {"alpha_pattern": {"(": 4}}}, ["lora.alpha_pattern", "'('", "regular expression"]),
    ({"lora": {"rank_pattern": 4}}, ["lora.rank_pattern", "no mapping"]),
    ({"trainer": {"eval_strategy": "steps"}}, ["trainer.eval_strategy", "val_path"]),
    (
        {"trainer": {"per_device_train_batch_size": 0}},
        ["recipe.yaml:1: trainer.per_device_train_batch_size", "below 1"],
    ),
    ({"trainer": {"learning_rate": -1.0}}, ["trainer.learning_rate", "below 0"]),
    ({"trainer": {"adam_beta2": 1.0}}, ["trainer.adam_beta2", "not below 1"]),
    ({"trainer": {"seed": -1}}, ["trainer.seed", "below 0"]),
    ({"trainer": {"log_level": "loud"}}, ["trainer.log_level", "warning"]),
    ({"trainer": {"train_sampling_strategy": "longest"}}, ["trainer.train_sampling_strategy", "group_by_length"]),
    ({"trainer": {"max_steps": -1, "num_train_epochs": 0}}, ["trainer.num_train_epochs", "train nothing"]),
    ({"trainer": {"load_best_model_at_end": True}}, ["trainer.load_best_model_at_end", "eval_strategy"]),
    ({"trainer": {"optim": "adamw_torch_4bit"}}, ["torchao", "impruver-train[torchao]"]),
    ({"trainer": {"fsdp": True}}, ["trainer.fsdp", "over GPUs only"]),
    ({"trainer": {"deepspeed": {"zero_optimization": {"stage": 2}}}}, ["trainer.deepspeed", "pip install deepspeed"]),
    ({"ddp": {"ddp_backendd": "gloo"}}, ["ddp.ddp_backendd", "ddp_backend"]),
    ({"ddp": {"ddp_backend": "ncll"}}, ["recipe.yaml:1: ddp.ddp_backend", "'ncll' is none of nccl, gloo"]),
    ({"lora": {"lora_alfa": 8}}, ["lora.lora_alfa", "lora_alpha"]),
    ({"lora": {"target_modules": ["q_pro"]}}, ["q_pro", "q_proj"]),
    ({"lora": {"target_modules": 3}}, ["lora.target_modules: 3", "texts"]),
    ({"lora": {"inference_mode": True}}, ["lora.inference_mode", "nothing"]),
    ({"lora": {"trainable_token_indices": [4000]}}, ["lora: ", "4000"]),
    ({"model": {"class": "transformers.AutoModelForSequenceClassification"}}, ["model.class", "AutoModelForCausalLM"]),
    ({"lora": None, "model": {"class": "transformers.AutoModel"}}, ["model.class", "AutoModelForCausalLM"]),
    ({"model": {"class": "transformers.GPT2LMHeadModel"}}, ["model.class", "GPT2LMHeadModel"]),
    ({"lora": None, "model": {"load_in_4bit": True}}, ["load_in_4bit", "lora"]),
    ({"lora": None, "model": {"load_in_8bit": True}}, ["load_in_8bit", "lora"]),
    ({"model": {"class": "custom.llama.LlamaForCausalLM"}}, ["BitNet", "transformers.LlamaForCausalLM"]),
    ({"model": {"class": "custom.gigachat.DeepseekForCausalLM"}}, ["transformers.AutoModelForCausalLM"]),
    ({"model": {"class": "transformers.LlamaForCausalML"}}, ["model.class", "LlamaForCausalLM"]),
    ({"model": {"name": "./nowhere"}}, ["model.name", "./nowhere"]),
    ({"model": {"dtype": "fp16"}}, ["model.dtype", "CPU"]),
    ({"model": {"dtype": "fp32"}, "trainer": {"bf16": True}}, ["trainer.bf16", "model.dtype"]),
    ({"trainer": {"save_strategy": "steps", "save_steps": 0}}, ["trainer.save_steps", "not above 0"]),
    ({"trainer": {"save_total_limit": 0}}, ["trainer.save_total_limit", "below 1"]),
    ({"trainer": {"max_grad_norm": -1}}, ["trainer.max_grad_norm", "below 0"]),
    ({"trainer": {"save_strategy": "best"}}, ["trainer.save_strategy: best", "eval_strategy"]),
    ({"trainer": {"dataloader_drop_last": True, "per_device_train_batch_size": 64}}, ["48 rows", "batch of 64"]),
    ({"trainer": {"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}}, ["pip install galore-torch"]),
    ({"trainer": {"optim": "grokadamw"}}, ["pip install grokadamw"]),
    ({"trainer": {"metric_for_best_model": {"a": 1}}}, ["trainer: a value is not of the kind", "'dict' object"]),
    ({"trainer": {"metric_for_best_model": "foo"}}, ["trainer.metric_for_best_model: foo", "loss"]),
    ({"trainer": {"class": "transformers.Trainr"}}, ["trainer.class", "Trainer"]),
    ({"trainer": {"class": "yaml.safe_load"}}, ["trainer.class: yaml.safe_load", "no subclass"]),
    ({"trainer": {"class": 5}}, ["trainer.class: 5", "transformers.Trainer"]),
    ({"trainer": {"resume_from_checkpoint": 5}}, ["trainer.resume_from_checkpoint: 5", "a path"]),
    ({"lora": {"target_modules": [1, 2]}}, ["lora.target_modules", "texts"]),
    ({"trainer": {"class": "transformers.Seq2SeqTrainer"}}, ["trainer.class: transformers.Seq2SeqTrainer"]),
    ({"trainer": {"max_steps": 0}}, ["trainer.max_steps", "0 steps"]),
    ({"trainer": {"lr_scheduler_type": "cosine_with_min_lr"}}, ["trainer.lr_scheduler_kwargs", "min_lr"]),
    ({"trainer": {"lr_scheduler_kwargs": {"foo": 1}}}, ["trainer.lr_scheduler_kwargs", "foo"]),
    ({"trainer": {"gradient_checkpointing_kwargs": {"foo": 1}}}, ["trainer.gradient_checkpointing_kwargs", "foo"]),
    ({"model": {"attn_implementation": "flex_attention"}}, ["model.attn_implementation", "CPU"]),
    ({"output_dir": None}, ["output_dir"]),
    ({"train_path": None}, ["train_path"]),
]


def test_the_same_is_told_by_the_dry_run_before_weights(recipe, refused, parts, tmp_path, tiny):
    """No weights are there to be loaded: what is told is told without them."""
    shutil.copytree(parts / "base", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"")
    beyond = write_jsonl(tmp_path / "beyond.jsonl", [{"input_ids": [5, 999], "labels": [-100, 5]}])
    cases = [
        ({"train_path": str(beyond)}, "vocabulary of 400"),
        ({"lora": {"target_modules": ["q_pro"]}}, "q_proj"),
        ({"model": {"class": "transformers.LlamaForCausalML"}}, "LlamaForCausalLM"),
    ]
    for keys, wanted in cases:
        model = {"name": str(tmp_path / "bare")} | keys.get("model", {})
        assert wanted in refused(recipe(**keys | {"model": model}), "--dry_run")


@pytest.mark.parametrize(("keys", "wanted"), ARGUMENTS, ids=lambda part: json.dumps(part)[:40])
def test_arguments(keys, wanted, recipe, refused):
    message = refused(recipe(**keys))
    assert all(part in message for part in wanted), message


def test_unsafe_weights(recipe, refused, parts, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(parts / "base", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    weights = AutoModelForCausalLM.from_pretrained(parts / "base").state_dict()
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    for flags in ([], ["--dry_run"]):
        message = refused(recipe(model={"name": str(tmp_path / "pickled")}), *flags)
        assert "safetensors" in message
        assert "convert" in message


def test_code_of_a_repository(recipe, refused, parts, tmp_path):
    shutil.copytree(parts / "base", tmp_path / "coded")
    auto = {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}
    edit_json(tmp_path / "coded/config.json", model_type="ours", auto_map=auto)
    message = refused(recipe(model={"name": str(tmp_path / "coded")}))
    assert "model.trust_remote_code: true" in message or "tokenizer.trust_remote_code: true" in message


def test_vocabulary_below_the_tokenizers(recipe, refused, parts, tiny):
    scratch = {"name": None, "class": "transformers.LlamaForCausalLM", "config_class": "transformers.LlamaConfig"}
    config = tiny.llama | {"vocab_size": 100}
    message = refused(recipe(lora=None, model=scratch | {"config": config}, tokenizer={"name": str(parts / "base")}))
    assert "model.config.vocab_size" in message


def test_a_value_of_the_configuration(recipe, refused, parts, tiny):
    scratch = {"name": None, "class": "transformers.LlamaForCausalLM", "config_class": "transformers.LlamaConfig"}
    for wrong in ({"hidden_size": "big"}, {"pad_token_id": 5000}):
        keys = {"model": scratch | {"config": tiny.llama | wrong}, "tokenizer": {"name": str(parts / "base")}}
        message = refused(recipe(lora=None, **keys))
        assert "error: model." in message


def test_more_layers_than_any_model_has(recipe, refused, parts, tiny):
    scratch = {"name": None, "class": "transformers.LlamaForCausalLM", "config_class": "transformers.LlamaConfig"}
    config = tiny.llama | {"num_hidden_layers": 2**31 - 1}
    message = refused(recipe(lora=None, model=scratch | {"config": config}, tokenizer={"name": str(parts / "base")}))
    assert "model.config: num_hidden_layers is 2,147,483,647, more than any model has" in message


def test_data_file_is_a_folder(recipe, refused, tmp_path):
    assert "is a folder" in refused(recipe(train_path=str(tmp_path)))


def test_eval_without_rows_is_told_by_the_dry_run_too(recipe, refused, impruver_train, tmp_path):
    path = recipe(trainer={"eval_strategy": "steps"})
    assert "val_path" in refused(path, "--dry_run")
    assert impruver_train(path, "--dry_run", "--val_path", str(tmp_path / "later.jsonl"))[0] == 0


def test_output_dir_is_a_file(recipe, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        message = refused(recipe(output_dir=str(tmp_path / place)))
        assert str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "mine"


def test_output_dir_with_files_of_others(recipe, refused, parts, tmp_path):
    message = refused(recipe(output_dir=str(parts / "base")), "--overwrite")
    assert "holds the base" in message
    shutil.copytree(parts / "base", tmp_path / "out")
    assert "impruver-train did not make" in refused(recipe(), "--overwrite")
    assert (parts / "base" / "model.safetensors").exists()


def test_loss_that_is_not_a_number_is_a_failed_check(recipe, impruver_train, tiny, tmp_path):
    path = recipe(lora=None, trainer={"learning_rate": 1e38, "max_steps": 8, "lr_scheduler_type": "constant"})
    code, stdout, err = impruver_train(path)
    assert (code, stdout) == (3, ""), err
    assert "is nan after step" in err or "is inf after step" in err or "no finite number after step" in err
    assert read_jsonl(tmp_path / "out" / "metrics.jsonl")[-1]["loss"] is None


def test_trial_steps_below_none(recipe, refused):
    assert "--trial_steps" in refused(recipe(), "--trial_steps", "-1")


def test_a_tied_output_beside_rows_of_new_tokens(recipe, refused, parts, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(parts / "base", tmp_path / "tied")
    edit_json(tmp_path / "tied/config.json", tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "tied").save_pretrained(tmp_path / "tied")
    keys = {
        "model": {"name": str(tmp_path / "tied")},
        "lora": {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        "tokenizer": {"special_tokens": {"additional_special_tokens": ["<new>"]}},
    }
    assert "lm_head shares its weights" in refused(recipe(**keys), "--dry_run")


def test_a_token_given_as_a_flag_is_not_repeated(recipe, impruver_train):
    code, _, err = impruver_train(recipe(), "--set", "trainer.hub_token=hf_kept_to_oneself")
    assert code == 2
    assert "--set trainer.hub_token=…" in err
    assert "HF_TOKEN" in err
    assert "hf_kept_to_oneself" not in err
