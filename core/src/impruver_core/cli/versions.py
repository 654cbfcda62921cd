"""Versions of installed packages, read from their metadata: nothing is imported."""

from importlib.metadata import PackageNotFoundError, version

CORE = "impruver-core"


def get_installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def format_version_line(program: str) -> str:
    """`impruver-train 0.1.0 (impruver-core 0.1.0)`."""
    core = get_installed_version(CORE)
    own = get_installed_version(program)
    return f"{program} {own} ({CORE} {core})" if own else f"{program} {core} ({CORE})"
