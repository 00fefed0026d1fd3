"""What a study will cost, told before anything is spent, and the halt at the budget."""

from __future__ import annotations

import dataclasses

import faults
import pytest

from veil import artifacts, config, generators, planning
from veil.privacy import accounting


def row_of(level: str = "sigma-1", seeds: int = 2, **changes) -> dict:
    entry = planning.Entry("wgan", level, seeds, faults.task(level, **changes))
    return planning.plan([entry], threads=1).to_dict("records")[0]


def test_a_row_says_what_training_will_state():
    row = row_of()
    stated = faults.stated(faults.task().model_dump_json())
    assert row["eps patch"] == stated["epsilon"]
    assert row["eps patient"] == stated["epsilon_patient"]
    assert (row["sigma"], row["draws"], row["delta"]) == (1, 150, 0.01)
    assert row["hours here"] > 0
    assert row["eps published"] is None


def test_work_grows_with_seeds_and_updates():
    longer = faults.SETTINGS.model_copy(update={"generator_updates": 60})
    once, twice = row_of(), row_of(settings=longer)
    assert twice["PFLOP"] == pytest.approx(2 * once["PFLOP"])
    assert row_of(seeds=1)["PFLOP"] == pytest.approx(once["PFLOP"] / 2)


def test_patients_are_told_what_they_cannot_pay_for():
    row = row_of(level="patient-eps-1")
    assert row["eps patient"] <= 1
    assert row["eps patch"] <= 2 * row["eps patient"] * 1.5
    assert "patients: strong" in row["meaning"]
    assert "out of reach from scratch" in row["meaning"]


@pytest.mark.parametrize("kind", ["phantom", "real"])
def test_what_is_not_private_says_so(kind):
    settings = (
        config.RealGenerator(kind=kind) if kind == "real" else config.PhantomGenerator(kind=kind)
    )
    row = row_of(level="none", settings=settings)
    assert (row["eps patient"] == 0) == (kind == "phantom")
    assert row["PFLOP"] == row["hours here"] == 0


def test_a_public_start_is_planned_once_for_all_levels():
    points = [
        {"generator": "denoiser", "privacy": ["none", "eps-5"], "seeds": [0, 1]},
        {"generator": "denoiser", "privacy": ["eps-9"], "seeds": [1, 2]},
        {"generator": "real"},
    ]
    study = config.Study(
        generators={"real": {"kind": "real"}, "denoiser": faults.DENOISER}, points=points
    )
    entries = planning.entries(study)
    starts = [entry for entry in entries if entry.privacy == planning.START]
    assert [(entry.generator, entry.seeds) for entry in starts] == [("denoiser", 3)]
    row = planning.plan(starts, threads=1).to_dict("records")[0]
    assert row["eps patch"] == row["eps patient"] == 0
    longer = faults.DENOISER.model_copy(update={"public_steps": 20})
    twice = planning.plan(
        [planning.Entry("denoiser", planning.START, 3, faults.task(settings=longer))], threads=1
    )
    assert row["hours here"] > 0
    work = twice["PFLOP"][0] * faults.DENOISER.public_steps / 20
    per_pixel = (study.patches.size / 16) ** 2
    assert row["PFLOP"] == pytest.approx(work * per_pixel, rel=0.1)


def test_training_halts_before_the_update_that_would_pass_the_budget(tmp_path):
    faults.prepare(tmp_path)
    whole = generators.build(faults.task()).charge
    budget = accounting.epsilon([whole], 0.01) / 2
    given = faults.task(budget=budget)
    generator = faults.fit(given, tmp_path, tmp_path / "run")

    tensors, _ = artifacts.load_tensors(tmp_path / "run/state/checkpoint.safetensors")
    draws = int(tensors["mechanism.draws"])
    assert 0 < draws < whole.draws
    next_update = dataclasses.replace(whole, draws=draws + given.settings.critic_updates)
    assert accounting.epsilon([next_update], 0.01) > budget

    statement = generator.spent()
    assert statement["epsilon"] <= budget
    assert statement["events"][0]["draws"] == draws
    assert statement["halted"].startswith(f"after {draws} of {whole.draws} draws")
    assert "halted by the budget" in row_of(budget=budget)["meaning"]
