"""run_tool in real processes: exit codes, signals, one message, streams that go away."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.cli import run_python

TOOL = """\
import sys
import time
from dataclasses import dataclass
from typing import Optional
from impruver_core.cli.flags import CommonFlags, flag, from_recipe
from impruver_core.cli.runner import run_tool
from impruver_core.cli.console import open_progress, print_result, log_info, warn

@dataclass
class Flags(CommonFlags):
    "A tool for tests."
    seed: Optional[int] = from_recipe("seed")
    output_dir: Optional[str] = from_recipe("output_dir")
    what: str = flag(str, "", help="python to run")

def wait(said="up"):
    print(said, flush=True)
    time.sleep(60)

def main(recipe, flags):
    exec(flags.what, {**globals(), "recipe": recipe, "flags": flags})

raise SystemExit(run_tool("impruver-test", Flags, main))
"""


@pytest.fixture
def tool(tmp_path):
    program = tmp_path / "tool.py"
    program.write_text(TOOL)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("output_dir: ./out\nlora: {r: 2}\n")
    return [sys.executable, str(program), "--config", str(recipe)]


def run(tool, what="", *argv, **kwargs):
    command = [*tool, f"--what={what}", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **kwargs)


def test_main_gets_the_layered_recipe_and_the_flags(tool):
    what = "print_result(f'{recipe.seed} {recipe.output_dir} {recipe.lora} {flags.dry_run}'); log_info('done')"
    done = run(tool, what, "--set", "seed=1", "--set=lora.r=3", "--seed", "9", "--output-dir", "o-p", "--dry-run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "9 o-p {'r': 3} True\n", "done\n")


def test_quiet_leaves_results_and_warnings(tool):
    done = run(tool, "log_info('a'); warn('b'); print_result('c'); open_progress(2, 'd').update(2)", "--quiet")
    assert (done.stdout, done.stderr) == ("c\n", "warning: b\n")


@pytest.mark.parametrize(
    ("what", "code", "told"),
    [
        ("from impruver_core.errors import ImpruverError; raise ImpruverError('no rows')", 2, "error: no rows"),
        ("from impruver_core.errors import CheckFailedError; raise CheckFailedError('NaN')", 3, "error: NaN"),
        ("open('/nowhere/x')", 2, "error: /nowhere/x: No such file or directory"),
        (
            "with open('/dev/full', 'w') as file: file.write('x')",
            2,
            "error: No space left on device; make room and run it again",
        ),
        ("import os; raise PermissionError(13, os.strerror(13), 'f')", 2, "error: f: Permission denied"),
        ("raise OSError('x is no folder')", 2, "error: x is no folder"),
        ("raise MemoryError", 2, "error: out of memory"),
        ("bytearray(2**62)", 2, "error: out of memory"),
        ('raise RuntimeError("[x] DefaultCPUAllocator: can\'t allocate memory: you tried")', 2, "error: out of memory"),
        ("raise KeyboardInterrupt", 130, "stopped by Ctrl+C"),
    ],
)
def test_one_message_and_its_code(tool, what, code, told):
    done = run(tool, what)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"impruver-test: {told}\n")


@pytest.mark.parametrize("what", ["1/0", "raise KeyError('x')", "import nowhere_at_all"])
def test_our_own_fault_has_a_traceback(tool, what):
    done = run(tool, what)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "impruver env" in done.stderr


def test_system_exit_and_a_code_of_mains_own_pass_through(tool):
    assert run(tool, "sys.exit(7)").returncode == 7


def test_results_written_before_an_error_come_out_first(tool):
    done = run(tool, "print('partial'); raise OSError('x')")
    assert (done.returncode, done.stdout) == (2, "partial\n")


def test_config_is_needed(tool):
    done = subprocess.run(tool[:2], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("impruver-test: error: --config is missing")
    assert len(done.stderr.splitlines()) == 1


def test_all_faults_of_a_recipe_in_one_message(tool):
    done = run(tool, "print_result('ran')", "--set", "seed=x", "--set", "modle.x=1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "impruver-test: error: 2 faults in the recipe"
    assert "did you mean model?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "told"), [("SIGTERM", 143, "SIGTERM"), ("SIGINT", 130, "Ctrl+C"), ("SIGHUP", 129, "SIGHUP")]
)
def test_a_signal_unwinds_and_has_its_code(tool, tmp_path, number, code, told):
    what = "try: wait()\nexcept Exception: pass\nfinally: open('left', 'w').close()"
    child = subprocess.Popen(
        [*tool, f"--what={what}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert child.stdout.readline() == "up\n"
    child.send_signal(getattr(signal, number))
    _, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert err == f"impruver-test: stopped by {told}\n"
    assert (tmp_path / "left").exists()


def test_a_second_sigterm_ends_it_at_once(tool):
    what = "try: wait('up')\nfinally: wait('late')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*tool, f"--what={what}"], **pipes, text=True) as child:
        assert child.stdout.readline() == "up\n"
        child.terminate()
        assert child.stdout.readline() == "late\n"
        child.terminate()  # as `timeout` does, for the whole group
        time.sleep(0.5)
        assert child.poll() is None
        child.terminate()
        assert child.wait(timeout=30) == 143
        assert child.stderr.read() == "impruver-test: stopped by SIGTERM\n"


SWALLOWED = {
    "a destructor": "class X:\n  def __del__(self): os.kill(os.getpid(), 15); time.sleep(0)\nX(); time.sleep(60)",
    "a bare except": "try: os.kill(os.getpid(), 15); time.sleep(60)\nexcept BaseException: pass",
    "another error": "try: os.kill(os.getpid(), 2); time.sleep(60)\nexcept BaseException: raise ImportError('x')",
    "a late error": "from impruver_core.cli import stop_signals; stop_signals.LATELY_SECONDS = 0\n"
    "try: os.kill(os.getpid(), 15); time.sleep(60)\nexcept BaseException as stop: raise SystemError('x') from stop",
    "a thread's": "import threading; threading.Thread(target=lambda: os.kill(os.getpid(), 1)).start(); time.sleep(60)",
}


@pytest.mark.parametrize("where", SWALLOWED)
def test_a_signal_is_not_lost_in(where, tool):
    done = run(tool, f"import os\n{SWALLOWED[where]}")
    code, name = {"another error": (130, "Ctrl+C"), "a thread's": (129, "SIGHUP")}.get(where, (143, "SIGTERM"))
    assert (done.returncode, done.stderr) == (code, f"impruver-test: stopped by {name}\n")


def test_a_signal_after_the_work_changes_nothing(tool):
    what = "import atexit, os\natexit.register(lambda: [os.kill(os.getpid(), number) for number in (1, 2, 15)])"
    done = run(tool, what)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_ignored_stays_ignored(tool):
    done = run(["nohup", *tool], "import os\nos.kill(os.getpid(), 1); print_result('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")


MESSAGES = "for n in range(3000): warn('x' * 100)\nopen('left', 'w').close()"


def test_a_full_disk_under_stderr_does_not_stop_the_work(tool, tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*tool, f"--what={MESSAGES}"], stderr=full, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_stderr_that_takes_nothing_does_not_stop_the_work(kind, tool, tmp_path):
    """Nor does it lose the last messages once somebody reads again."""
    if kind == "socket":
        ours, theirs = (end.detach() for end in socket.socketpair())
    else:
        ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    what = f"{MESSAGES}\nwhile not os.path.exists('read'): time.sleep(0.01)\nwarn('the last')"
    child = subprocess.Popen([*tool, f"--what=import os\n{what}"], stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    for _ in range(3000):
        if (tmp_path / "left").exists():
            break
        time.sleep(0.01)
    (tmp_path / "read").touch()
    told = b""
    with suppress(OSError):  # how the end of a terminal is told
        while piece := os.read(ours, 1 << 16):
            told += piece
    os.close(ours)
    assert child.wait(timeout=30) == 0
    assert (tmp_path / "left").exists()
    assert told.count(b"warning: xxx") == 3000
    assert told.split()[-2:] == [b"the", b"last"]


def test_a_stderr_whose_reader_left_does_not_stop_the_work(tool, tmp_path):
    child = subprocess.Popen([*tool, f"--what={MESSAGES}"], stderr=subprocess.PIPE, cwd=tmp_path)
    child.stderr.close()
    assert child.wait(timeout=30) == 0
    assert (tmp_path / "left").exists()


def test_a_forked_worker_dies_of_sigterm_without_a_word(tool):
    what = "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(1) as pool: pool.map(abs, [1])"
    done = run(tool, what)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_does_not_stop_the_work(tool, tmp_path):
    what = "for _ in range(20000): print_result('x' * 50)\nopen('left', 'w').close()"
    child = subprocess.Popen(
        [*tool, f"--what={what}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read()
    assert (child.wait(timeout=30), err) == (0, "")
    assert (tmp_path / "left").exists()


def test_a_full_disk_under_stdout_is_told_after_the_work(tool, tmp_path):
    what = "for _ in range(9): print_result('x')\nopen('left', 'w').close()"
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [*tool, f"--what={what}"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path
        )
    assert child.returncode == 2
    assert child.stderr == (
        "impruver-test: error: standard output: No space left on device: not all results could be printed\n"
    )
    assert (tmp_path / "left").exists()


def test_progress_in_a_log_is_plain_lines(tool):
    done = run(tool, "with open_progress(4, 'rows') as bar:\n  for _ in range(4): time.sleep(0.6); bar.update(1)")
    lines = done.stderr.splitlines()
    assert "\r" not in done.stderr
    assert 2 <= len(lines) <= 4
    assert "left" in lines[0]
    assert lines[-1].startswith("rows: 4/4 (100%), ")


def test_progress_on_a_terminal_is_a_bar_with_the_time_left(tool):
    pty = pytest.importorskip("pty")
    main, side = pty.openpty()
    what = (
        "with open_progress(4, 'rows') as bar:\n  for _ in range(4): time.sleep(0.15); bar.update(1); log_info('line')"
    )
    child = subprocess.Popen([*tool, f"--what={what}"], stderr=side, stdout=subprocess.DEVNULL)
    os.close(side)
    told = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:
            break
        if not chunk:
            break
        told += chunk
    os.close(main)
    assert child.wait(timeout=30) == 0
    assert b"\r" in told
    assert b"rows: 100%" in told
    assert told.count(b"line\r\n") == 4


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--confg"], ["--config", "no/such"], ["--set", "x.y=1"]])
def test_neither_help_nor_a_wrong_word_imports_anything_heavy(tool, tmp_path, words):
    body = TOOL.replace(
        "raise SystemExit(run_tool(", "import atexit\natexit.register(told)\nraise SystemExit(run_tool("
    )
    heavy = "{'torch', 'transformers', 'datasets', 'peft', 'numpy', 'tokenizers'}"
    body = body.replace(
        "def main(", f"def told(): print('HEAVY', {heavy} & set(sys.modules), file=sys.stderr)\n\ndef main("
    )
    Path(tool[1]).write_text(body)
    done = subprocess.run([*tool, *words], capture_output=True, text=True, check=False)
    assert "HEAVY set()" in done.stderr
    assert "Traceback" not in done.stderr


def test_imports_of_the_package_itself_are_light():
    code = "import sys, impruver_core, impruver_core.cli.runner; assert not {'yaml', 'torch'} & set(sys.modules)"
    run_python(code, check=True)


def test_the_recipe_that_training_left_stands_in_for_config(tmp_path):
    program = tmp_path / "tool.py"
    tool = TOOL.replace("CommonFlags", "FolderFlags")
    program.write_text(tool.replace("Flags, main)", "Flags, main, config_from_output_dir=True)"))
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "recipe.yaml").write_text("seed: 7\noutput_dir: ./elsewhere\n")
    other = tmp_path / "other.yaml"
    other.write_text("seed: 8\n")
    alone, what = [sys.executable, str(program)], "print_result(f'{recipe.seed} {recipe.output_dir}')"
    assert run(alone, what, "--output_dir", str(trained)).stdout == f"7 {trained}\n"
    assert run(alone, what, "--config", str(other), "--output_dir", str(trained)).stdout == f"8 {trained}\n"
    for argv, told in (
        (["--output_dir", str(tmp_path)], f"and --output_dir {tmp_path} holds no recipe.yaml"),
        ([], "--config is missing: give a recipe's file"),
    ):
        done = run(alone, what, *argv)
        assert done.returncode == 2
        assert told in done.stderr


STRANGE = "a\x1b]0;title\x07b\x1b[2Jc\u202ed\u2066e\x9bf\rg\x00h\udcffi"
SHOWN = r"a\x1b]0;title\x07b\x1b[2Jc\u202ed\u2066e\x9bf\x0dg\x00h\xffi"


def test_no_text_of_a_strangers_is_obeyed_by_the_terminal(tool):
    what = f"x = {STRANGE!r}; log_info(x); warn(x); print_result(x); raise ImpruverError(x)"
    done = run(tool, f"from impruver_core.errors import ImpruverError; {what}")
    assert done.returncode == 2
    assert done.stdout == f"{SHOWN}\n"
    assert done.stderr == f"{SHOWN}\nwarning: {SHOWN}\nimpruver-test: error: {SHOWN}\n"
    refused = run(tool, "", "--nothing\x1b[2J")
    assert refused.returncode == 2
    assert "\x1b" not in refused.stderr
    assert r"\x1b[2J" in refused.stderr
    failed = run(tool, "raise RuntimeError(chr(27) + '[2J')")  # a fault of ours
    assert (failed.returncode, "\x1b" in failed.stderr) == (1, False)
    assert "RuntimeError: \\x1b[2J" in failed.stderr


def test_children_take_nothing_from_the_working_folder(tool, tmp_path):
    """Neither a module nor a program, whatever PATH says: libraries start compilers and `uname`, too."""
    (tmp_path / "queue.py").write_text("open('ran', 'w')\n")
    for place in (tmp_path, tmp_path / "bin"):
        place.mkdir(exist_ok=True)
        (place / "uname").write_text("#!/bin/sh\ntouch ran\n")
        (place / "uname").chmod(0o755)
    what = (
        "import subprocess; subprocess.run([sys.executable, '-c', 'import queue; print(queue.__name__)'], check=True)\n"
        "subprocess.run('uname', check=True)"
    )
    done = run(tool, what, cwd=tmp_path, env=os.environ | {"PATH": f".::bin:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "queue"), done.stderr
    assert not (tmp_path / "ran").exists()


def test_faults_without_end_are_told_up_to_a_number(tool, tmp_path):
    (tmp_path / "r.yaml").write_text("\n".join(f"output_dri{number}: 1" for number in range(50_000)))
    done = run(tool)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 102
    assert "did you mean output_dir?" in lines[1]
    assert lines[-1].endswith("r.yaml: more than 100 faults; what follows is not read")


def test_what_a_credential_holds_is_in_no_message(tool, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "trainer: {hub_token: !!int hf_mine, deployToken: [hf_mine], ddp: {slack_token: {value: hf_mine}}}\n"
        "model: 'api_key=hf_mine'\ndatasets: [{name: 'https://me:hf_mine@example.com/a.jsonl'}]\n"
    )
    done = run(tool, "", "--set=trainer.hub_token: hf_mine", "--set=lora.\uff48ub_to\u200bken=hf_mine")
    assert done.returncode == 2
    assert "hf_mine" not in done.stderr
    for key in ("trainer.deployToken", "trainer.ddp.slack_token", "datasets.0.name"):
        assert f"{key}: a recipe is copied into output_dir; keep" in done.stderr


@pytest.mark.parametrize(("limit", "words"), [("-d 100000", "400 MiB"), ("-v 900000", "1 GiB"), ("-n 32", "64 files")])
def test_limits_that_no_tool_gets_along_with_are_told(limit, words, tool):
    done = run(["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *tool], "print_result('ran')")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
