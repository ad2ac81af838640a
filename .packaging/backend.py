"""setuptools, with what pyproject.toml can't say: a wheel has the folder training/ as manual_rnn.training, a
source archive the tests; and the engine is a plain shared library, for any Python."""

from pathlib import Path

from setuptools.build_meta import *  # noqa: F403
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

SOURCES = ("manual_rnn", "training", "tests", ".ci", ".github", ".packaging")
FILES = (".clang-format", ".pre-commit-config.yaml")
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
        self.filelist.extend(FILES)
        super().make_distribution()


class BuildExt(build_ext):
    """Without Python's headers and names: torch loads the library, not an import."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: object) -> list[str]:
        return []


class Wheel(bdist_wheel):
    """For every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]
