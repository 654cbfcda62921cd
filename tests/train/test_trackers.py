"""Trackers of report_to: each works or is told before training, and none stops one."""

import time

import pytest
from impruver_train.config.trackers import LOGINS

# A package that breaks in every way at once: its run is made with the Trainer, and ends the process; what it has
# left running never ends.
CODECARBON = "import sys\nclass EmissionsTracker:\n    def __init__(self, **_):\n        sys.exit('no sensor')\n"
DVCLIVE = """
import atexit, pathlib, threading, time
class Live:
    def log_params(self, params): self.folder = pathlib.Path(params["output_dir"])
    def log_metric(self, name, value): pass
    def next_step(self): pass
    def end(self):
        (self.folder / "ended").write_text(str((self.folder / "impruver.json").exists()))
        time.sleep(1000)
threading.Thread(target=time.sleep, args=(1000,)).start()
atexit.register(time.sleep, 1000)
"""
PLOTS = "class Metric:\n    @staticmethod\n    def could_log(value):\n        return False\n"


def test_every_name_works_or_is_told_in_a_dry_run(recipe, impruver_train, tmp_path, monkeypatch):
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    monkeypatch.setenv("HOME", str(tmp_path))
    works = set()
    for name in (*INTEGRATION_TO_CALLBACK, "all", "none"):
        code, _, err = impruver_train(recipe(trainer={"report_to": name}), "--dry_run")
        assert code in (0, 2), err
        if code == 0:
            works.add(name)
        else:
            last = err.splitlines()[-1]
            assert last.startswith(f"impruver-train: error: trainer.report_to: {name} ")
            assert "pip install " in last or "KUBEFLOW_TRAINER_SERVER_URL" in last
    assert works >= {"tensorboard", "wandb", "all", "none"}
    code, _, err = impruver_train(recipe(trainer={"report_to": ["tensorboard", "wandbb"]}), "--dry_run")
    assert code == 2
    assert "wandbb" in err


@pytest.fixture
def wandb_without_login(monkeypatch, tmp_path):
    """wandb, as somebody has it who never logged in."""
    import wandb

    for name, value in {"HOME": tmp_path, "WANDB_DIR": tmp_path, "NETRC": tmp_path / "netrc"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it has read its settings already
    yield
    wandb.teardown()


def test_who_is_not_logged_in_is_told_in_a_dry_run(recipe, impruver_train, tmp_path, wandb_without_login):
    code, stdout, err = impruver_train(recipe(trainer={"report_to": "all"}), "--dry_run")
    assert (code, stdout) == (2, ""), err
    assert "trainer.report_to: wandb is not logged in: run `wandb login`, set WANDB_API_KEY" in err
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
    assert impruver_train(recipe(trainer={"report_to": "wandb"}), "--dry_run")[0] == 0  # and no server was asked


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("neptune", {"NEPTUNE_MODE": "offline"}),
        ("neptune", {"NEPTUNE_API_TOKEN": "x", "NEPTUNE_PROJECT": "a/b"}),
        ("clearml", {"CLEARML_OFFLINE_MODE": "1"}),
        ("clearml", {"CLEARML_API_ACCESS_KEY": "x", "CLEARML_API_SECRET_KEY": "y"}),
        ("clearml", {"CLEARML_CONFIG_FILE": "clearml.conf"}),
        ("swanlab", {"SWANLAB_MODE": "local"}),
        ("swanlab", {"SWANLAB_API_KEY": "x"}),
        ("swanlab", {"SWANLAB_SAVE_DIR": "."}),
    ],
)
def test_logins_are_found(name, variables, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "clearml.conf").write_text('api { credentials { "access_key" = "x" } }')
    (tmp_path / ".netrc").write_text("machine api.swanlab.cn login user password x\n")
    assert LOGINS[name](None) is not None
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert LOGINS[name](None) is None


def test_trackers_that_end_the_process_or_never_end_stop_nothing(recipe, as_process, tmp_path):
    packages = tmp_path / "packages"
    for path, text in {
        "codecarbon/__init__.py": CODECARBON,
        "dvclive/__init__.py": DVCLIVE,
        "dvclive/plots.py": PLOTS,
        "dvclive/utils.py": "def standardize_metric_name(*_): return ''\n",
    }.items():
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_text(text)
    (tmp_path / "board").write_text("a file, where TensorBoard wants a folder")
    config = recipe(trainer={"report_to": ["codecarbon", "dvclive", "tensorboard"], "max_steps": 2})
    environment = {"PYTHONPATH": str(packages), "TENSORBOARD_LOGGING_DIR": str(tmp_path / "board")}
    begun = time.monotonic()
    run = as_process("--config", config, IMPRUVER_TRACKER_SECONDS="1", **environment)
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - begun < 200
    assert run.stdout.startswith("wrote the adapter to")
    assert "CodeCarbonCallback failed and gets no more logs; training goes on: SystemExit('no sensor')" in run.stderr
    assert "TensorBoardCallback failed" in run.stderr
    assert "DVCLiveCallback did not finish sending within 1 s" in run.stderr
    assert "a tracker is still at work; the process ends without it" in run.stderr
    assert (tmp_path / "out" / "ended").read_text() == "True"
