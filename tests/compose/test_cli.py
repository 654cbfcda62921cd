"""The command as a process: its start, without torch, stopped from outside."""

import os

import pytest
from impruver_compose import output
from support.cli import run_python, run_watching_imports
from support.interruptions import stop_behind_train


def as_python(code, **environment):
    return run_python(code, environment=environment, check=True).stdout


STOPPER = """
import os, signal, time
from pathlib import Path

def stop(row):
    if row["question"] == "q7" and not Path("go").exists():
        os.kill(os.getpid(), getattr(signal, Path("signal").read_text()))
        time.sleep(5)
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
"""


LATE = """
from pathlib import Path

def comes(row):
    Path("out/val.jsonl").write_text("of another")
    return row["messages"]
"""


def test_help_and_faults_import_nothing_heavy(recipe, tmp_path):
    heavy = {"torch", "transformers", "datasets", "datasketch", "numpy", "tokenizers"}
    bad = recipe(dedup={"treshold": 1})
    cases = {("--help",): 0, ("--train_pth", "x"): 2, ("--config", str(bad)): 2, ("--config", "gone.yaml"): 2}
    for flags, ended in cases.items():
        left, err = run_watching_imports("impruver_compose.cli", heavy, *flags)
        assert left == f"[] {ended}", err
    assert "neither a file nor an installed recipe" in err


def test_the_installed_command(as_process):
    run = as_process("--version")
    assert run.returncode == 0
    assert run.stdout.startswith("impruver-compose ")


def test_where_torch_is_not_installed(recipe, as_process, files, tmp_path):
    (tmp_path / "block").mkdir()
    (tmp_path / "block/sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "real, gone = PathFinder.find_spec, ('torch', 'peft', 'accelerate', 'bitsandbytes')\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        "    return None if name.partition('.')[0] in gone else real(name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
    )
    files.write("data.jsonl", files.unlike(10))
    run = as_process("--config", recipe(split={"val_rows": 2}), PYTHONPATH=str(tmp_path / "block"))
    assert run.returncode == 0, run.stderr
    assert len(files.read("out/train.jsonl")) == 8
    probe = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert as_python(probe, PYTHONPATH=str(tmp_path / "block")) == "None\n"


@pytest.fixture
def stopped(files, tmp_path):
    """A data set whose converter stops the process at row 7, as long as there is no file `go`."""
    (tmp_path / "stopper.py").write_text(STOPPER)
    files.write("data.jsonl", [{"question": f"q{number}", "answer": f"answer {number}"} for number in range(20)])

    def by(name):
        (tmp_path / "signal").write_text(name)
        return {"name": "data.jsonl", "converter": "stopper.stop"}

    return by


def test_kill_9_leaves_nothing_and_a_new_start_works(stopped, recipe, as_process, composed, tmp_path):
    data = stopped("SIGKILL")
    run = as_process("--config", recipe(data, dedup={"method": "none"}))
    assert run.returncode == -9
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "go").touch()
    assert len(composed(data=data, dedup={"method": "none"}).train) == 20


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_from_outside(name, code, stopped, compose, tmp_path):
    done = compose(data=stopped(name), dedup={"method": "none"})
    assert done.code == code
    assert "Traceback" not in done.err
    assert list((tmp_path / "out").iterdir()) == []


def test_stopped_between_two_renames_the_next_start_finishes(composed, compose, files, tmp_path, monkeypatch):
    files.write("data.jsonl", files.unlike(6))
    composed(split={"val_rows": 2})
    files.write("data.jsonl", files.unlike(9))
    with monkeypatch.context() as patch:
        stop_behind_train(patch)
        assert compose(split={"val_rows": 2}).code == 143
    done = composed(split={"val_rows": 2})
    assert (len(done.train), len(done.val)) == (7, 2)
    assert done.manifest["outputs"][0]["rows"] == 7
    names = {"train.jsonl", "val.jsonl", "train.dropped.jsonl", "train.report.html", "train.jsonl.manifest.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_of_two_runs_at_once_one_waits_to_write(composed, files, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    files.write("data.jsonl", files.unlike(6))
    put_in_place, tried = output.publish, []

    def publish(*args):
        for folder in ("out", "held"):
            number = os.open(tmp_path / folder, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(number)
            tried.append(folder)
        put_in_place(*args)

    monkeypatch.setattr(output, "publish", publish)
    composed(val_path="held/val.jsonl")
    composed("--overwrite", val_path="held/val.jsonl")
    assert tried == ["out", "held"] * 2


def test_a_file_that_came_while_the_run_worked_is_not_replaced(compose, files, tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    files.write("data.jsonl", files.unlike(6))
    done = compose(data={"converter": "late.comes"})
    assert done.code == 2
    assert "val.jsonl is there and Impruver did not make it" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.jsonl"]
