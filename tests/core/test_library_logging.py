"""Libraries that are quiet, and that still say what a user is to know."""

from support.cli import run_python

PROGRAM = """
import logging, sys, warnings
from impruver_core.library_logging import quiet_libraries
quiet_libraries("datasets", "transformers", errors_only={errors_only})
import datasets
from transformers.utils import logging as of_transformers
assert not datasets.is_progress_bar_enabled() and not of_transformers.is_progress_bar_enabled()
log = logging.getLogger("transformers.modeling_utils")
log.warning("loss_type=None was set")
log.warning("to be known")
for category in (FutureWarning, UserWarning):
    warnings.warn_explicit(category.__name__, category, "f.py", 1, module="transformers.x", registry={{}})
    warnings.warn_explicit("own " + category.__name__, category, "f.py", 1, module="own", registry={{}})
logging.getLogger("datasets").error("an error")
"""


def lines(errors_only):
    program = PROGRAM.format(errors_only=errors_only)
    done = run_python(program, check=True)
    return done.stdout + done.stderr


def test_libraries_are_quiet():
    some, few = lines(False), lines(True)
    assert "loss_type" not in some + few
    assert "to be known" in some
    assert " UserWarning: UserWarning" in some
    assert " FutureWarning: FutureWarning" not in some
    assert "to be known" not in few
    assert " UserWarning: UserWarning" not in few
    assert "an error" not in few
    assert "own FutureWarning" in some
    assert "own UserWarning" in few
