"""What a person at a terminal sees of a training, and what is warned about."""

import re

import numpy as np
import pytest
from impruver_train.training.callbacks.loss_warnings import LossWarningCallback
from support.jsonl import read_jsonl
from support.terminals import Terminal
from support.trainers import put_beside_recipe

LINE = re.compile(
    r"^step \d+/50: loss [\d.e+]+, learning rate [\d.e+-]+, grad norm [\d.e+-]+, [\d,]+ tokens/s, (\d+ m )?\d+ s left$"
)


def test_a_terminal_has_a_line_every_few_seconds_and_warnings_at_once_and_at_the_end(recipe, tmp_path, parts, tiny):
    put_beside_recipe("slow", tmp_path)
    trainer = {"class": "slow.SlowTrainer", "max_steps": 50, "logging_steps": 500, "learning_rate": 3.0}
    config = recipe(lora=None, trainer=trainer | {"max_grad_norm": 1e6, "per_device_train_batch_size": 1})
    terminal = Terminal("-m", "impruver_train", "--config", config, columns=160, rows=60, ZERO="5")
    try:
        assert terminal.left(200) == 0, terminal.text()
        lines = terminal.lines()
    finally:
        terminal.close()
    assert sum(bool(LINE.match(line)) for line in lines) >= 1, lines
    rows = read_jsonl(tmp_path / "out" / "metrics.jsonl")
    assert rows[4]["grad_norm"] == 0
    assert max(row["loss"] for row in rows) > 10
    text = "\n".join(lines)
    for kind in ("the gradient's norm is 0", "the loss explodes"):
        assert text.count(f"warning: {kind}: ") == 2  # once as it comes, once at the end
    at_once, report = text.index("warning: the loss explodes: "), text.index("report: ")
    assert at_once < text.rindex("warning: the loss explodes: at ") < report
    assert re.search(r"warning: the gradient's norm is 0: at 1 step, first 5$", text, re.MULTILINE)
    assert f"report: {tmp_path / 'out' / 'report.html'}" in text


def feed(losses, vocabulary=32000, norms=None, fp16=False):
    """The callback after these losses; the step of each kind's first warning."""

    class Fixed:
        def __init__(self, **values):
            self.__dict__ |= values

    callback = LossWarningCallback()
    text = Fixed(vocab_size=vocabulary)
    callback.on_train_begin(None, None, None, model=Fixed(config=Fixed(get_text_config=lambda: text)))
    for step, loss in enumerate(losses, 1):
        state = Fixed(is_world_process_zero=True, global_step=step)
        logs = {"loss": float(loss), "grad_norm": 1.0 if norms is None else norms[step - 1]}
        callback.on_log(Fixed(fp16=fp16), state, None, logs=logs)
    return callback.first


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 0.8), (1.5, 0.5), (0.5, 1.0), (2.5, 0.4), (0.1, 1.2)], ids=str)
def test_single_rows_of_a_good_run_are_no_explosion(mean, spread):
    random = np.random.default_rng(0)
    rows = random.lognormal(np.log(mean) - spread**2 / 2, spread, 5000) * np.linspace(1.3, 0.8, 5000)
    assert feed(rows) == {}


EXPLOSIONS = {
    "of a pretrained model": ([1.5] * 100 + [9] * 20, 101),
    "from scratch": (list(np.linspace(10.3, 3, 200)) + [7.5] * 20, 201),
    "of an overfit one": (list(np.linspace(2, 0.01, 200)) + [4] * 20, 201),
    "from the second step on": ([6.0] + [50] * 20, 2),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_an_explosion_is_seen_within_eight_steps(name):
    losses, begins = EXPLOSIONS[name]
    losses = np.array(losses) * np.random.default_rng(1).normal(1, 0.05, len(losses))
    first = feed(losses)["the loss explodes"]
    assert begins <= first <= begins + 8


def test_zero_gradients_that_a_scaler_may_leave_are_passed_over():
    kind = "the gradient's norm is 0"
    assert feed([1.0] * 40, norms=[1.0] * 3 + [0.0] * 37) == {kind: 4}
    assert feed([1.0] * 40, norms=[0.0] * 20 + [1.0] * 20, fp16=True) == {}
    assert feed([1.0] * 40, norms=[0.0] * 40, fp16=True) == {kind: 33}
