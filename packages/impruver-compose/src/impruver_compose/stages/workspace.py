"""`Workspace`: the stages of a run, each a folder of files, made by an engine and gone on with after a stop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.cli.console import log_info, open_progress
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_folder, get_cache_dir, remove_path, remove_stale_parts, reserve_space
from impruver_core.io.integrity import write_record
from impruver_core.io.locks import lock_folders, lock_unused
from impruver_core.system import get_available_memory

from impruver_compose.sections import ComposeSection
from impruver_compose.stages.column_files import ColumnFile, Columns, write_columns
from impruver_compose.stages.engine import Engine, open_engine
from impruver_compose.stages.large_arrays import ArrayStore
from impruver_compose.storage import is_missing, make_own_folder

STAGES = "stages"  # folder of a run's stages
PROCESS_SHARE = 16  # of its process's memory an array in memory takes at most one in so many


class KeyRange(NamedTuple):
    """The rows of files whose keys are in part number `part` of so many equal ranges."""

    files: Sequence[Path]
    part: int
    parts: int


class StageTask(NamedTuple):
    """What a file of a stage is made of, and where it goes."""

    source: Any
    path: Path


class Workspace:
    """A folder for the files of stages, and the engine and the bytes of memory that they may use together."""

    def __init__(self, work_dir: Path, engine: Engine, max_memory: int, name: str = ""):
        self.work_dir, self.folder = work_dir, work_dir / STAGES / name
        self.engine, self._max_memory = engine, max_memory
        self.process_memory = max_memory // engine.processes
        self.arrays = ArrayStore(self.folder, self.process_memory // PROCESS_SHARE)

    @contextmanager
    def open_folder(self, name: str) -> Iterator[Workspace]:
        """Opens the folder of stages that all have to do with the same rows; another run that does waits."""
        opened = Workspace(self.work_dir, self.engine, self._max_memory, name)
        folder = opened.folder
        make_own_folder(folder)
        with lock_unused(folder) as unused:
            if not unused:
                log_info(f"another run is at work in {folder}: this one waits for what it makes there")
        with lock_folders([folder]):
            os.utime(folder)
            yield opened

    def each(
        self,
        stage: str,
        sources: Sequence[Any],
        function: Callable[[Any, Any], Columns],
        shared: Any,
        rows: int,
        unit: str,
    ) -> list[Path]:
        """Makes one file of each source by `function(shared, source)`; files that are there are kept.

        Args:
            stage: its name, and behind a hyphen into what its rows are cut: files that were cut otherwise are others.
            rows: how many the sources have together, called `unit`.
        """
        folder = self.folder / stage
        tasks = [StageTask(source, folder / f"{number:06d}.arrow") for number, source in enumerate(sources)]
        make_own_folder(folder)
        remove_stale_parts(folder)
        missing = [task for task in tasks if is_missing(task.path)]
        with open_progress(rows, stage.partition("-")[0], unit) if len(missing) > 1 else nullcontext() as progress:
            for count in self.engine.run(partial(_make_file, function), missing, shared):
                if progress is not None:
                    progress.update(count)
        paths = [task.path for task in tasks]
        if missing:
            _write_manifest(folder, stage, rows, paths)
        return paths

    def grouped(
        self,
        stage: str,
        files: Sequence[Path],
        parts: int,
        function: Callable[[Any, KeyRange], Columns],
        shared: Any,
        rows: int,
        unit: str,
    ) -> list[Path]:
        """Makes `parts` files by `function(shared, key_range)`, to each of which all rows of a key come together."""
        return self.each(stage, [KeyRange(files, part, parts) for part in range(parts)], function, shared, rows, unit)

    def reserve(self, needed: int) -> AbstractContextManager[None]:
        """Checks that the disk has room for files of so many bytes; one that fills up meanwhile is ImpruverError."""
        return reserve_space(self.folder, needed)

    def remove_stages(self) -> None:
        """Removes the folders of stages that nothing is made of any more, and what killed processes left beside."""
        remove_stale_parts(self.folder)
        for folder in self.folder.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_workspace(section: ComposeSection, where: str, processes: int) -> Iterator[Workspace]:
    """Opens the folder, the engine and the share of memory that the recipe's section, the key `where`, asks for."""
    work_dir = resolve_work_dir(section, where)
    with open_engine(section, where, processes) as engine:
        yield Workspace(work_dir, engine, section.max_memory or get_available_memory() // 2)


def resolve_work_dir(section: ComposeSection, where: str) -> Path:
    """The folder of encoded rows and of stages; ImpruverError where the one of the recipe's section can't be one."""
    if not section.work_dir:
        return get_cache_dir()
    try:
        work_dir = Path(section.work_dir).expanduser().absolute()
    except RuntimeError:
        raise ImpruverError(f"{where}.work_dir: {section.work_dir}: there is no such home folder") from None
    check_folder(work_dir, f"{where}.work_dir")
    return work_dir


def _make_file(function: Callable, shared: Any, task: StageTask) -> int:
    content = function(shared, task.source)
    write_columns(task.path, content)
    return content.count_read()


def _write_manifest(folder: Path, stage: str, rows: int, paths: Sequence[Path]) -> None:
    """Writes what became of a stage's rows, and asserts that all of them were read."""
    files = [ColumnFile(path) for path in paths]
    read, written, dropped = (sum(getattr(file, name) for file in files) for name in ("rows_read", "rows", "dropped"))
    if rows != read:
        raise AssertionError(f"{stage}: {read} rows were read of {rows}")
    counts = {"stage": stage, "rows_in": rows, "rows_out": written, "dropped": dropped}
    record = folder / "stage.json"
    remove_path(record)
    write_record(record, counts | {"files": [path.name for path in paths]})
