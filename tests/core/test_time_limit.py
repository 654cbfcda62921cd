"""What takes too long is ended, whatever it catches; the timer never outlives its limit."""

import re
import signal
import threading
from contextlib import suppress

import pytest
from impruver_core.errors import ImpruverError
from impruver_core.time_limit import limit_cpu_time


def loop():
    while True:
        pass


def catch_everything():
    while True:
        with suppress(Exception):
            loop()


@pytest.mark.parametrize("work", [loop, catch_everything, lambda: re.fullmatch(r"(a|aa)+b", "a" * 60)])
def test_what_takes_too_long_is_ended(work):
    with pytest.raises(ImpruverError, match=r"^too long$"), limit_cpu_time(0.1, "too long"):
        work()
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_what_is_done_in_time_is_left_alone():
    with limit_cpu_time(60, "too long"):
        done = sum(range(10))
    assert done == 45
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_one_limit_within_another_is_the_outer_one():
    with pytest.raises(ImpruverError, match=r"^outer$"), limit_cpu_time(0.1, "outer"), limit_cpu_time(60, "inner"):
        loop()


def test_a_failure_passes_and_ends_the_limit():
    with pytest.raises(ZeroDivisionError), limit_cpu_time(60, "too long"):
        raise ZeroDivisionError
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_another_thread_has_no_limit():
    done = []

    def work():
        with limit_cpu_time(0.01, "too long"):
            done.append(sum(range(3_000_000)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1
