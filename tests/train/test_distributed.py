"""Two processes on a CPU, over gloo, started as a user would: the same losses as one, one writer, one end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import has_content, wait_for
from support.jsonl import read_jsonl
from support.trainers import put_beside_recipe

HERE = Path(sys.executable).parent
IMPRUVER_RUN = [HERE / "impruver", "run", "--nproc_per_node", "2", "finetune"]
LAUNCHERS = {  # and how many processes they start
    "impruver run": (IMPRUVER_RUN, 2),
    "torchrun": ([HERE / "torchrun", "--standalone", "--nproc_per_node", "2", "-m", "impruver_train"], 2),
    "accelerate": ([HERE / "accelerate", "launch", "--cpu", "-m", "impruver_train"], 1),  # on CPUs two want MPI
}


def start(command, config, **environment):
    return subprocess.Popen(
        [str(word) for word in command] + ["--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} | environment,
        start_new_session=True,
    )


def ended(process, seconds=240):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_losses_are_those_of_one_process(launcher, recipe, impruver_train, uneven, tmp_path):
    command, processes = LAUNCHERS[launcher]

    def written(name, batch):
        # Two processes evaluate 6 rows at a time: beside the seventh are 5 that must not count.
        trainer = {"max_steps": 3, "per_device_train_batch_size": batch, "learning_rate": 1e-3}
        trainer |= {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 3}
        keys = {"val_path": str(uneven), "trainer": trainer, "lora": {"lora_dropout": 0.0}}
        return recipe(f"{name}.yaml", output_dir=str(tmp_path / name), **keys)

    code, out, err = ended(start(command, written("launched", 4 // processes)))
    assert code == 0, err
    assert out.count("wrote the adapter") == 1
    assert "reducer.cpp" not in err
    code, _, err = impruver_train(written("alone", 4))
    assert code == 0, err
    logs = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("alone", "launched")]
    losses = [[row.get("loss", row.get("eval_loss")) for row in rows] for rows in logs]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert len(losses[0]) == 4
    caches = list((tmp_path / "cache" / "tokens").iterdir())
    assert len(caches) == 2
    assert all({path.name for path in cache.iterdir()} == {"rows.arrow", "facts.json"} for cache in caches)
    manifest = json.loads((tmp_path / "launched/impruver.json").read_text(encoding="utf-8"))
    assert manifest["counts"]["steps"] == 3


def test_resuming_with_two_processes_equals_an_unstopped_run(recipe, tmp_path):
    put_beside_recipe("stopper", tmp_path)
    trainer = {"class": "stopper.StopTrainer", "max_steps": 6, "per_device_train_batch_size": 2}

    def run(name, **environment):
        config = recipe(f"{name}.yaml", output_dir=str(tmp_path / name), trainer=trainer, lora={"lora_dropout": 0.2})
        return ended(start(IMPRUVER_RUN, config, **environment))

    assert run("straight")[0] == 0
    code, out, err = run("stopped", STOP="3")
    assert (code, out) == (1, ""), err  # the launcher's own
    saved = tmp_path / "stopped/stopped-3"
    assert err.count(f"stopped by SIGTERM: saved after step 3 in {saved}") == 1
    assert err.count("impruver-train:") == 1
    assert (saved / "impruver.json").exists()
    code, out, err = run("stopped")
    assert code == 0, err
    assert err.count(f"resumes from {saved}") == 1
    for name in ("metrics.jsonl", "adapter_model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_what_is_said_is_said_once(recipe, tmp_path):
    trainer = {"max_steps": 1, "per_device_train_batch_size": 5}
    code, out, err = ended(start([*IMPRUVER_RUN, "--dry_run"], recipe(trainer=trainer)))
    assert code == 0, err
    repeated = "repeated: 2 of the 48 are seen twice an epoch, as they are no multiple of 10 (2 processes by 5)"
    assert out.count(repeated) == 1
    assert out.count("in each of 2 processes") == 1
    code, out, err = ended(start(IMPRUVER_RUN, recipe(trainer=trainer, train_path="nowhere.jsonl")))
    assert (code, out) == (1, "")
    assert err.count("impruver-train: error:") == 1
    assert "nowhere.jsonl is not there" in err


def test_a_signal_that_comes_while_the_processes_agree_counts_the_next_time(monkeypatch):
    import torch
    from impruver_train import signals

    stop, coming = signals.StopSignal(), [signal.SIGTERM]
    monkeypatch.setattr(signals, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: [stop.handle(each, None) for each in coming])
    assert signals.get_signal_of_any_rank(stop, torch.device("cpu")) == 0
    coming.clear()
    assert signals.get_signal_of_any_rank(stop, torch.device("cpu")) == signal.SIGTERM


def workers(pid):
    """Rank → process of impruver_train below a launcher."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid and b"impruver_train" in words:
            variables = (path / "environ").read_bytes().split(b"\0")
            found[next(int(each[5:]) for each in variables if each.startswith(b"RANK="))] = int(path.name)
    return found


@pytest.mark.parametrize(("rank", "training"), [(1, True), (0, False)], ids=["in a step", "at the start"])
def test_a_killed_rank_ends_all_with_one_message(rank, training, recipe, tmp_path):
    trainer = {"max_steps": 100000, "save_strategy": "no", "per_device_train_batch_size": 2}
    process = start(IMPRUVER_RUN, recipe(trainer=trainer))
    metrics = tmp_path / "out/metrics.jsonl"
    wait_for(lambda: has_content(metrics) if training else len(workers(process.pid)) == 2, process)
    found = workers(process.pid)
    assert set(found) == {0, 1}
    os.kill(found[rank], signal.SIGKILL)
    code, out, err = ended(process, 90)
    assert (code, out) == (2, ""), err
    told = err[err.index("impruver: error:") :].splitlines()
    assert len(told) == 1, err
    assert f"rank {rank} of this run (process {found[rank]}) was killed by SIGKILL" in told[0]
    assert "give the same command again" in told[0]
    for word in ("Traceback", "closed by peer", "stopp", "impruver-train: error", "torch"):
        assert word not in err, err
    for pid in found.values():
        assert not Path(f"/proc/{pid}").exists()
