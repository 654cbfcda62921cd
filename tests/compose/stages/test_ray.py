"""Stages on a Ray cluster: the bytes of this machine, also when a node is lost; one message where none can run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import ray_cluster
from support.cli import has_content, script, wait_for

pytest.importorskip("ray")

# Imports a module beside it; where a file `wait` is, it stays with row 1050 of the first data set until that is gone.
SLOW = """
import time
from pathlib import Path

from more import text_of

def conversation(row):
    if row["n"] == 1050 and Path(row["folder"], "wait").exists():
        Path(row["folder"], "waiting").write_text("x")
        while Path(row["folder"], "wait").exists():
            time.sleep(0.05)
    return [{"role": turn["role"], "content": text_of(turn)} for turn in row["messages"]]
"""
MORE = "def text_of(turn):\n    return turn['content'].upper()\n"


@pytest.fixture
def cluster():
    """The process of a cluster of two nodes, and its address."""
    command = [sys.executable, ray_cluster.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def data(files, tmp_path):
    """Two data sets, with near-duplicates between them, and keys of a recipe."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "more.py").write_text(MORE)
    rows = [{"n": n, "folder": str(tmp_path), **row} for n, row in enumerate(files.unlike(1200))]
    files.write("0.jsonl", rows)
    files.write("1.jsonl", [{**row, "n": 0} for row in rows[:400:2]] + [{**rows[0], "n": 0, "messages": [{}]}])
    sets = [{"name": f"{number}.jsonl", "converter": "slow.conversation"} for number in range(2)]
    return {"datasets": sets, "dedup": {"threshold": 0.6}, "split": {"val_rows": 50}}


def contents():
    return {path.name: path.read_bytes() for path in sorted(Path("out").glob("*.jsonl"))}


def test_a_cluster_that_loses_a_node_gives_the_bytes_of_this_machine(cluster, data, composed, recipe):
    composed(**data)
    expected = contents()
    assert len(expected["train.dropped.jsonl"].splitlines()) > 150
    shutil.rmtree("out")
    shutil.rmtree("cache/compose")
    process, address = cluster
    Path("wait").touch()
    section = {"engine": "ray", "address": address, "work_dir": "shared"}
    command = [script("impruver-compose"), "--config", str(recipe(**data, compose=section))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: has_content("waiting"), run)
    process.stdin.write("kill\n")
    process.stdin.flush()
    assert process.stdout.readline() == "killed\n"
    Path("wait").unlink()
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "2 nodes, 2 processors" in err
    assert contents() == expected
    assert len(list(Path("shared/compose").glob("*/*.arrow"))) == 3
    assert not Path("cache/compose").exists()


def test_a_stopped_run_on_a_cluster_of_its_own_leaves_nothing_and_goes_on(data, composed, recipe):
    composed(**data)
    expected = contents()
    shutil.rmtree("out")
    shutil.rmtree("cache/compose")
    Path("wait").touch()
    command = [script("impruver-compose"), "--config", str(recipe(**data, compose={"engine": "ray"}))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: has_content("waiting"), run)
    below = psutil.Process(run.pid).children(recursive=True)
    assert any("raylet" in each.name() for each in below)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 143, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
    assert list(Path("out").iterdir()) == []
    Path("wait").unlink()
    composed(**data)
    assert contents() == expected


@pytest.mark.slow
def test_a_task_that_ends_its_worker_again_and_again_is_told(data, as_process, recipe, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os\n\ndef conversation(row):\n    return os._exit(1) if row['n'] > 1100 else row['messages']\n"
    )
    run = as_process("--config", recipe(**data, compose={"engine": "ray"}))
    assert run.returncode == 2, run.stderr
    assert "a Ray worker was lost 4 times in the same task" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "recipe.yaml:1: compose.address: nothing answers at 127.0.0.1:1"),
        ("ray://head:10001", "'ray://head:10001' is not auto, nor HOST:PORT"),
        ("head", "'head' is not auto, nor HOST:PORT"),
        ("auto", "compose.address: nothing answers at 127.0.0.1:1"),  # which RAY_ADDRESS names
    ],
)
def test_an_address_where_no_cluster_is(address, message, files, refused, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    files.write("data.jsonl", files.unlike(3))
    assert message in refused(compose={"engine": "ray", "address": address})


def test_without_ray_it_says_what_to_install(files, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    files.write("data.jsonl", files.unlike(3))
    assert "compose.engine: ray needs pip install 'impruver-compose[ray]'" in refused(compose={"engine": "ray"})
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
