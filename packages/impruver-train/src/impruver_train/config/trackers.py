"""Whether each tracker of `trainer.report_to` can be used: its package is installed, its class made, it is logged in.

No server is asked, and nobody at the terminal. Which variables and files hold a login is as in the trackers' sources;
a mode that sends nothing needs none.
"""

from __future__ import annotations

import netrc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from impruver_core.cli.stop_signals import TerminationSignal
from impruver_core.errors import ImpruverError, describe_error

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments


class TrackerPackage(NamedTuple):
    """The modules that a tracker is made of, of which one will do, and what to install for them."""

    modules: tuple[str, ...]
    install: str


# As transformers names the trackers in INTEGRATION_TO_CALLBACK.
PACKAGES = {
    "azure_ml": TrackerPackage(("azureml",), "azureml-sdk"),
    "clearml": TrackerPackage(("clearml",), "clearml"),
    "codecarbon": TrackerPackage(("codecarbon",), "codecarbon"),
    "comet_ml": TrackerPackage(("comet_ml",), "comet-ml"),
    "dagshub": TrackerPackage(("dagshub",), "dagshub mlflow"),
    "dvclive": TrackerPackage(("dvclive",), "dvclive"),
    "flyte": TrackerPackage(("flytekit",), "flytekit"),
    "mlflow": TrackerPackage(("mlflow",), "mlflow"),
    "neptune": TrackerPackage(("neptune",), "neptune"),
    "swanlab": TrackerPackage(("swanlab",), "swanlab"),
    "tensorboard": TrackerPackage(("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": TrackerPackage(("trackio",), "trackio"),
    "wandb": TrackerPackage(("wandb",), '"impruver-train[wandb]"'),
}
# Variables by which transformers' own check hides a tracker that is installed.
SWITCHES = {
    "mlflow": "DISABLE_MLFLOW_INTEGRATION",
    "dagshub": "DISABLE_MLFLOW_INTEGRATION",
    "kubeflow": "DISABLE_KUBEFLOW_INTEGRATION",
}
YES = ("1", "true", "yes", "on", "y", "t")


def list_tracker_names(report_to: Any) -> list[str]:
    """The names that `trainer.report_to` holds, each once; `all` and `none` stay as they are."""
    names = report_to if isinstance(report_to, (list, tuple)) else [report_to]
    return list(dict.fromkeys(str(name) for name in names if name is not None))


def check_tracker_packages(report_to: Any) -> None:
    """ImpruverError for a tracker whose package is not installed, before anything heavy is imported."""
    for name in list_tracker_names(report_to):
        package = PACKAGES.get(name)
        if package is not None and not any(find_spec(module) for module in package.modules):
            raise ImpruverError(
                f"trainer.report_to: {name} needs {package.modules[0]}: pip install {package.install}, or leave it out"
            )


def check_trackers(arguments: TrainingArguments) -> None:
    """ImpruverError for the first of a run's trackers that can't be made here, or that is not logged in."""
    for name in list_tracker_names(arguments.report_to):
        make_tracker(name)
        with _refusing(name):
            missing = LOGINS[name](arguments) if name in LOGINS else None
        if missing:
            raise ImpruverError(f"trainer.report_to: {name} is not logged in: {missing}")


def make_tracker(name: str) -> TrainerCallback:
    """transformers' callback for the tracker `name`; whatever its making raises is an ImpruverError."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    switch = SWITCHES.get(name)
    if switch is not None and os.environ.get(switch, "").upper() == "TRUE":
        raise ImpruverError(f"trainer.report_to: {name} is switched off by {switch}; unset it, or leave {name} out")
    with _refusing(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' own, on trackers that it will give up
        return INTEGRATION_TO_CALLBACK[name]()


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever a tracker's package raises within, an end of the process included, is an ImpruverError."""
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal):
        raise
    except BaseException as error:
        words = describe_error(error)[:300] if isinstance(error, Exception) else f"it ended with {error!r:.100}"
        package = PACKAGES.get(name)
        advice = f"; pip install --upgrade {package.install}, or leave it out" if package else "; leave it out"
        raise ImpruverError(f"trainer.report_to: {name} can't be used here: {words}{advice}") from error


def _find_wandb_login(_arguments: TrainingArguments) -> str | None:
    import wandb

    # The environment, and what `wandb offline` wrote. wandb.login would ask the server.
    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun", "disabled") or _is_set("WANDB_DISABLED"):
        return None
    keys = [getattr(settings, name, None) for name in ("api_key", "identity_token_file")]
    keys += [os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")]
    server = urlsplit(settings.base_url).netloc
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    # Servers of wandb's own share their keys.
    named = any(host == server or "wandb" in host for path in paths for host in _list_netrc_hosts(path))
    return None if any(keys) or named else "run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline"


def _find_comet_login(_arguments: TrainingArguments) -> str | None:
    from comet_ml.config import get_config

    mode = os.environ.get("COMET_MODE", "").lower()
    silent = mode and mode not in ("get", "get_or_create", "create")  # for which transformers starts no experiment
    if silent or get_config("comet.start.online") is False or get_config("comet.api_key"):
        return None
    return "run `comet login`, set COMET_API_KEY, or COMET_START_ONLINE=false"


def _find_neptune_login(_arguments: TrainingArguments) -> str | None:
    if os.environ.get("NEPTUNE_MODE", "").lower() in ("offline", "debug"):
        return None
    absent = [name for name in ("NEPTUNE_API_TOKEN", "NEPTUNE_PROJECT") if not os.environ.get(name)]
    return f"set {' and '.join(absent)}" if absent else None


def _find_clearml_login(_arguments: TrainingArguments) -> str | None:
    def get(name: str) -> str:
        return os.environ.get(f"CLEARML_{name}") or os.environ.get(f"TRAINS_{name}") or ""

    if get("OFFLINE_MODE").lower() in YES or get("AUTH_TOKEN") or (get("API_ACCESS_KEY") and get("API_SECRET_KEY")):
        return None
    paths = [get("CONFIG_FILE")] if get("CONFIG_FILE") else ["~/clearml.conf", "~/trains.conf"]
    if any("access_key" in _read(path) for path in paths):
        return None
    return "run `clearml-init`, set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or CLEARML_OFFLINE_MODE=1"


def _find_swanlab_login(_arguments: TrainingArguments) -> str | None:
    if os.environ.get("SWANLAB_MODE") in ("local", "offline", "disabled") or os.environ.get("SWANLAB_API_KEY"):
        return None
    own = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or "~/.swanlab"
    if any(_list_netrc_hosts(f"{folder}/.netrc") for folder in (".swanlab", own)):
        return None
    return "run `swanlab login`, set SWANLAB_API_KEY, or SWANLAB_MODE=offline"


def _find_dagshub_login(_arguments: TrainingArguments) -> str | None:
    from dagshub.common import config

    if os.environ.get("MLFLOW_TRACKING_URI", "").count("/") < 2:
        return "set MLFLOW_TRACKING_URI to https://dagshub.com/USER/REPOSITORY.mlflow"
    if config.token or (config.username and config.password) or _read(config.cache_location).strip():
        return None
    return "run `dagshub login`, or set DAGSHUB_USER_TOKEN"


def _find_trackio_login(arguments: TrainingArguments) -> str | None:
    from huggingface_hub import get_token

    space = getattr(arguments, "trackio_space_id", None) or os.environ.get("TRACKIO_SPACE_ID")
    return f"its Space {space} wants `hf auth login`, or HF_TOKEN" if space and not get_token() else None


# What a tracker lacks to be logged in, None for nothing; trackers that write into files need no login.
LOGINS: dict[str, Callable[[TrainingArguments], str | None]] = {
    "clearml": _find_clearml_login,
    "comet_ml": _find_comet_login,
    "dagshub": _find_dagshub_login,
    "neptune": _find_neptune_login,
    "swanlab": _find_swanlab_login,
    "trackio": _find_trackio_login,
    "wandb": _find_wandb_login,
}


def _list_netrc_hosts(path: str) -> list[str]:
    """The servers that a netrc file has logins for; [] where it can't be read."""
    try:
        return list(netrc.netrc(Path(path).expanduser()).hosts)
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return []


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in YES


def _read(path: str) -> str:
    """A small configuration file's text; "" where it can't be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
    except (OSError, RuntimeError):
        return ""
