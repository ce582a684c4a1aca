"""The documents hold together: links lead somewhere, pins and versions agree, generated pages are fresh."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)|\b(?:src|href)=\"(?!https?:|#)([^\"#]+)\"")


def _pages(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")]


def _project_table(root: Path) -> str:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return text[: text.index("[tool.")]


def test_links_lead_to_files(repo_root: Path) -> None:
    broken = []
    for page in _pages(repo_root):
        for match in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = match.group(1) or match.group(2)
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(repo_root)} -> {target}")
    assert not broken, "; ".join(broken)


def test_changelog_has_this_version(repo_root: Path) -> None:
    version = re.search(r'^version = "(.+)"$', _project_table(repo_root), re.MULTILINE)
    assert version is not None
    assert f"## {version.group(1)}" in (repo_root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_keeps_the_place_of_the_figure(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- accuracy:start -->") == text.count("<!-- accuracy:end -->") == 1


def test_every_direct_dependency_is_pinned_exactly(repo_root: Path) -> None:
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    # A local version (torch's +cpu) would tie the file to one index of wheels.
    assert [p for p in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", p)] == []
    pinned = {p.partition("==")[0].lower().replace("_", "-") for p in pins}
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z0-9-]+)>=[^"]*"', _project_table(repo_root))}
    assert {"torch", "onnxruntime", "ruff", "hatchling"} <= wanted
    # tomli fills in for the standard library before 3.11, and the pins are for 3.11 and newer.
    assert wanted - pinned == {"tomli"}


@pytest.mark.skipif(
    os.environ.get("QTL_TIER") == "bare" or importlib.util.find_spec("torch") is None,
    reason="the commands' pages are made in the full install",
)
def test_command_pages_are_fresh(repo_root: Path) -> None:
    program = "import sys; sys.path.insert(0, 'docs'); import generate_cli as g; sys.stdout.write(g.page())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=repo_root,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (repo_root / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == done.stdout, "docs/cli.md is stale: run `make docs`"
