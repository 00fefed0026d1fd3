"""Twenty statements, each of every generator that takes a privacy level: what goes wrong unseen.

Numbers are those of docs/privacy.md. Generators come by their name in the registry through
`harness.CASES`; one that is missing there fails. `test_mutants.py` breaks the code and checks that
these tests notice.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from harness import CASES, PATCHES, PATIENTS, cohort, moved, train

from veil import config, generators
from veil.generators import fitted
from veil.patches import scale
from veil.privacy import accounting, ledger
from veil.privacy.accounting import Charge
from veil.privacy.mechanism import SLACK, ChargeError, Mechanism
from veil.privacy.noise import Lattice, rounded_normal
from veil.privacy.randomness import Secure, Seeded, identities


def every(*keep, **skip):
    """Parametrise over the cases: those that `keep` names by a property, but none of `skip`."""
    chosen = {
        name: case
        for name, case in CASES.items()
        if all(getattr(case, key) for key in keep)
        and not any(getattr(case, key) == value for key, value in skip.items())
    }
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


@pytest.fixture(scope="module")
def data():
    return cohort()


def mechanism(rate=0.1, units=50, draws=4000, present=None, sigma=1.0, releases=1, seed=3):
    """A mechanism by itself, over units that are told apart by number."""
    charge = Charge(
        sampling_rate=rate, noise_multiplier=sigma, draws=draws, releases_per_draw=releases
    )
    present = units if present is None else present
    return Mechanism(
        charge, units=units, present=present, clip_norm=1.0, sampler=Seeded(seed),
        noise=Seeded(seed + 1), identities=np.arange(present, dtype=np.uint64),
    )  # fmt: skip


def weights_of(run):
    return run.generator.weights()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_00_every_generator_with_a_privacy_level_is_put_through_this_suite():
    private = set(generators.REGISTRY) - set(config.UNTAUGHT)
    assert {case.settings.kind for case in CASES.values()} == private
    for kind in private:
        units = {case.patient for case in CASES.values() if case.settings.kind == kind}
        assert True in units, f"{kind} is not tried with the patient as its unit"


# ------------------------------------------------------------------ 1 to 4: charges and draws


@every()
def test_01_every_release_is_charged_and_no_draw_is_used_twice(data, case):
    run = train(case, data)
    charge = generators.build(case.task()).charge
    assert run.mechanism.draws == charge.draws
    assert len(run.mechanism.sent) == charge.draws * charge.releases_per_draw
    assert run.mechanism.releases == len(run.mechanism.sent)
    with pytest.raises(ChargeError, match="have been made"):
        run.mechanism.draw()
    assert sum(event["draws"] for event in run.generator.spent()["events"][:-1]) == charge.draws


@pytest.mark.parametrize("how", ["release", "release_fakes", "release_groups", "release_vectors"])
def test_01_a_batch_gives_no_more_than_was_paid_for(how):
    module = torch.nn.Linear(3, 1)
    batch = mechanism(rate=0.5, units=4, releases=2).draw()

    def ask():
        losses = lambda part=None: module(torch.ones(1, 3)).flatten()  # noqa: E731
        match how:
            case "release_vectors":
                batch.release_vectors(torch.ones(2, 3))
            case "release_groups":
                batch.release_groups(module, [[lambda: losses().sum()]])
            case _:
                getattr(batch, how)(module, losses, 1)

    ask()
    ask()
    with pytest.raises(ChargeError, match="paid for 2"):
        ask()


def test_01_batches_of_one_run_are_independent_draws():
    """Consecutive batches share members no more often than chance has it."""
    inside = inclusion(rate=0.2, draws=2000)
    shared = (inside[1:] * inside[:-1]).mean().item()
    assert shared == pytest.approx(0.04, abs=0.004)


@every(everybody=True)
def test_01_no_two_draws_of_a_run_are_the_same(data, case):
    run = train(case, data, rate=0.5)
    batches = {tuple(sorted(batch)) for batch in run.mechanism.batches}
    assert len(batches) == run.mechanism.draws


@pytest.mark.parametrize(
    ("sigma", "epochs", "printed"),
    [(2.0, 50, 1.3), (1.5, 50, 1.9), (1.2, 50, 2.7), (0.8, 50, 5.7), (0.65, 50, 10.2),
     (0.65, 29, 7.4)],
)  # fmt: skip
def test_02_the_published_ledger_is_reproduced(sigma, epochs, printed):
    charge = Charge(
        sampling_rate=32 / 41_000, noise_multiplier=sigma, draws=1281 * epochs, releases_per_draw=5
    )
    claim = accounting.published_epsilon(charge, 1 / 41_000, 12_810 * epochs)
    assert claim == pytest.approx(printed, abs=0.05)


@pytest.mark.parametrize(
    ("sigma", "rate", "draws"), [(1.0, 0.01, 1000), (0.65, 0.016, 1750), (4, 0.2, 100)]
)
def test_02_accountants_agree(sigma, rate, draws):
    charge = Charge(sampling_rate=rate, noise_multiplier=sigma, draws=draws)
    pld, checks = accounting.epsilon([charge], 1e-5), accounting.cross_checks([charge], 1e-5)
    assert checks["rdp"] >= pld
    assert checks["prv"] == pytest.approx(pld, abs=0.02)
    book = RdpAccountant()
    event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))
    book.compose(dp.SelfComposedDpEvent(event, draws))
    assert checks["rdp"] == pytest.approx(book.get_epsilon(1e-5))


@pytest.mark.parametrize(("sigma", "draws"), [(1.0, 1), (3.0, 1), (20.0, 100)])
def test_02_at_rate_1_epsilon_is_that_of_the_closed_form(sigma, draws):
    """The accountant and the filter against the Gaussian mechanism's exact trade-off."""
    charge = Charge(sampling_rate=1.0, noise_multiplier=sigma, draws=draws)
    exact = accounting.gaussian_epsilon(math.sqrt(draws) / sigma, 1e-5)
    assert accounting.epsilon([charge], 1e-5) == pytest.approx(exact, rel=2e-3)
    assert accounting.filter_epsilon([(charge, 1)], 1e-5) == pytest.approx(exact, rel=1e-6)
    assert accounting.filter_epsilon([(charge, 3)], 1e-5) == pytest.approx(
        accounting.gaussian_epsilon(3 * math.sqrt(draws) / sigma, 1e-5), rel=1e-6
    )


def test_02_several_releases_of_one_draw_count_as_less_noise():
    five = Charge(sampling_rate=0.01, noise_multiplier=2, draws=100, releases_per_draw=5)
    one = Charge(sampling_rate=0.01, noise_multiplier=2 / math.sqrt(5), draws=100)
    assert accounting.epsilon([five], 1e-5) == pytest.approx(accounting.epsilon([one], 1e-5))


def inclusion(rate=0.1, units=50, draws=4000):
    opened = mechanism(rate, units, draws)
    inside = torch.zeros(draws, units)
    for row in inside:
        row[opened.draw().indices] = 1
    return inside


def test_03_batch_sizes_vary_as_poisson_batches_do():
    inside = inclusion()
    assert inside.mean().item() == pytest.approx(0.1, abs=0.005)
    assert inside.sum(1).var().item() == pytest.approx(50 * 0.1 * 0.9, rel=0.1)


@every(everybody=True)
def test_03_a_generators_batches_are_poisson_draws(data, case):
    """Sizes of 400 batches through the generator's own door, at its own rate."""
    generator = generators.build(case.task())
    generator.__dict__["charge"] = replace(generator.charge, draws=400)
    units = data.units(case.patient)
    door = generator.mechanism(np.arange(units, dtype=np.uint64))
    sizes = np.array([len(door.draw()) for _ in range(400)])
    rate = generator.charge.sampling_rate
    assert rate == pytest.approx(generator.batch / units)
    assert sizes.mean() == pytest.approx(units * rate, rel=0.1)
    assert sizes.var() == pytest.approx(units * rate * (1 - rate), rel=0.35)


def test_04_inclusion_of_two_records_is_independent():
    correlation = torch.corrcoef(inclusion().T) - torch.eye(50)
    assert correlation.abs().max() < 0.08


# ------------------------------------------------------------------ 5 to 7: public numbers


@every(everybody=True)
def test_05_empty_batches_are_used_and_noised(data, case):
    run = train(case, data, rate=1e-9)
    charge = generators.build(case.task()).charge
    assert len(run.mechanism.sent) == charge.draws * charge.releases_per_draw
    assert all(not batch for batch in run.mechanism.batches)
    deviation = run.mechanism.charge.noise_multiplier * run.mechanism.clip_norm
    for sent, exact in zip(run.mechanism.flat(), run.mechanism.exact, strict=True):
        assert (sent - exact).std().item() == pytest.approx(deviation, rel=0.15)
    fresh = generators.build(case.task()).weights()
    assert not same(fresh, weights_of(run))


@every()
def test_06_public_numbers_do_not_follow_the_data(data, case):
    """Rate, units, noise, delta and divisor are the same with units less."""
    whole, less = train(case, data), train(case, data.without(case.patient, 3))
    assert whole.mechanism.charge == less.mechanism.charge
    assert whole.mechanism.units == less.mechanism.units == data.units(case.patient)
    assert whole.mechanism.present > less.mechanism.present
    assert whole.generator.spent() == less.generator.spent()


def test_06_more_units_than_the_public_number_are_refused():
    for case in CASES.values():
        more = cohort(patients=PATIENTS + 1)
        with pytest.raises(ValueError, match="public number is"):
            train(case, more)


def test_06_units_below_rate_1_must_be_told_apart():
    charge = Charge(sampling_rate=0.5, noise_multiplier=1, draws=1)
    for given in (None, np.arange(3, dtype=np.uint64)):
        with pytest.raises(ValueError, match="identities"):
            Mechanism(
                charge, units=4, present=4, clip_norm=1.0, sampler=Seeded(1), noise=Seeded(2),
                identities=given,
            )  # fmt: skip


@every("divisor")
def test_07_divisor_and_fakes_are_public(data, case):
    """Under one script, batches of other sizes lead to the same weights: nothing divides by them,
    and no number of fakes follows them."""
    whole = train(case, data, rate=None if case.everybody else 0.9)
    few = train(
        case, cohort(seed=4, patients=3), script=whole.mechanism,
        rate=None if case.everybody else 0.1,
    )  # fmt: skip
    sizes = [[len(batch) for batch in run.mechanism.batches] for run in (whole, few)]
    assert sizes[0] != sizes[1]
    assert same(weights_of(whole), weights_of(few))


@every("divisor", everybody=True)
def test_07_steps_are_as_large_as_the_public_divisor_says(data, case):
    """Ten times the expected batch takes a step of another direction, not of another scale of
    noise: what reaches the optimiser is the release over the expected number."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (torch.optim.Adam, torch.optim.RMSprop):
            plain = kind.step
            patch.setattr(
                kind, "step", lambda self, p=plain: seen.append(gradients(self)) or p(self)
            )
        run = train(case, data)
    divisor = generators.build(case.task()).batch
    given = {tuple(part.shape) for part in seen}
    for sent in run.mechanism.flat():
        expected = (sent / divisor).float()
        assert tuple(expected.shape) in given
        assert any(
            s.shape == expected.shape and torch.allclose(s, expected, rtol=1e-6) for s in seen
        )


def gradients(optimiser):
    parts = [p.grad for group in optimiser.param_groups for p in group["params"]]
    return torch.cat([part.flatten() for part in parts if part is not None])


# ------------------------------------------------------------------ 8 to 10: sensitivity


@every("divisor")
@pytest.mark.parametrize(("rate", "clip_norm"), [(1.0, 1e-3), (0.6, 1.0)])
def test_08_one_unit_moves_a_release_by_at_most_the_clip_norm(data, case, rate, clip_norm):
    """Each unit first, in the middle and last, removed and added, through the real `fit`.

    Removing is adding seen from the other side: the script comes once from the larger and once from
    the smaller of two neighbours.
    """
    units = data.units(case.patient)
    rate = None if case.everybody else rate
    whole = train(case, data, rate=rate, clip_norm=clip_norm)
    largest = 0.0
    for number in (0, units // 2, units - 1):
        less = data.without(case.patient, number)
        removed = train(case, less, script=whole.mechanism, rate=rate, clip_norm=clip_norm)
        alone = train(case, less, rate=rate, clip_norm=clip_norm)
        added = train(case, data, script=alone.mechanism, rate=rate, clip_norm=clip_norm)
        for first, second in ((whole, removed), (alone, added)):
            steps = moved(first.mechanism, second.mechanism)
            assert steps.max() <= 1, (number, steps)
            largest = max(largest, steps.max())
    if clip_norm == 1e-3:  # where every contribution is beyond it
        assert largest > 0.95


def test_08_the_published_loop_leaks_more_than_its_best_case(data):
    """Its divisor is the realised batch size: with all that was released equal, the critic is not,
    and a later sum moves by many clip norms. So what is charged is no bound, and is not called one."""
    case = CASES["wgan, as published"]
    whole = train(case, data, rate=1.0)
    less = train(case, data.without(False, 0), script=whole.mechanism, rate=1.0)
    steps = moved(whole.mechanism, less.mechanism)
    assert steps[0] <= 1
    assert steps.max() > 1.5


@every("patient")
def test_08_a_patient_of_many_scans_moves_it_by_no_more(data, case):
    """Ten times the patches, all alike, so that nothing cancels."""
    units = data.units(True)
    many = np.repeat(data.pairs[:1], 100, 0)
    more = replace_pairs(data, many, f"sub-{units - 1:02d}")
    rate = None if case.everybody else 1.0
    whole = train(case, more, rate=rate, clip_norm=1e-3)
    removed = train(
        case, more.without(True, units - 1), script=whole.mechanism, rate=rate, clip_norm=1e-3
    )
    assert moved(whole.mechanism, removed.mechanism).max() <= 1


def replace_pairs(data, pairs, owner):
    kept = data.owners != owner
    return type(data)(
        np.concatenate([data.pairs[kept], pairs]),
        np.concatenate([data.owners[kept], np.repeat(owner, len(pairs))]),
    )


@every()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_09_a_record_that_is_no_number_breaks_nothing(data, case, value, monkeypatch):
    case.poison(monkeypatch, value)
    run = train(case, data, rate=None if case.everybody else 0.5)
    for name, tensor in [*weights_of(run).items(), *run.state.items()]:
        assert tensor.double().isfinite().all(), name
    limit = run.mechanism.clip_norm * (PATIENTS * PATCHES + case.fakes)
    assert all(exact.norm() <= limit for exact in run.mechanism.exact)


@every(divisor=False)
def test_10_no_unit_changes_anothers_contribution(data, case):
    """What a unit adds is the same beside all others and beside few."""
    rate = None if case.everybody else 1.0
    whole = train(case, data, rate=rate)
    units = data.units(case.patient)

    def adds(rows, number):
        with_it = train(case, rows, script=whole.mechanism, rate=rate)
        without = train(case, rows.without(case.patient, number), script=whole.mechanism, rate=rate)
        pairs = zip(with_it.mechanism.exact, without.mechanism.exact, strict=True)
        return [a - b for a, b in pairs]

    few = data.without(case.patient, units - 1)
    for _ in range(units - 4):
        few = few.without(case.patient, few.units(case.patient) - 1)
    for beside_all, beside_few in zip(adds(data, 1), adds(few, 1), strict=True):
        assert (beside_all - beside_few).norm() <= 2.0**-8 * whole.mechanism.clip_norm
        assert beside_all.norm() > 1e-3 * whole.mechanism.clip_norm


# ------------------------------------------------------------------ 11, 18, 19: noise


@every()
def test_11_releases_carry_the_noise_that_was_charged(data, case):
    run = train(case, data)
    door = run.mechanism
    deviation = door.charge.noise_multiplier * door.clip_norm
    left = torch.stack([a - b for a, b in zip(door.flat(), door.exact, strict=True)]).double()
    if case.everybody:  # one release of few numbers: the door's noise is asked for more
        lattice = Lattice.of(door.clip_norm, left.numel())
        left = torch.stack([flat_noise(door, lattice, left.numel()) for _ in range(4000)])
    assert left.std().item() == pytest.approx(deviation, rel=0.02)
    assert left.mean().item() == pytest.approx(0, abs=5 * deviation / math.sqrt(left.numel()))
    if not case.everybody:
        correlation = torch.corrcoef(left) - torch.eye(len(left))
        assert correlation.abs().max() < 5 / math.sqrt(left.shape[1])
    assert door.charge.noise_multiplier == generators.build(case.task()).charge.noise_multiplier


def flat_noise(door, lattice, count):
    zeros = [torch.zeros(count, dtype=torch.int64)]
    return Mechanism._noised(door, zeros, lattice)[0]


@pytest.mark.parametrize("how", ["release", "release_fakes", "release_groups", "release_vectors"])
def test_11_every_way_out_carries_the_noise_that_was_charged(how):
    """Over nothing, so that noise is all there is."""
    module, door = torch.nn.Linear(30, 1, bias=False), mechanism(draws=300, sigma=2.0)
    sent = []
    for _ in range(300):
        batch = door.draw()
        match how:
            case "release_vectors":
                sent.append(batch.release_vectors(torch.zeros(5, 30, dtype=torch.float64)))
            case "release_groups":
                sent += batch.release_groups(module, [])[0]
            case _:
                sent += getattr(batch, how)(module, lambda part: module(torch.zeros(1, 30)), 0)[0]
    noise = torch.cat([part.flatten().double() for part in sent])
    assert len(noise) == 9000
    assert noise.std().item() == pytest.approx(2.0, rel=0.05)
    assert abs(noise.mean().item()) < 5 * 2 / math.sqrt(9000)


@pytest.mark.parametrize("source", [Seeded, Secure])
def test_11_noise_is_a_rounded_normal_that_never_repeats(source):
    stream = source(1) if source is Seeded else source()
    first, second = (rounded_normal(stream, 1e6, 400_000, release=n).double() / 1e6 for n in (0, 1))
    assert first.std().item() == pytest.approx(1, rel=0.01)
    assert (first**4).mean().item() == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    odd = (first * 1e6).long() % 2
    assert odd.double().mean().item() == pytest.approx(0.5, abs=0.005)


def test_11_no_seed_is_printed():
    for case in CASES.values():
        statement = generators.build(case.task()).spent()
        assert "seed" not in {key.lower() for key in statement}
        assert "not for release" in statement["noise"]
        assert statement["noise_source"] == "seeded"


@every()
def test_18_nothing_released_has_finer_digits_than_its_lattice(data, case):
    run = train(case, data)
    door = run.mechanism
    for sent, exact, lattice in zip(door.flat(), door.exact, door.lattices, strict=True):
        assert math.log2(lattice.spacing).is_integer()
        assert lattice.spacing * math.sqrt(len(sent)) <= 2.0**-9 * door.clip_norm
        for numbers in (sent.double(), exact):
            points = numbers / lattice.spacing
            assert torch.equal(points, points.round())
    public = {lattice.spacing for lattice in door.lattices}
    other = train(case, data.without(case.patient, 0)).mechanism
    assert {lattice.spacing for lattice in other.lattices} == public


@every()
def test_19_the_noise_of_any_two_coordinates_and_tensors_is_independent(data, case):
    """No two coordinates of a release, of one tensor or of two, share their noise; nor do two
    releases."""
    run = train(case, data)
    door = run.mechanism
    left = [(a - b).double() for a, b in zip(door.flat(), door.exact, strict=True)]
    together = torch.cat(left)
    # Equal deviates on a lattice of 2^20 points a deviation are chance once in about 3e6 pairs.
    chance = len(together) ** 2 / 2 / 3e6 / door.charge.noise_multiplier
    assert len(together) - len(together.unique()) <= 5 + 3 * chance
    for release, parts in zip(left, door.parts, strict=True):
        pieces = [piece for piece in release.split(parts) if len(piece) >= 30]
        for number, piece in enumerate(pieces):
            for other in pieces[number + 1 :]:
                n = min(len(piece), len(other))
                assert abs(np.corrcoef(piece[:n], other[:n])[0, 1]) < 5.5 / math.sqrt(n)
        for lag in (1, 2, 7, 8, 16):
            if len(release) > 30 + lag:
                found = np.corrcoef(release[:-lag], release[lag:])[0, 1]
                assert abs(found) < 5.5 / math.sqrt(len(release) - lag)


# ------------------------------------------------------------------ 12 to 17, 20: what follows


@every("divisor")
def test_12_all_that_is_learned_follows_from_what_was_released(data, case):
    """With the same releases, wholly other data give the same weights.

    Generator steps, weight clips, averages and optimisers could otherwise read private data behind
    the mechanism's back.
    """
    first = train(case, data)
    second = train(case, cohort(seed=99), script=first.mechanism)
    assert not torch.equal(first.mechanism.exact[0], second.mechanism.exact[0])
    assert same(weights_of(first), weights_of(second))


def test_13_patches_are_prepared_each_by_itself(rng):
    """Nothing is fitted on the private set, and a constant patch is no 0 / 0."""
    stack = rng.normal(100, 30, (5, 16, 16))
    stack[2] = 7
    together = scale(stack)
    assert all(
        (scale(image) == prepared).all() for image, prepared in zip(stack, together, strict=True)
    )
    assert (together[2] == 0).all()
    whole = cohort()
    one = fitted.statistics(whole.pairs[:PATCHES])
    np.testing.assert_array_equal(one, fitted.statistics(whole.pairs[:PATCHES].copy()))


@every()
def test_14_a_statement_never_stands_alone(case):
    statement = generators.build(case.task()).spent()
    for key in ("epsilon", "epsilon_patient", "delta", "unit", "neighbouring_relation", "sampling",
                "accountant", "cross_checks", "selection", "noise", "events", "arithmetic",
                "epsilon_patient_strict", "delta_strict", "patients", "holds"):  # fmt: skip
        assert statement[key], key
    assert "dp-accounting 0." in statement["accountant"]
    for word in ("per patch", "per patient", "delta", "add or remove one", "delta 1e-05"):
        assert word in statement["text"]
    assert statement["epsilon_patient_strict"] > statement["epsilon_patient"]
    json.dumps(statement, allow_nan=False)
    assert ledger.Statement.of(statement).as_dict() == statement


def test_14_a_best_case_is_never_called_a_bound():
    statement = generators.build(CASES["wgan, as published"].task()).spent()
    assert "does not hold" in statement["text"]
    assert statement["text"].startswith("best case, not a bound")
    assert statement["holds"] == "best case"
    assert "divided" in statement["holds_because"]
    assert statement["epsilon_published"] < statement["epsilon"] < statement["epsilon_patient"]


def test_14_the_strict_epsilon_is_that_of_a_strict_delta():
    given = CASES["fitted, patient"].task("patient-eps-1").model_copy(update={"delta": 1 / 180})
    statement = generators.build(given).spent()
    assert statement["epsilon_patient"] == pytest.approx(1, rel=0.01)
    assert statement["epsilon_patient_strict"] == pytest.approx(1.92, abs=0.02)


@pytest.mark.parametrize("kind", ["wgan", "real", "phantom", "diffusion"])
def test_15_the_choice_of_the_segmenter_is_in_the_ledger(kind):
    level = "sigma-2" if kind in ("wgan", "diffusion") else "none"
    statement = generators.build(config.Study().task("first", kind, level, 1)).spent()
    choices = [event for event in statement["events"] if "choice" in event["access"]]
    assert len(choices) == 1
    assert choices[0]["covered"] is False
    assert statement["selection"].startswith("not covered")


@every()
def test_15_what_a_run_does_is_fixed_beforehand(case):
    """No early stop, no best epoch: the number of steps is a function of public settings."""
    generator = generators.build(case.task())
    assert generator.steps == generator.steps_wanted
    assert generator.charge == generator.planned
    assert generator.charge.draws == generator.steps * generator.draws_a_step


@every()
def test_16_what_is_handed_on_holds_nothing_exact(data, case):
    """Weights alone leave `fit`; losses, critic and keys stay in the state folder."""
    run = train(case, data)
    assert all(name.startswith(case.weights) for name in weights_of(run))
    if run.history:
        exact = [
            str(value) for line in run.history.splitlines() for value in json.loads(line).values()
        ]
        exact = [number for number in exact if "." in number]
        assert exact
        assert not any(number in json.dumps(run.generator.spent()) for number in exact)
        keys = [run.state[f"mechanism.{name}"] for name in ("sampler", "noise")]
        held = b"".join(
            t.contiguous().view(torch.uint8).numpy().tobytes() for t in weights_of(run).values()
        )
        assert all(bytes(key.tolist()) not in held for key in keys)


@every("divisor", everybody=True)
@pytest.mark.parametrize("gone", [0, 3, 5])
def test_17_a_neighbour_with_the_same_releases_takes_the_same_branches(data, case, gone):
    """The whole state of training, streams included, is the same with a unit less."""
    whole = train(case, data, rate=0.5)
    less = train(case, data.without(case.patient, gone), script=whole.mechanism, rate=0.5)
    assert same(whole.state, less.state)


@every()
def test_20_nobody_elses_coins_move(data, case):
    """Who is in a batch, and with which coins, is the same for all others with a unit less, or
    with the units in another order."""
    rate = None if case.everybody else 0.5
    whole = train(case, data, rate=rate)
    for number in (0, 3, data.units(case.patient) - 1):
        less = train(case, data.without(case.patient, number), script=whole.mechanism, rate=rate)
        for mine, theirs in zip(whole.mechanism.batches, less.mechanism.batches, strict=True):
            assert theirs.items() <= mine.items()
            assert len(mine) - len(theirs) <= 1
        # And names are those of the same records, wherever they have moved to.
        kept = np.delete(whole.mechanism.identities, number)
        assert (less.mechanism.identities == kept).all()
    order = np.concatenate(
        [np.flatnonzero(data.owners == name) for name in np.unique(data.owners)[::-1]]
    )
    turned = train(
        case, type(data)(data.pairs[order], data.owners[order]), script=whole.mechanism, rate=rate
    )
    assert turned.mechanism.batches == whole.mechanism.batches


@every()
def test_20_coins_are_secret_where_noise_is_secure(data, case):
    """Two runs of one public seed have other batches, other streams and other noise."""
    if case.everybody:
        first, second = (train(case, data, source="secure").mechanism for _ in range(2))
    else:
        first, second = (train(case, data, source="secure", rate=0.5).mechanism for _ in range(2))
        assert first.batches != second.batches
    assert not same(dict(enumerate(first.flat())), dict(enumerate(second.flat())))
    shared = set(first.batches[0]) & set(second.batches[0])
    assert all(first.batches[0][name] != second.batches[0][name] for name in shared)


def test_20_equal_records_have_coins_of_their_own():
    names = identities([b"a", b"b", b"a", b"a"])
    assert len(set(names.tolist())) == 4
    assert set(identities([b"a", b"a", b"b"]).tolist()) <= set(names.tolist())
    source = Secure()
    coins = np.array([source.uniform(step, names) for step in range(2000)])
    assert np.abs(np.corrcoef(coins.T) - np.eye(4)).max() < 0.1


def test_20_an_owners_stream_is_of_its_step():
    source = Secure()
    names = identities([b"a", b"b"])
    drawn = [[own.random() for own in source.own(step, names)] for step in (1, 2, 1)]
    assert drawn[0] == drawn[2]
    assert len({*drawn[0], *drawn[1]}) == 4


def test_the_slack_is_more_than_rounding_takes():
    assert SLACK == 2.0**-7
    for clip_norm in (1e-3, 0.3, 0.5, 1, 3, 7.7):
        for coordinates in (1, 6, 1000, 7_000_000, 3 * 10**8):
            lattice = Lattice.of(clip_norm, coordinates)
            assert lattice.spacing * math.sqrt(coordinates) <= 2.0**-9 * clip_norm
            assert lattice.spacing <= 2.0**-20 * clip_norm
