"""Some cells of the table of faults; all of them: tools/faults.py."""

import pytest
from faults.table import FAULTS, judge
from faults.workspace import TOOLS, Project

CELLS = [
    ("SIGTERM midway", "compose"),
    ("SIGKILL midway", "train"),
    ("two at once", "gguf"),
    ("the input changed midway", "gguf"),
    ("a child killed", "chat"),
]


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("faults"))
    project.build()
    return project


def test_the_table_is_large_enough():
    assert len(FAULTS) >= 34
    assert len(TOOLS) == 4


@pytest.mark.parametrize(("fault", "tool"), CELLS)
def test_cell(fault, tool, project, tmp_path):
    assert judge(fault, tool, project, tmp_path / "workspace") == []
