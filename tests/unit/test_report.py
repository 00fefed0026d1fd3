"""Tables of a study: what the frontier makes of points and scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from veil.report import figures, page, tables


def study(**scores):
    """(points, summary) of generators with DSCs by seed; the name's end says its epsilon."""
    epsilons = {"real": np.inf, "phantom": 0.0}
    points, summary = [], []
    for name, values in scores.items():
        epsilon = epsilons.get(name, 2.0)
        guarantee = {0.0: "public", np.inf: "none"}.get(epsilon, "differential privacy")
        for seed, value in enumerate(values):
            keys = {"generator": name, "privacy": "none", "seed": seed}
            points.append(
                {**keys, "guarantee": guarantee, "epsilon": epsilon / 2,
                 "epsilon_patient": epsilon, "epsilon_patient_strict": 2 * epsilon, "training_minutes": 1.0, "start_minutes": 0.5, "frechet": 1.0}
            )  # fmt: skip
            for metric, mean in (("dsc", value), ("bahd_voxel", np.nan if not value else 3.0)):
                summary.append({**keys, "test_cohort": "a", "metric": metric, "mean": mean})
    return pd.DataFrame(points), pd.DataFrame(summary)


def test_gain_is_over_the_free_floor_with_both_spreads():
    table = tables.frontier_table(
        *study(real=[0.8], phantom=[0.5, 0.6], diffusion=[0.7, 0.9]), "a"
    ).set_index("generator")
    assert list(table.index) == ["real", "phantom", "diffusion"]  # as the study names them
    assert table.gain["diffusion"] == pytest.approx(0.25)
    assert table.gain_sd["diffusion"] == pytest.approx(
        np.hypot(np.std([0.5, 0.6], ddof=1), np.std([0.7, 0.9], ddof=1))
    )
    assert table.gain["phantom"] == 0
    assert table.seeds["diffusion"] == 2


def test_no_floor_no_gain_and_undefined_distances_stay_undefined():
    table = tables.frontier_table(*study(real=[0.8], wgan=[0.0]), "a").set_index("generator")
    assert table.gain.isna().all()
    assert np.isnan(table.bahd_voxel["wgan"])
    assert table.dsc["wgan"] == 0


def test_a_spread_is_shown_where_there_is_one():
    assert page.spread(0.7264, 0.0319) == "0.73 ± 0.03"
    assert page.spread(0.7264, float("nan"), 3) == "0.726"
    assert page.spread(float("nan"), float("nan")) == "–"


def test_figure_places_zero_and_infinity_beside_the_axis():
    figure = figures.frontier(
        tables.frontier_table(*study(real=[0.8], phantom=[0.5], diffusion=[0.7, 0.8]), "a")
    )
    axis, lower = figure.axes[0], figure.axes[2]
    labels = [label.get_text() for label in lower.get_xticklabels()]
    assert labels[0] == "0"
    assert labels[-1] == "∞"
    drawn = {c.get_label(): c[0].get_xdata()[0] for c in axis.containers}
    ticks = axis.get_xticks()
    assert drawn["phantom"] == ticks[0]
    assert drawn["real"] == ticks[-1]
    assert drawn["diffusion"] == pytest.approx(np.log10(2.0))
