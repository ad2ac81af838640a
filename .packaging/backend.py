"""setuptools, with what pyproject.toml can't say: a wheel has the folder training/ as manual_rnn.training, a
source archive the tests."""

from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

SOURCES = ("manual_rnn", "training", "tests", ".ci", ".github", ".packaging")
COMPILED = {".so", ".pyc", ".pyd"}


class BuildPy(build_py):
    """Leaves an editable install a path, rather than import hooks that type checkers can't follow."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [*self.packages, "manual_rnn.training"]
            self.package_dir = {**self.package_dir, "manual_rnn.training": "training"}


class Sdist(sdist):
    """The whole project, as a clone has it."""

    def make_distribution(self) -> None:
        for folder in SOURCES:
            files = (path for path in Path(folder).rglob("*") if path.is_file())
            self.filelist.extend(str(path) for path in files if path.suffix not in COMPILED)
        super().make_distribution()
