"""The configuration: refusals name key, value and what is allowed; generated files are current."""

from __future__ import annotations

import pytest
import yaml
from conftest import ROOT

from veil import config, config_docs


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"patches": {"sise": 3}}, ["patches.sise", "unknown key", "did you mean 'size'"]),
        ({"pears": 3}, ["pears", "did you mean 'pairs'"]),
        ({"segmentation": {"grid": {"dropuot": [0]}}}, ["segmentation.grid.dropuot", "'dropout'"]),
        (
            {"cohorts": {"a": {"kind": "phantom", "phantom": {"scaner": {}}}}},
            ["cohorts.a.phantom.scaner", "did you mean 'scanner'"],
        ),
        ({"generators": {"wgan": {"kind": "wgan", "lop": "x"}}}, ["generators.wgan.lop", "'loop'"]),
        ({"generators": {"wgan": {"kind": "gan"}}}, ["generators.wgan", "'gan'", "'wgan'"]),
        ({"points": [{"generator": "wgn"}]}, ["'wgn'", "did you mean 'wgan'"]),
        ({"points": [{"generator": "wgan", "privacy": ["sigma-.65"]}]}, ["sigma-.65", "sigma-X"]),
        ({"points": [{"generator": "wgan", "privacy": ["sigma-0"]}]}, ["sigma-0", "above 0"]),
        ({"points": [{"generator": "real", "privacy": ["sigma-1"]}]}, ["real", "'none'"]),
        ({"pairs": "many"}, ["pairs", "'many'"]),
        ({"patches": {"size": 7}}, ["patches.size", "7", "8"]),
        ({"patches": {"size": 40}}, ["patches.size: 40", "96"]),
        ({"cohort": "frist"}, ["cohort", "'frist'", "did you mean 'first'"]),
        ({"privacy": {"delta": 1.5}}, ["privacy.delta", "1.5", "less than 1"]),
        (
            {"cohorts": {"x": {"kind": "bids", "path": "${VEIL_NOWHERE}/x", "splits": {}}}},
            ["cohorts.x.path", "VEIL_NOWHERE", "not set"],
        ),
    ],
)
def test_faults_are_refused_by_name(raw, words):
    with pytest.raises(config.ConfigError) as refusal:
        config.load(raw)
    for word in words:
        assert word in str(refusal.value)


def test_every_fault_is_listed():
    with pytest.raises(config.ConfigError) as refusal:
        config.load({"pairs": 1, "sed": 2, "patches": {"size": 0}})
    assert str(refusal.value).count("\n") == 3


@pytest.mark.parametrize("text", ["none", "sigma-0.65", "sigma-2", "eps-5", "eps-0.1", "sigma-10"])
def test_privacy_levels_have_one_spelling(text):
    level = config.PrivacyLevel.parse(text)
    spelt = level.kind if level.kind == "none" else f"{level.kind}-{level.value:g}"
    assert spelt == text


@pytest.mark.parametrize(
    "text", ["", "None", "sigma-0.650", "sigma-1.0", "sigma-01", "eps--1", "eps-1e3"]
)
def test_other_spellings_are_refused(text):
    with pytest.raises(ValueError, match="privacy level"):
        config.PrivacyLevel.parse(text)


def test_generated_files_are_current():
    for place, text in config_docs.GENERATED.items():
        assert (ROOT / place).read_text() == text(), f"{place} is stale: run `make config`"


def test_the_default_file_is_the_default_study():
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert config.load(raw) == config.Study()


def test_the_grid_has_eight_cells_as_in_the_paper():
    grid = config.Grid(learning_rate=(1e-4, 8e-5), dropout=(0, 0.1), augment=(True, False))
    cells = grid.cells()
    assert len(set(cells)) == 8
    assert config.Grid.parse(cells[2]) == (1e-4, 0.1, True)


@pytest.mark.parametrize(
    ("size", "levels"), [(96, (3, 5)), (32, (2, 4)), (64, (2, 5)), (48, (3, 4)), (40, None)]
)
def test_wgan_sizes(size, levels):
    assert config.wgan_levels(size) == levels


@pytest.mark.parametrize("study", ["dias", "frontier", "kossen2022", "minutes"])
def test_a_studys_ranges_are_its_own(study, monkeypatch):
    """Merged key by key, as the workflow engine does it, phantoms would vary in the demonstration's
    settings too."""
    from snakemake.utils import update_config

    monkeypatch.setenv("VEIL_REAL_DATA", "/data")
    path = ROOT / f"config/studies/{study}.yaml"
    given = yaml.safe_load(path.read_text())
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    update_config(raw, given)
    config.keep_whole(raw, path)
    loaded = config.load(raw)
    for name, settings in given["generators"].items():
        if "vary" in settings.get("phantom", {}):
            wanted = {key: tuple(ends) for key, ends in settings["phantom"]["vary"].items()}
            assert loaded.generators[name].phantom.vary == wanted
