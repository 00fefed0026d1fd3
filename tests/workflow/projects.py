"""Copies of the project, and Snakemake run in them for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))
PARTS = ("Snakefile", "config", "profiles", "workflow", "tests/fixtures")
TINY = ("--configfile", "tests/fixtures/tiny.yaml")


def copy_project(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, place / part)
    return place


def snakemake(folder: Path, *arguments: str, env: dict[str, str] | None = None):
    return subprocess.run(
        [SNAKEMAKE, "--cores", "2", *arguments], cwd=folder, text=True, timeout=900, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})},
    )  # fmt: skip


def rules_of(output: str) -> dict[str, int]:
    """Rule counts from the job table of a dry run."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)\n\n", output, re.S | re.M)
    if table is None:
        return {}
    counts = {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}
    counts.pop("total", None)
    return counts


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
