"""Work in several processes, cut off and gone on with: the same bytes, nothing lost, little repeated."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from impruver_compose.storage import ROWS
from impruver_compose.template_checks import PROBED
from impruver_core.io.integrity import write_record
from support.cli import has_content, is_ended, script, wait_for

# Notes each row that it converts; where a file `wait` is, it stays with row 2100 until somebody ends the process.
NOTING = """
import os, time
from pathlib import Path

def noted(row):
    with open("noted", "a") as file:
        file.write(f"{row['set']} {row['n']}\\n")
    if row["n"] == 2100 and Path("wait").exists():
        Path("waiting").write_text(str(os.getpid()))
        time.sleep(60)
    return row["messages"]
"""

SETS, LONG, SHORT = 3, 3 * ROWS - 500, PROBED + 40


@pytest.fixture
def sets(files, tmp_path):
    """Three data sets, the first of three shards; sections of a recipe."""
    (tmp_path / "noting.py").write_text(NOTING)
    for number in range(SETS):
        rows = files.unlike(LONG if number == 0 else SHORT, start=number * 5000)
        files.write(f"{number}.jsonl", [{"set": number, "n": n, **row} for n, row in enumerate(rows)])
    return [{"name": f"{number}.jsonl", "converter": "noting.noted"} for number in range(SETS)]


def noted():
    """How many rows of each data set were converted since the last look, but for those that every start probes."""
    path = Path("noted")
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [sum(int(each) == number and int(n) >= PROBED for each, n in lines) for number in range(SETS)]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def start(config, *flags):
    command = [script("impruver-compose"), "--config", str(config), "--num_proc", "2", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_any_number_of_processes_writes_the_same_bytes(sets, composed, as_process, recipe):
    config = recipe(datasets=sets)
    for number in ("3", "2"):
        run = as_process("--config", config, "--num_proc", number)
        assert run.returncode == 0, run.stderr
        assert noted() == [LONG - PROBED, 40, 40]
        several = contents("out")
        shutil.rmtree("cache/compose")
    composed("--num_proc", "1", datasets=sets)
    assert contents("out") == several


def test_only_a_changed_data_set_is_encoded_again(sets, composed, files):
    composed(datasets=sets)
    assert noted() == [LONG - PROBED, 40, 40]
    before = contents("out")
    composed(datasets=sets)
    assert noted() == [0, 0, 0]
    assert contents("out") == before
    rows = files.read("1.jsonl")
    files.write("1.jsonl", rows[:-1])
    composed(datasets=sets)
    assert noted() == [0, 39, 0]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_stopped_run_is_gone_on_with(name, sets, composed, recipe, tmp_path):
    config = recipe(datasets=sets)
    Path("wait").touch()
    process = start(config)
    wait_for(lambda: has_content("waiting"), process)
    worker = int(Path("waiting").read_text())
    for _ in range(100):  # the other worker goes on meanwhile
        if len(list(Path("cache/compose").rglob("0*.arrow"))) == 4:
            break
        time.sleep(0.1)
    Path("wait").unlink()
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(getattr(signal, name))
    code = process.wait(30)
    err = process.stderr.read()
    assert code == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}[name], err
    assert "Traceback" not in err
    assert is_ended(worker)
    assert list((tmp_path / "out").iterdir()) == []
    noted()
    composed(datasets=sets)
    assert noted() == [LONG - 2 * ROWS, 0, 0]
    resumed = contents("out")
    shutil.rmtree("cache/compose")
    composed(datasets=sets)
    assert contents("out") == resumed


def test_a_killed_worker_is_told(sets, recipe):
    Path("wait").touch()
    process = start(recipe(datasets=sets))
    wait_for(lambda: has_content("waiting"), process)
    os.kill(int(Path("waiting").read_text()), signal.SIGKILL)
    assert process.wait(30) == 2
    err = process.stderr.read()
    assert f"a worker process was killed (number {Path('waiting').read_text()}, SIGKILL), most likely" in err
    assert "--num_proc" in err
    assert "Traceback" not in err


def test_a_broken_shard_is_made_again(sets, composed):
    composed(datasets=sets)
    before = contents("out")
    noted()
    shard = max(Path("cache/compose").rglob("0*.arrow"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    composed(datasets=sets)
    assert noted() == [ROWS, 0, 0]
    assert contents("out") == before


def test_another_converter_text_or_setting_is_encoded_anew(sets, composed, tmp_path):
    composed(datasets=sets[1:2])
    (tmp_path / "noting.py").write_text(NOTING + "\n# changed\n")
    noted()
    composed(datasets=sets[1:2])
    assert noted()[1] == 40
    composed(datasets=[sets[1] | {"only_target_loss": False}])
    assert noted()[1] == 40
    composed(datasets=[sets[1] | {"weight": 2}], dedup={"threshold": 0.9})
    assert noted()[1] == 0


def test_entries_that_nobody_used_for_long_go(sets, composed):
    composed(datasets=sets[1:2])
    (old,) = Path("cache/compose").iterdir()
    os.utime(old, (1, 1))
    composed(datasets=sets[2:])
    assert old not in set(Path("cache/compose").iterdir())


def test_a_full_disk_is_told_with_what_is_needed(sets, composed, as_process, recipe, small_disk):
    small = small_disk(1 << 20)
    composed(datasets=sets[1:])
    before = contents("out")
    config = recipe(datasets=sets)
    run = as_process("--config", config, "--num_proc", "2", IMPRUVER_CACHE=str(small))
    assert (run.returncode, run.stdout) == (2, "")
    assert "B are needed" in run.stderr
    assert "Traceback" not in run.stderr
    assert contents("out") == before
    run = as_process("--config", recipe(datasets=sets, train_path=f"{small}/train.jsonl", val_path="out2/val"))
    assert (run.returncode, run.stdout) == (2, "")
    assert "B are needed" in run.stderr
    assert [path.name for path in small.iterdir() if "train" in path.name] == []
    keys = {"split": {"val_ratio": 0.9}, "train_path": "3/t", "val_path": f"{small}/val.jsonl"}
    run = as_process("--config", recipe(datasets=sets, **keys))
    assert (run.returncode, run.stdout) == (2, "")
    assert f"{small}: " in run.stderr  # not the folder that has room
    assert [*small.glob("*val*"), *Path("3").iterdir()] == []


def test_the_day_of_the_first_run_is_kept(composed, files, tokenizer):
    template = tokenizer.chat_template.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
    files.write("data.jsonl", files.unlike(5))
    keys = {"tokenizer": {"chat_template": template}}
    composed(**keys)
    (day,) = Path("cache/compose").rglob("day")
    write_record(day, "2001-02-03")
    next(day.parent.glob("0*.arrow")).unlink()
    done = composed(**keys)
    assert all("03 Feb 2001" in tokenizer.decode(row["input_ids"]) for row in done.train)
    assert json.dumps(done.manifest).count("2001-02-03") == 1


WITH_TORCH = """
def judged(row):
    import torch

    assert torch.randn(200, 200).mm(torch.randn(200, 200)).shape == (200, 200)
    return row["messages"]
"""


def test_a_converter_that_computes_with_torch_goes_on_in_workers(recipe, as_process, files, tmp_path):
    pytest.importorskip("torch")  # its threads are the parent's own: in a fork it would wait for them
    (tmp_path / "judging.py").write_text(WITH_TORCH)
    files.write("data.jsonl", files.unlike(ROWS + 1))
    config = recipe({"converter": "judging.judged"})
    done = as_process("--config", config, "--num_proc", "2", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [0, -2])
def test_num_proc_below_one(number, refused, files):
    files.write("data.jsonl", [files.chat("a", "b")])
    assert f"--num_proc must be at least 1, not {number}" in refused("--num_proc", number)


def test_disk_space_is_estimated_for_the_chosen_rows_only(composed, files, monkeypatch):
    asked = []
    monkeypatch.setattr("impruver_core.io.atomic.check_free_space", lambda path, needed: asked.append(needed))
    rows = files.write("data.jsonl", files.unlike(ROWS))
    composed(data={"split": "train[:5]+train[-5:]"})
    assert max(asked) < 2 * rows.stat().st_size
