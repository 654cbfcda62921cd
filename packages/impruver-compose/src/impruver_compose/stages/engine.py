"""Where the stages of a run are computed: the one thing that an engine has to offer.

An engine runs a function on tasks. What the tasks read and write are files, so that no stage knows which engine it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from impruver_compose.sections import ComposeSection

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs functions of a module on tasks, several at a time."""

    processes: int  # at a time

    def run(
        self, function: Callable[[Shared, Task], Result], tasks: Sequence[Task], shared: Shared
    ) -> Iterator[Result]:
        """Yields what `function(shared, task)` returns for each task, as they are done, in any order.

        Raises:
            ImpruverError: a process was lost, and so the task that it worked on.
            Exception: what `function` raises; tasks that have not begun are left.
        """
        ...


def open_engine(section: ComposeSection, where: str, processes: int) -> AbstractContextManager[Engine]:
    """Opens the engine that the recipe names; with Ray what it runs on is found, or started, before anything else."""
    if section.engine == "ray":
        from impruver_compose.stages.ray_engine import open_ray

        return open_ray(section.address, where, processes)
    from impruver_compose.stages.local_engine import open_local

    return open_local(processes)
