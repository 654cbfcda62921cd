"""The program at a terminal (a pseudo-terminal) and through pipes; what needs no process with a backend made up."""

import io
import os
import sys

import pexpect
import pytest
from impruver_chat import terminal
from impruver_chat.backends import Answer
from impruver_chat.sampling import Sampling
from impruver_chat.session import Session


@pytest.fixture
def spawn():
    """Starts the command in a pseudo-terminal; it is ready at its mark."""
    processes = []

    def start(*flags):
        command = ["-m", "impruver_chat", *map(str, flags)]
        environment = os.environ | {"TERM": "dumb"}
        process = pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=120)
        processes.append(process)
        process.expect_exact("> ")
        return process

    yield start
    for process in processes:
        process.close(force=True)


def left(process):
    process.expect(pexpect.EOF)
    process.wait()
    return process.exitstatus


def test_typing_reset_and_ctrl_d(spawn, recipe, tiny):
    process = spawn("--config", recipe(), "--temperature", "0", "--repetition_penalty", "1")
    assert "Ctrl+D leaves" in process.before
    process.sendline("red")
    process.expect_exact(tiny.words["red"] + "\r\n> ")
    process.sendline("   ")
    process.expect_exact("> ")
    process.sendline("/reset")
    process.expect_exact("forgotten\r\n> ")
    process.sendline("/quit")
    process.expect_exact("no command /quit; there is /reset\r\n> ")
    process.sendline("white")
    process.expect_exact(tiny.words["white"] + "\r\n> ")
    process.sendeof()
    assert left(process) == 0


def test_it_streams_and_ctrl_c_stops_an_answer_then_leaves_at_the_prompt(spawn, recipe):
    process = spawn("--config", recipe("babbler"), "--temperature", "0", "--max_new_tokens", "3900")
    process.sendline("red")
    process.expect_exact("red\r\n")  # the terminal's own echo
    process.expect(r"\S")  # the first of thousands of tokens
    process.sendintr()
    process.expect_exact("(stopped)")
    process.expect_exact("> ")
    process.sendline("green")
    process.expect_exact("green\r\n")
    process.expect(r"\S")
    process.sendintr()
    process.expect_exact("> ")
    process.sendintr()
    assert left(process) == 0


def test_through_pipes(as_process, recipe, tiny):
    done = as_process("--config", recipe(), "--temperature", "0", input=b"red\n\nwhite")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[0] == tiny.words["red"]  # answers alone
    assert len(done.stdout.decode().splitlines()) == 2
    assert b"/reset forgets" in done.stderr


class Parrot:
    """Answers with the number of messages it was given and the seed, a character at a time."""

    context: int | None = None

    def __init__(self):
        self.given = []

    def encode(self, messages, tools=None, kwargs=None):
        self.given.append(list(messages))
        return [0] * sum(len(message["content"]) for message in messages)

    def stream(self, prompt, sampling, emit):
        text = f"{len(self.given[-1])} {prompt.seed} {prompt.room}"
        for character in text:
            if character == "9" and self.context is None:
                raise KeyboardInterrupt
            emit(character)
        return Answer(text, True)


@pytest.fixture
def talk(monkeypatch, capsys):
    """Feeds lines to the loop; (stdout, stderr, what the backend was given)."""

    def run(*lines, backend=None, session=None, room=50):
        backend = backend or Parrot()
        data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        terminal.converse(session or Session(), backend, Sampling(max_new_tokens=room), seed=3)
        return *capsys.readouterr(), backend.given

    return run


def test_history_grows_is_cut_at_its_limit_and_forgotten(talk):
    out, err, given = talk("a", "b", "c", "/reset", "d", session=Session("be brief", 3))
    assert out == "2 3 50\n4 4 50\n4 5 50\n2 6 50\n"
    assert "the 2 oldest messages are forgotten: chat.history_limit is 3" in err
    assert [chat[0]["content"] for chat in given] == ["be brief"] * 4
    assert [message["content"] for message in given[2]] == ["be brief", "b", "4 4 50", "c"]


def test_a_full_context_forgets_and_says_so(talk):
    parrot = Parrot()
    parrot.context = 40
    out, err, _ = talk("a" * 20, "b" * 20, "c" * 40, "d", backend=parrot, room=20)
    assert out.splitlines() == ["1 3 20", "1 4 20", "1 6 20"]
    assert "the 2 oldest messages are forgotten: the model's context is 40 tokens" in err
    assert "not asked: the prompt takes 40 tokens" in err


def test_an_interrupted_answer_keeps_what_was_said(talk):
    session = Session()
    out, err, _ = talk("a", session=session, room=90)
    assert out == "1 3 \n"
    assert "(stopped)" in err
    assert session.messages[-1] == {"role": "assistant", "content": "1 3 "}


def test_a_line_that_is_no_utf8(talk):
    from impruver_core.errors import ImpruverError

    with pytest.raises(ImpruverError, match="not UTF-8"):
        talk("a", b"\xff")


def test_a_closed_stdin_is_the_end_of_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert terminal.next_line() is None


def test_a_reader_that_leaves_does_no_harm(monkeypatch, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        terminal.show("an answer")
        terminal.show("another")
