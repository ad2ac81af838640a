r"""Workflows run what is named by commit and may do what they need; hooks have the versions that CI has."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_may_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    assert all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40} # v[\d.]+", each) for each in used), used
    for package in re.findall(r"pipx run (\S+)", path.read_text()):
        assert re.fullmatch(r"[\w-]+==[\d.]+", package), package


def test_ci_runs_on_a_push_and_weekly_without_blocking() -> None:
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    workflow = yaml.safe_load(text)
    on = workflow[True]  # YAML's word for it
    assert "push" in on
    assert len(on["schedule"]) == 1
    jobs = workflow["jobs"]
    assert jobs["tests"]["steps"][-1]["run"] == ".ci/run"
    assert jobs["newest-torch"]["steps"][-1]["run"] == ".ci/versions newest"
    assert jobs["newest-torch"]["continue-on-error"] is True


def test_hooks_are_pinned_as_ci_is() -> None:
    constraints = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert hooks.keys() == {"ruff-check", "ruff-format", "mypy", "clang-format"}
    pins = [pin for hook in hooks.values() for pin in hook.get("additional_dependencies", ())]
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w-]+==[\d.]+", pin)
        assert pin in constraints or pin.startswith("clang-format")
