"""The command as a process: its start, trackers read back, nothing on stdout but results."""

import json
import struct

import pytest
from support.cli import run_watching_imports
from support.jsonl import read_jsonl


def test_help_and_faults_are_quick_and_import_nothing_heavy(recipe, tmp_path):
    heavy = {"torch", "transformers", "datasets", "peft"}
    path = recipe(trainer={"learning_rat": 1}, lora={"q": 1})
    for flags, code in (["--help"], 0), (["--learning_rat"], 2), (["--config", path], 2):
        ended, err = run_watching_imports("impruver_train.cli", heavy, *flags)
        assert ended == f"[] {code}", err
    assert "learning_rate" in err


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes (wandb has no reader any more)."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_offline_is_read_back(recipe, as_process, tmp_path, tiny):
    run = as_process("--config", recipe("my_run.yaml"), "--report_to", "wandb", WANDB_DIR=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"wrote the adapter to {tmp_path / 'out'}; next: ")
    history, name, project = {}, None, None
    for record in wandb_records(next((tmp_path / "wandb").glob("offline-run-*/*.wandb"))):
        if record.WhichOneof("record_type") == "run":
            name, project = record.run.display_name, record.run.project
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                history[row["train/global_step"]] = row["train/loss"]
    assert (name, project) == ("my_run", "impruver")
    losses = [row["loss"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")]
    # logging_steps is 2: wandb gets the mean of each two steps
    assert history == pytest.approx({2: sum(losses[:2]) / 2, 4: sum(losses[2:]) / 2}, abs=1e-6)


def test_tensorboard_is_read_back(recipe, impruver_train, tmp_path, tiny, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    code, _, err = impruver_train(recipe(trainer={"report_to": "tensorboard", "logging_steps": 1}))
    assert code == 0, err
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    losses = [row["loss"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses)


def test_no_tracker_unless_asked_for(recipe, impruver_train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert impruver_train(recipe())[0] == 0
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / "out" / "runs").exists()


def test_explicit_bf16_on_a_cpu_without_it_warns_with_the_reason(recipe, impruver_train):
    from impruver_core.modeling.loading import has_bf16

    code, _, err = impruver_train(recipe(model={"dtype": "bf16"}), "--dry_run", "--quiet")
    assert code == 0
    assert ("30 times slower" in err) != has_bf16("cpu")


def test_what_the_tokenizer_warns_of_is_a_warning_of_ours(recipe, parts, as_process):
    tokenizer = {"name": str(parts / "base"), "special_tokens": {"pad_token": "<pad>", "pad_token_id": 7}}
    done = as_process("--config", recipe(tokenizer=tokenizer), "--dry_run", "--quiet")
    assert done.returncode == 0, done.stderr
    warning = "warning: tokenizer.special_tokens.pad_token_id: '<pad>' has the id 0, not 7; the text counts"
    assert warning in done.stderr.splitlines()


def test_transformers_notes_on_its_own_defaults_are_not_repeated(recipe, parts, as_process):
    model = {
        "name": None,
        "class": "transformers.GPT2LMHeadModel",
        "config_class": "transformers.GPT2Config",
        "config": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    }
    done = as_process("--config", recipe(model=model, lora=None, tokenizer={"name": str(parts / "base")}), "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "loss_type" not in done.stderr
