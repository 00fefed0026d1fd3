"""The project's own promises: pins, floors, thin scripts, and what may not stand in the code."""

from __future__ import annotations

import ast
import re

import pytest
import yaml
from conftest import ROOT

LIBRARY = ROOT / "workflow/scripts/veil"
FLOORS = {
    "config": 0, "config_docs": 0, "provenance": 0,
    "artifacts": 1, "volumes": 1, "patches": 1, "cohorts": 1,
    "privacy": 2, "evaluation": 2, "training": 3,
    "generators": 4, "segmentation": 4, "report": 5, "planning": 5,
    "release": 5,
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: p.stem)
def test_a_floor_leans_only_on_the_floors_below(path):
    if path.parent == LIBRARY and path.stem == "__init__":
        return
    mine = FLOORS[path.relative_to(LIBRARY).parts[0].removesuffix(".py")]
    for name in imports(path):
        assert not name.startswith("snakemake"), f"{path} imports {name}"
        parts = name.split(".")
        if parts[0] == "veil" and len(parts) > 1:
            assert FLOORS[parts[1]] <= mine, f"{path} leans on {name}, a floor above"


def test_entry_points_are_thin():
    for path in (ROOT / "workflow/scripts").glob("*.py"):
        if path.name != "job.py":  # what they share
            assert len(path.read_text().splitlines()) <= 50, path.name


def test_conda_pins_are_the_lock_files():
    environment = yaml.safe_load((ROOT / "workflow/envs/veil.yaml").read_text())
    pins = set(next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict)))
    locked = set((ROOT / "constraints.txt").read_text().split())
    assert pins <= locked
    direct = re.findall(r"^([a-z][a-z0-9-]*)", (ROOT / "requirements.in").read_text(), re.M)
    wanted = {name for name in direct if not name.startswith("snakemake")}
    assert {pin.split("==")[0] for pin in pins} == wanted


def test_the_container_is_the_environment():
    text = (ROOT / "Dockerfile").read_text()
    python = yaml.safe_load((ROOT / "workflow/envs/veil.yaml").read_text())["dependencies"][0]
    assert f"FROM python:{python.removeprefix('python=')}-" in text
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()}
    kept = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


RULES = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
BODIES = dict(re.findall(r"^(?:use )?rule (?:\w+ as )?(\w+)(.*?)(?=^\S|\Z)", RULES, re.M | re.S))
ON_GPUS = {name for name, body in BODIES.items() if re.search(r"^ +gpu=", body, re.M)}


def profile(name):
    return yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())


def test_the_gres_profile_asks_for_the_same_gpus_in_other_words():
    gres = profile("slurm-gres")
    asked = gres.pop("set-resources")
    assert gres == profile("slurm")
    assert asked == {name: {"gpu": 0, "gres": "gpu:1"} for name in ON_GPUS}


def test_cluster_profiles_name_rules_that_there_are_and_group_none_that_trains():
    keys = profile("slurm")
    assert {*keys["groups"], *keys["set-threads"]} <= set(BODIES)
    assert ON_GPUS.isdisjoint(keys["groups"])
    assert {**profile("default"), **keys} == {**keys, "cores": "all"}


def test_randomness_is_always_passed_in():
    """No global seeds and no global draws anywhere in the library."""
    bad = re.compile(
        r"np\.random\.(seed|rand|randn|choice|normal|permutation)\(|torch\.manual_seed\(|random\.seed\("
    )
    for path in LIBRARY.rglob("*.py"):
        assert not bad.search(path.read_text()), path


def test_nothing_is_unpickled():
    for path in (ROOT / "workflow").rglob("*.py"):
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "pickle" not in text.replace("unpickled", "").replace("allow_pickle=False", ""), path


def test_the_readmes_figures_exist():
    text = (ROOT / "README.md").read_text()
    for place in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / place).exists(), place
