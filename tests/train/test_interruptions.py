"""The command as a process: real signals, a real kill, a real full disk, a limit of memory; nothing whole is lost."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.cli import wait_for
from support.jsonl import read_jsonl, write_jsonl
from support.trainers import put_beside_recipe

TRAINER = {
    "class": "stopper.StopTrainer",
    "max_steps": 8,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
}


@pytest.fixture
def start(parts, recipe, tmp_path, monkeypatch):
    """Starts the command in `tmp_path` with a stopping Trainer; keyword arguments are the environment's.

    `terminal`: a pseudo-terminal's end that becomes the process's own, in place of pipes.
    """
    put_beside_recipe("stopper", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(config, *flags, terminal=None, **environment):
        for name in ("reached", "go"):
            Path(name).unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "impruver_train", "--config", str(config), *map(str, flags)],
            stdin=terminal,
            stdout=terminal or subprocess.PIPE,
            stderr=terminal or subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    return run


def reached(process):
    """Until the process came to where it waits."""
    wait_for(Path("reached").exists, process)


def ended(process):
    """(exit code, stdout, stderr)"""
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def test_signals_and_a_kill_then_the_same_result(recipe, start, impruver_train, tiny, tmp_path):
    keys = {"lora": {"lora_dropout": 0.2}, "trainer": TRAINER | {"save_strategy": "steps", "save_steps": 3}}
    assert impruver_train(recipe("straight.yaml", **keys, output_dir=str(tmp_path / "straight")))[0] == 0
    config, out = recipe(**keys), tmp_path / "out"
    process = start(config, WAIT="2")
    reached(process)
    process.send_signal(signal.SIGTERM)
    Path("go").touch()
    code, stdout, err = ended(process)
    assert (code, stdout) == (143, ""), err
    assert f"saved after step 2 in {out / 'stopped-2'}; the same command resumes from there" in err
    metrics = [row["step"] for row in read_jsonl(out / "metrics.jsonl")]
    assert metrics == [1, 2]

    process = start(config, WAIT="6", WAIT_IN="save")  # the second checkpoint that the recipe asks for
    reached(process)
    process.kill()
    assert process.wait(30) == -9
    assert {path.name for path in out.glob("*-*")} == {"checkpoint-3", "checkpoint-6"}
    assert not (out / "checkpoint-6" / "impruver.json").exists()

    process = start(config, WAIT="5")
    reached(process)
    assert {path.name for path in out.glob("*-*")} == {"checkpoint-3"}
    second, _, err = ended(start_beside(config))
    assert second == 2
    assert "another impruver-train is at work" in err
    process.send_signal(signal.SIGINT)
    Path("go").touch()
    code, _, err = ended(process)
    assert code == 130, err
    assert "resumes from" in err
    assert f"stopped by Ctrl+C: saved after step 5 in {out / 'stopped-5'}" in err

    code, stdout, err = ended(start(config))
    assert code == 0, err
    assert f"impruver-chat --output_dir {out}" in stdout
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "straight").iterdir()}


def start_beside(config):
    command = [sys.executable, "-m", "impruver_train", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_signal_or_an_early_one_ends_at_once(recipe, start, tmp_path):
    config = recipe(trainer=TRAINER)
    process = start(config, WAIT="1")
    reached(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)  # a launcher's echo of the first one comes sooner
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == -signal.SIGTERM, err
    assert not list((tmp_path / "out").glob("*-*"))
    process = start(config)
    while "parameters:" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 143, err
    assert "saved" not in err


def test_a_terminal_that_goes_away_loses_nothing(recipe, start, impruver_train, tmp_path, tiny):
    config, (ours, its) = recipe(trainer=TRAINER), os.openpty()
    process = start(config, terminal=its, WAIT="2")
    os.close(its)
    reached(process)
    os.close(ours)  # as when a connection breaks: its processes get SIGHUP, what they write fails
    Path("go").touch()
    assert process.wait(120) == 129
    assert (tmp_path / "out/stopped-2/impruver.json").exists()
    assert impruver_train(config)[0] == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "out/metrics.jsonl")] == list(range(1, 9))


def test_no_number_names_step_rows_and_the_last_good_checkpoint(recipe, start, parts, tmp_path, tiny):
    trainer = TRAINER | {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    code, stdout, err = ended(start(recipe(trainer=trainer), NAN="4"))
    assert (code, stdout) == (3, ""), err
    out = tmp_path / "out"
    assert "the loss is nan after step 4" in err
    assert f"the last good checkpoint is {out / 'checkpoint-2'}" in err
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]
    lines = [int(number) for number in err.partition("on lines ")[2].partition(" of ")[0].split(",")]
    rows = read_jsonl(parts / "train.jsonl")
    seen = sorted(read_jsonl("seen"))
    assert sorted(rows[line - 1]["input_ids"] for line in lines) == seen
    assert len(seen) == 6
    assert read_jsonl(out / "metrics.jsonl")[-1]["loss"] is None


def test_memory_that_is_not_enough_tells_what_to_change(recipe, start, parts, tmp_path, tiny):
    rows = [{"input_ids": [5 + n % 300] * 64, "labels": [7] * 64} for n in range(256)]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    trainer = TRAINER | {"per_device_train_batch_size": 256, "max_steps": 2}
    code, stdout, err = ended(start(recipe(train_path=str(data), trainer=trainer), MEMORY="1"))
    assert (code, stdout) == (2, ""), err
    told = err[err.index("out of memory") :].splitlines()
    assert "trainer.per_device_train_batch_size: 1 with trainer.gradient_accumulation_steps: 512" in told[1]
    assert "MB less" in told[1]
    assert any("gradient_checkpointing: true" in line for line in told)


KILLER = """
import multiprocessing, os, signal
from transformers import Trainer

class KillTrainer(Trainer):
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 3:
            os.kill(multiprocessing.active_children()[-1].pid, signal.SIGKILL)
        return loss
"""


def test_a_killed_worker_of_the_loader_is_one_message(recipe, as_process, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER, encoding="utf-8")
    trainer = {"max_steps": 12, "per_device_train_batch_size": 2, "dataloader_num_workers": 2}
    trainer |= {"save_strategy": "steps", "save_steps": 2, "dataloader_persistent_workers": True}
    config, out = recipe(trainer=trainer | {"class": "killer.KillTrainer"}), tmp_path / "out"
    done = as_process("--config", config)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    told = done.stderr[done.stderr.index("impruver-train: error:") :].splitlines()
    assert len(told) == 1, done.stderr
    assert " was killed by SIGKILL: " in told[0]
    assert "the DataLoader worker with process id " in told[0]
    assert "trainer.dataloader_num_workers" in told[0]
    assert "Traceback" not in done.stderr
    kept = max(out.glob("*-*"))  # batches that were ready may have trained a little further
    assert kept.name in ("checkpoint-2", "checkpoint-4")
    assert f"it resumes from {kept}" in told[0]


def test_a_full_disk_is_told_before_and_is_a_clean_stop(recipe, start, small_disk, impruver_train, tmp_path):
    disk = small_disk(2 << 20)
    out = disk / "out"
    trainer = TRAINER | {"save_strategy": "steps", "save_steps": 1}
    many = recipe("many.yaml", output_dir=str(out), trainer=trainer | {"max_steps": 400})
    code, _, err = impruver_train(many)
    assert code == 2
    assert "are needed" in err
    assert "trainer.save_total_limit: 1" in err
    config = recipe(output_dir=str(out), trainer=trainer | {"save_total_limit": 2})
    process = start(config, WAIT="4", WAIT_IN="save")
    reached(process)
    whole = {path.name for path in out.glob("checkpoint-*") if (path / "impruver.json").exists()}
    assert whole == {"checkpoint-2", "checkpoint-3"}
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(b"0" * (shutil.disk_usage(disk).free // 4096 * 4096))
    Path("go").touch()
    code, stdout, err = ended(process)
    assert (code, stdout) == (2, ""), err
    assert "the disk is full" in err
    assert f"resumes from {out / 'checkpoint-3'}" in err
    assert {path.name for path in out.glob("checkpoint-*")} == whole
    filler.unlink()
    assert impruver_train(config)[0] == 0
    rows = [row["step"] for row in read_jsonl(out / "metrics.jsonl")]
    assert rows == list(range(1, 9))


def test_a_tracker_that_is_away_never_stops_training(recipe, start, tmp_path, tiny):
    away = {
        "WANDB_MODE": "online",
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "1",
        "WANDB_DIR": str(tmp_path),
    }
    code, stdout, err = ended(start(recipe(trainer=TRAINER), "--report_to", "wandb", **away))
    assert code == 0, err
    assert stdout.startswith("wrote the adapter to")
    assert "WandbCallback failed" in err
    assert len(read_jsonl(tmp_path / "out" / "metrics.jsonl")) == 8
