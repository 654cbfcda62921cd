"""The command stopped from outside, and out of room: the answers' file is whole or not there, the exit code tells.

What was answered is kept beside it, and the same command resumes from there.
"""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from support.chat_models import WORDS
from support.cli import has_content, wait_for

JOURNAL = ".a.jsonl.partial"
LIMIT = 20_000  # bytes a file may have, as on a full disk


@pytest.fixture
def started(recipe, write_jsonl, tmp_path):
    """Starts the command on far more questions than it answers here; returns when it is writing answers."""
    processes = []

    def start():
        questions = write_jsonl([{"prompt": "red", "padding": "x" * 9000}] * 500)
        flags = ["--config", recipe("babbler"), "--input", questions, "--output", tmp_path / "out" / "a.jsonl"]
        command = [sys.executable, "-m", "impruver_chat", *map(str, flags), "--max_new_tokens", "40"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        staged = tmp_path / "out" / ".a.jsonl.staged"
        wait_for(lambda: has_content(staged), processes[0])
        return processes[0]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_answers_so_far(sent, code, started, tmp_path):
    process = started()
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert b"Traceback" not in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]
    lines = (tmp_path / "out" / JOURNAL).read_text().splitlines(keepends=True)
    assert all(json.loads(line) for line in lines)
    assert lines[-1].endswith("\n")
    assert f"{len(lines) - 1} of 500 answers are kept; the same command resumes from there" in err.decode()


def test_after_a_kill_another_command_is_whole(started, chat, recipe, write_jsonl, tmp_path):
    process = started()
    process.kill()
    process.communicate()
    assert not (tmp_path / "out/a.jsonl").exists()
    paths = ["--input", write_jsonl([{"prompt": "red"}] * 3), "--output", tmp_path / "out/a.jsonl"]
    assert chat("--config", recipe(), *paths)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.jsonl", "a.jsonl.manifest.json"}
    assert len((tmp_path / "out/a.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("there", [False, True], ids=["none there", "old one there"])
def test_a_full_disk_leaves_what_was_there(there, as_process, chat, recipe, write_jsonl, tmp_path):
    target = tmp_path / "out/a.jsonl"
    if there:
        assert chat("--config", recipe(), "--input", write_jsonl([{"prompt": "red"}]), "--output", target)[0] == 0
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()} if there else {}
    questions = write_jsonl([{"prompt": "red", "padding": "x" * 9000}] * 5)
    done = as_process("--config", recipe(), "--input", questions, "--output", target, preexec_fn=little_room)
    assert done.returncode == 2, done.stderr.decode()
    assert done.stderr.decode().splitlines()[-1].startswith("impruver-chat: error: ")
    assert b"File too large" in done.stderr
    assert b"Traceback" not in done.stderr
    after = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    kept = len(after.pop(JOURNAL).splitlines()) - 1
    assert after == before
    done = as_process("--config", recipe(), "--input", questions, "--output", target)  # room was made
    assert done.returncode == 0
    assert kept > 0
    assert f"{kept} answers are those of the run that was stopped" in done.stderr.decode()
    assert len(target.read_text().splitlines()) == 5


def little_room():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def test_through_pipes_rows_come_one_by_one(as_process, recipe, tmp_path):
    rows = b'{"prompt": "red", "reference": "' + WORDS["red"].encode() + b'"}\n{"prompt": "white"}\n{"id": 1}\n'
    flags = ["--config", recipe(), "--input", "-", "--output", "-", "--expect"]
    done = as_process(*flags, input=rows, cwd=tmp_path, environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr.decode()
    got = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [row["messages"][-1]["content"] for row in got[:2]] == [WORDS["red"], WORDS["white"]]
    assert (got[0]["match"], got[2]) == (True, {"id": 1, "error": "neither messages nor a prompt"})
    assert b"right: 1 of 1 (100.0%)" in done.stderr
    assert b"wrote 3 rows to standard output, 1 of them with an error" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}
    done = as_process(*flags, input=b'{"prompt": "red"}\n{"prompt": \n', cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"/dev/stdin, line 2, column" in done.stderr


def test_a_reader_that_leaves_ends_the_work(recipe, write_jsonl):
    questions = write_jsonl([{"prompt": "red", "padding": "x" * 9000}] * 500)
    command = [sys.executable, "-m", "impruver_chat", "--config", recipe("babbler"), "--input", questions]
    process = subprocess.Popen([*command, "--output", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b'"messages"' in process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait(timeout=60) == 0, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_questions_out_of_a_pipe_into_a_file(as_process, recipe, tmp_path):
    flags = ["--config", recipe(), "--input", "-", "--output", tmp_path / "a.jsonl"]
    assert as_process(*flags, input=b'{"prompt": "red"}\n').returncode == 0
    manifest = json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert manifest["inputs"] == [{"path": "/dev/stdin", "rows": 1}]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \n"], ids=["plain", "BOM", "blank lines"])
def test_rows_in_a_pipe_need_no_flag(start, as_process, recipe, tmp_path):
    done = as_process("--config", recipe(), input=start + b'{"prompt": "red", "id": 1}\n{"prompt": "blue"}\n')
    assert done.returncode == 0, done.stderr.decode()
    got = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [row["messages"][-1]["content"] for row in got] == [WORDS["red"], WORDS["blue"]]
    assert got[0]["id"] == 1


def test_rows_in_a_pipe_into_a_file(as_process, recipe, tmp_path):
    output = tmp_path / "a.jsonl"
    done = as_process("--config", recipe(), "--output", output, "--strict", input=b'{"prompt": "red"}\n{"id": 1}\n')
    assert (done.returncode, done.stdout, output.exists()) == (2, b"", False)
    assert b"/dev/stdin, line 2: neither messages nor a prompt" in done.stderr
    done = as_process("--config", recipe(), "--output", output, input=b'{"prompt": "red"}\n')
    assert done.returncode == 0, done.stderr.decode()
    assert len(output.read_text().splitlines()) == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed_outright(closed, as_process, recipe, write_jsonl, tmp_path):
    output, questions = tmp_path / "out" / "a.jsonl", write_jsonl([{"prompt": "red"}])
    there = {"preexec_fn": lambda: [os.close(number) for number in closed]}
    done = as_process("--config", recipe(), "--input", questions, "--output", output, **there)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    (row,) = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert row["messages"][-1]["content"] == WORDS["red"]
    done = as_process("--config", recipe(), "--temperature", "0", **there)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    done = as_process("--config", recipe(), "--top_p", "2", **there)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False), done.stderr.decode()
