"""What pyproject.toml can't say: a wheel has the folder training/ as manual_rnn.training."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Leaves an editable install a path, rather than import hooks that type checkers can't follow."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.packages = [*self.packages, "manual_rnn.training"]
            self.package_dir = {**self.package_dir, "manual_rnn.training": "training"}


setup(cmdclass={"build_py": BuildPy})
