"""llama.cpp's process: its end against our will is one message, and it ends with the command that started it."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
from impruver_chat.backends.base import BackendEndedError, Prompt
from impruver_chat.backends.llama_cpp import process as llama_cpp_process
from impruver_chat.generation.parameters import GREEDY, SamplingParams
from support.chat_models import ask
from support.cli import is_ended
from support.gguf_files import GgufFile
from support.recipes import write_recipe

ABORT = 'print("ggml.c:7: GGML_ASSERT(n > 0) failed", file=sys.stderr, flush=True); os.abort()'
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
# The worker as it is, but for what it does in place of the given call of a method.
FAULTY = """
import itertools, os, signal, sys
from impruver_chat.backends.llama_cpp import worker

calls, method = itertools.count(1), worker.Worker.{name}

def call(self, *arguments):
    if next(calls) == {number}:
        {fault}
    return method(self, *arguments)

worker.Worker.{name} = call
worker.main()
"""
DRAWN = SamplingParams(temperature=1.0, top_p=1.0, top_k=0)
ROWS = [{"prompt": text} for text in ("one", "two", "three", "four", "five")]


@pytest.fixture
def tiny(tmp_path):
    """A GGUF file of a model that knows bytes, each as likely as the others."""
    return GgufFile().write(tmp_path / "tiny.gguf")


@pytest.fixture
def flags(tmp_path, tiny):
    """Flags that have the tiny model draw its answers, by the seed."""
    config = write_recipe(tmp_path / "recipe.yaml", {"output_dir": str(tmp_path / "no_model_needed")})
    drawn = ("--temperature", "1", "--top_p", "1", "--top_k", "0", "--max_new_tokens", "20", "--batch_size", "2")
    return ["--config", config, "--gguf", tiny, *drawn]


@contextmanager
def faulty(name, number, fault):
    """Has the process end by `fault` at that call of a method of its Worker."""
    command = [sys.executable, "-P", "-c", FAULTY.format(name=name, number=number, fault=fault)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp_process, "COMMAND", command)
        yield


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (KILL, "SIGKILL as it loaded {path}, most likely for want of memory"),
        (ABORT, "SIGABRT as it loaded {path}: ggml.c:7: GGML_ASSERT(n > 0) failed"),
        ("sys.exit(7)", "exit 7 as it loaded {path}"),
        ("raise MemoryError('too much')", "exit 1 as it loaded {path}: MemoryError: too much"),
    ],
    ids=["killed", "aborted", "exited", "raised"],
)
def test_an_end_while_loading_is_one_message(fault, told, refused, flags, write_jsonl, tmp_path, tiny):
    with faulty("load", 1, fault):
        message = refused(*flags, "--input", write_jsonl(ROWS), "--output", tmp_path / "a.jsonl")
    assert message == f"impruver-chat: error: --gguf: llama.cpp ended with {told.format(path=tiny)}\n"


@pytest.mark.parametrize(("fault", "name"), [(KILL, "SIGKILL"), (ABORT, "SIGABRT")], ids=["killed", "aborted"])
def test_an_end_amid_a_batch_keeps_the_answers_so_far(fault, name, chat, flags, write_jsonl, tmp_path):
    output, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    flags += ["--input", write_jsonl(ROWS)]
    assert chat(*flags, "--output", whole)[0] == 0
    with faulty("compute_next", 50, fault):
        code, out, err = chat(*flags, "--output", output)
    assert (code, out, output.exists()) == (2, "", False)
    assert "Traceback" not in err
    (message,) = [line for line in err.splitlines() if "error:" in line]
    assert message.startswith(f"impruver-chat: error: --gguf: llama.cpp ended with {name} as it answered")
    kept = len((tmp_path / ".a.jsonl.partial").read_text().splitlines()) - 1
    assert 0 < kept < len(ROWS)
    assert message.endswith(f"; {kept} of 5 answers are kept; the same command resumes from there")
    code, _, err = chat(*flags, "--output", output)
    assert (code, f"{kept} answers are those of the run that was stopped" in err) == (0, True)
    assert output.read_bytes() == whole.read_bytes()
    assert len(set(output.read_text().splitlines())) == len(ROWS)


@pytest.mark.parametrize("question", ["hello", "/retry"])
def test_an_end_amid_an_answer_ends_the_conversation(question, chat, flags, monkeypatch):
    read_end, write_end = os.pipe()
    os.write(write_end, f"one\n{question}\nthree\n".encode())
    os.close(write_end)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read_end))
    with faulty("compute_next", 30, ABORT):
        code, out, err = chat(*flags)
    assert code == 2
    assert len(out.strip().splitlines()) >= 2
    assert out.endswith("\n")
    assert "Traceback" not in err
    reason = "ggml.c:7: GGML_ASSERT(n > 0) failed"
    assert err.endswith(f"impruver-chat: error: --gguf: llama.cpp ended with SIGABRT as it answered: {reason}\n")


def test_a_backend_that_has_ended_says_so_again(tiny, load_gguf):
    backend = load_gguf(tiny)
    os.kill(backend.process.pid, signal.SIGSEGV)
    for _ in range(2):
        with pytest.raises(BackendEndedError, match="ended with SIGSEGV as it answered"):
            ask(backend, "x" * 200)
    backend.close()
    assert not psutil.pid_exists(backend.process.pid)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, None])
def test_it_ends_with_the_command(sent, flags):
    command = [sys.executable, "-m", "impruver_chat", *map(str, flags)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        (child,) = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sent) if sent else process.stdin.close()
        assert process.wait(timeout=60) == {signal.SIGKILL: -9, signal.SIGTERM: 143, None: 0}[sent]
        assert is_ended(child.pid)


def ask_until_interrupted(backend, ids, seconds):
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for seed in range(1000):
        ask(backend, ids, DRAWN, seed, room=90)


def test_an_answer_that_is_left_changes_no_other(tiny, load_gguf):
    """Left between two tokens, or at any moment by a signal: each reply still belongs to its request."""
    backend = load_gguf(tiny)
    wanted = {seed: ask(backend, f"{seed} " * seed, DRAWN, seed) for seed in range(1, 6)}
    ids = backend.tokenizer.encode([{"role": "user", "content": "y" * 150}])

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(40):
            with pytest.raises(KeyboardInterrupt):
                ask_until_interrupted(backend, ids, 0.0005 * (turn + 1))
            seed = 1 + turn % len(wanted)
            assert ask(backend, f"{seed} " * seed, DRAWN, seed) == wanted[seed]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    answers = backend.answer_batch([Prompt(ids, 90, seed) for seed in range(3)], GREEDY, 2)
    assert next(answers)
    answers.close()
    assert ask(backend, "1 ", DRAWN, 1) == wanted[1]


def test_ctrl_c_at_a_terminal_stops_the_answer_alone(terminal, smollm2_gguf, flags, tmp_path):
    flags[flags.index("--gguf") + 1] = smollm2_gguf
    own = ("--max_new_tokens", "3000", "--temperature", "0", "--repetition_penalty", "1")
    window = terminal("-m", "impruver_chat", *flags, *own, IMPRUVER_CACHE=str(tmp_path / "cache"))
    window.prompted(1)
    window.type("Tell me a very long story.")
    window.until(lambda text: len(text.partition("long story.")[2].strip()) > 20)
    window.process.sendintr()
    window.until("(stopped)")
    window.type("/reset")
    window.prompted(3)
    window.type("Hi")
    assert "Hello! How can I assist you today?" in window.prompted(4)
    (child,) = psutil.Process(window.process.pid).children()
    window.type("Tell me another very long story.")
    window.until(lambda text: len(text.partition("another very long story.")[2].strip()) > 20)
    child.kill()
    assert window.left() == 2
    assert "llama.cpp ended with SIGKILL as it answered, most likely" in " ".join(window.text().split())
