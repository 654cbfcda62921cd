"""Stages on a Ray cluster: one Ray task for each file, over the folder `work_dir` that all of its nodes mount."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any

from impruver_core.cli.console import log_info
from impruver_core.dynamic_import import list_modules_beside_recipe
from impruver_core.errors import ImpruverError, describe_error

INSTALL = "pip install 'impruver-compose[ray]'"
PACKAGE = "impruver-compose"
ADDRESS = re.compile(r"(?P<host>[^:/\s]+|\[[^\]/\s]+\]):(?P<port>\d+)")
CONNECT_SECONDS = 10.0  # within which the head node answers
POLL_SECONDS = 0.5  # within which a stop is noticed: while Ray waits, signals are seen after many seconds
RETRIES = 3  # of a task whose worker or node was lost
AHEAD = 3  # tasks for each processor that are with Ray at once: rows that are sent take memory there
STORE_BYTES = 256 << 20  # of memory for what a cluster of this machine's own sends
STOPS = (signal.SIGINT, signal.SIGTERM)
REMEMBERED = 2  # objects that all tasks of a stage need, and a worker keeps

_remembered: dict[str, Any] = {}  # in a worker


class RayEngine:
    """Runs tasks on the Ray cluster that this process is connected to."""

    def __init__(self, processes: int):
        self.processes = processes

    def run(self, function: Callable, tasks: Sequence, shared: Any) -> Iterator[Any]:
        """As `Engine.run` says."""
        import ray
        from ray import cloudpickle

        for module in list_modules_beside_recipe():  # other nodes do not have them
            cloudpickle.register_pickle_by_value(module)
        reference = ray.put((function, shared))
        remote = ray.remote(_run_task).options(num_cpus=1, max_retries=RETRIES)
        waiting, running = iter(tasks), set()
        try:
            while True:
                for task in waiting:
                    running.add(remote.remote([reference], reference.hex(), task))  # in a list: it is not looked up
                    if len(running) >= AHEAD * self.processes:
                        break
                if not running:
                    return
                for each in _wait_for_any(running):
                    running.remove(each)
                    yield _get_result(each)
        finally:
            for each in running:
                ray.cancel(each, force=True)


@contextmanager
def open_ray(address: str | None, where: str, processes: int) -> Iterator[RayEngine]:
    """Connects to the cluster at `address`, or starts one of so many processes on this machine, for as long as it runs.

    Raises:
        ImpruverError: beginning with the key `where`, if there is no Ray or no cluster, or if a node can't run tasks.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ImpruverError(f"{where}.engine: ray needs {INSTALL}") from None
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            options |= {"num_cpus": processes, "object_store_memory": STORE_BYTES, "_temp_dir": folder}
        else:
            options = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
            named = os.environ.get("RAY_ADDRESS") if address == "auto" else None  # what Ray takes for auto
            _check_address(named or address, f"{where}.address")
        handlers = {number: signal.getsignal(number) for number in STOPS}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            what = f"no Ray cluster answers at {address}" if address else "Ray can't be started here"
            raise ImpruverError(f"{where}.address: {what} ({describe_error(error)})") from None
        stack.callback(ray.shutdown)
        for number, handler in handlers.items():  # which Ray has taken over
            signal.signal(number, handler)
        found = int(ray.cluster_resources().get("CPU", 0))
        _check_nodes(where)
        log_info(f"Ray {version('ray')}: {len(ray.nodes())} nodes, {found} processors")
        yield RayEngine(max(1, found))


def _check_address(address: str, where: str) -> None:
    """ImpruverError for an address that is none, or that nothing listens at: Ray itself would try for minutes."""
    if address == "auto":
        return
    parts = ADDRESS.fullmatch(address)
    if not parts:
        raise ImpruverError(f"{where}: {address!r} is not auto, nor HOST:PORT of a cluster's head node")
    try:
        socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ImpruverError(f"{where}: nothing answers at {address} ({describe_error(error)})") from None


def _check_nodes(where: str) -> None:
    """ImpruverError where a node has another version of ours, or of Python, or can't run a task."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = _describe_installed()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise ImpruverError(f"{where}.address: the Ray cluster has no processor that runs tasks")
    described = []
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(_describe_installed).options(num_cpus=0, scheduling_strategy=strategy)
        described.append((node["NodeManagerHostname"], task.remote()))
    for host, task in described:
        try:
            _wait_for_any([task])
            found = _get_result(task)
        except ImportError as error:
            raise ImpruverError(f"{where}.address: node {host} can't run tasks: {error}: {INSTALL} there") from None
        if found != own:
            raise ImpruverError(f"{where}.address: node {host} has {found}, this machine {own}: they must be the same")


def _describe_installed() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, {PACKAGE} {version(PACKAGE)}"


def _run_task(reference: list, name: str, task: Any) -> Any:
    """Runs a task in a worker, which keeps what all tasks of a stage need: a tokenizer takes long to load."""
    import ray

    if name not in _remembered:
        while len(_remembered) >= REMEMBERED:
            _remembered.pop(next(iter(_remembered)))
        _remembered[name] = ray.get(reference[0])
    function, shared = _remembered[name]
    return function(shared, task)


def _wait_for_any(references: Iterable[Any]) -> list[Any]:
    """Those of the references that are done, as soon as there is one."""
    import ray

    done: list[Any] = []
    while not done:
        done, _ = ray.wait(list(references), timeout=POLL_SECONDS)
    return done


def _get_result(reference: Any) -> Any:
    """What a task returned, or raises what it raised; ImpruverError where what runs it was lost again and again."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ImpruverError(
            f"a Ray worker was lost {RETRIES + 1} times in the same task, most likely for want of memory ({reason}): "
            "what is done is kept, so run this command again, with fewer processors on each node"
        ) from None
