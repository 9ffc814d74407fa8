"""The files that a host runs to test and release what is claimed."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

import luma_poll

ROOT = Path(__file__).parent.parent
VERSION_FILE = '__version__ = "0.2.0"\n'
LINKS = """
[Unreleased]: https://github.com/luma-poll/luma-poll/compare/v0.2.0...HEAD
[0.2.0]: https://github.com/luma-poll/luma-poll/compare/v0.1.0...v0.2.0
"""
CHANGELOG = f"## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n- It flies.\n{LINKS}"
notes_of = runpy.run_path(str(ROOT / ".ci/check-release"))["notes_of"]


def test_the_notes_are_those_of_the_tag() -> None:
    """A release is described by its own entry."""
    assert notes_of("v0.2.0", VERSION_FILE, CHANGELOG) == "- It flies.\n"


@pytest.mark.parametrize(
    ("tag", "changelog"),
    [
        ("v0.3.0", CHANGELOG),
        ("0.2.0", CHANGELOG),
        ("v0.2.0", CHANGELOG.replace("- It flies.\n", "")),
        ("v0.2.0", CHANGELOG.replace(" - 2026-12-01", "")),
        ("v0.2.0", CHANGELOG.replace("compare/v0.2.0", "compare/v0.1.0")),
        ("v0.2.0", CHANGELOG.replace(LINKS, "")),
    ],
)
def test_what_disagrees_is_not_released(tag: str, changelog: str) -> None:
    """Another version, no entry or date, links that nobody has moved on."""
    with pytest.raises(ValueError, match=r"0\.[23]\.0"):
        notes_of(tag, VERSION_FILE, changelog)


def test_this_version_could_be_released() -> None:
    """Its entry and its links are as they must be."""
    version_file = (ROOT / "luma_poll/_version.py").read_text()
    tag = f"v{luma_poll.__version__}"
    assert notes_of(tag, version_file, (ROOT / "CHANGELOG.md").read_text())


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
    return loaded


def test_every_version_that_is_claimed_is_tested() -> None:
    """The classifiers of the package are the matrix of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    claimed = [
        each.rpartition(" ")[2] for each in project["classifiers"] if each.startswith(prefix)
    ]
    assert workflow("ci")["jobs"]["tests"]["strategy"]["matrix"]["python"] == claimed


@pytest.mark.parametrize("name", ["ci", "release", "site"])
def test_workflows_may_read_and_no_more(name: str) -> None:
    """Whatever else a job needs, it asks for itself."""
    assert workflow(name)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("name", ["ci", "release", "site"])
def test_actions_are_pinned_by_hash(name: str) -> None:
    """A tag of somebody else's can be moved after it was reviewed; a hash cannot."""
    uses = re.findall(r"uses: (\S+)", (ROOT / f".github/workflows/{name}.yml").read_text())
    assert uses
    assert [each for each in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", each)] == []


def test_what_is_released_has_passed_the_gate() -> None:
    """A tag may name a commit that was never tested."""
    jobs = workflow("release")["jobs"]
    assert "bash .ci/run" in [step.get("run") for step in jobs["gate"]["steps"]]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("gate", "build")
