"""A pseudo-terminal with the real program in it, and an emulator that tells what a person sees there."""

import os
import signal
import sys
import time

import pexpect
import pyte


class Terminal:
    """Runs `python` with `arguments` at a terminal of that size; `lines` is what stands on it, scrolled away or not."""

    def __init__(self, *arguments, columns=80, rows=24, **environment):
        environment = os.environ | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment
        command = [str(argument) for argument in arguments]
        self.process = pexpect.spawn(sys.executable, command, env=environment, dimensions=(rows, columns), timeout=120)
        self._open(columns, rows)
        self.raw = b""

    def _open(self, columns, rows):
        self.screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.01)
        self.screen.write_process_input = self.process.send  # it asks where the cursor is
        self.stream = pyte.ByteStream(self.screen)

    def lines(self):
        """All lines, without blanks at their ends."""
        rows = [*self.screen.history.top, *(self.screen.buffer[row] for row in range(self.screen.lines))]
        return ["".join(row[at].data for at in range(self.screen.columns)).rstrip() for row in rows]

    def text(self):
        """All lines in one."""
        return "\n".join(self.lines()).rstrip()

    def resize(self, columns):
        """Makes the window so wide; lines that do not fit are wrapped, as most terminals do."""
        lines, cursor = self.lines(), len(self.screen.history.top) + self.screen.cursor.y
        self._open(columns, self.screen.lines)
        self.stream.feed("\r\n".join(lines[: cursor + 1]).encode())
        self.process.setwinsize(self.screen.lines, columns)

    def read(self):
        """Takes what came until now; False at the end."""
        try:
            came = self.process.read_nonblocking(65536, 0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += came
        self.stream.feed(came)
        return True

    def until(self, done, seconds=60):
        """Reads until `done(text)` holds, or a text stands on the terminal; what stands there then."""
        check = done if callable(done) else lambda text: done in text
        deadline = time.monotonic() + seconds
        while not check(self.text()):
            going = self.read()
            assert (going and time.monotonic() < deadline) or check(self.text()), self.text()
        return self.text()

    def prompted(self, count):
        """Reads until the program has asked for the `count`th question."""
        return self.until(lambda text: sum(line.startswith(">") for line in text.split("\n")) >= count)

    def type(self, text):
        """Types a text and Enter."""
        self.process.send(text + "\r")

    def left(self, seconds=60):
        """Reads to the end; the exit code."""
        deadline = time.monotonic() + seconds
        while self.read() or self.process.isalive():
            assert time.monotonic() < deadline, self.text()
        return self.process.exitstatus

    def close(self):
        """Ends the program, whatever it does."""
        # pexpect's own close waits a tenth of a second after SIGKILL, less than a loaded machine takes to free a model.
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
            self.process.wait()
        self.process.close()
