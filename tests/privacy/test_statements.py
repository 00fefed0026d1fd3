"""The seventeen ways in which private training goes wrong unseen, each as a test that sees it.

Numbers are those of docs/privacy.md. `test_mutants.py` breaks the code in ten ways and checks
that these tests notice.
"""

from __future__ import annotations

import json
from dataclasses import replace

import dp_accounting as dp
import numpy as np
import pandas as pd
import pytest
import torch
from dp_accounting.rdp import RdpAccountant

from veil import artifacts, config, generators
from veil.generators import diffusion, wgan
from veil.patches import scale, to_unit
from veil.privacy import accounting, clipping
from veil.privacy.accounting import Charge
from veil.privacy.mechanism import ChargeError, Mechanism
from veil.privacy.randomness import Secure, Seeded

CPU = torch.device("cpu")
SETTINGS = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, generator_updates=3, batch_size=8,
    patient_batch_size=3, patient_patches=4,
)  # fmt: skip
LOOPS = ("valid", "as-published", "patient")


class Recorder(Mechanism):
    """A mechanism that keeps what went out, what would have gone out without noise, and losses.

    With `script` it gives out what another run gave out instead of its own sums.
    """

    script = None

    def draw(self):
        batch = super().draw()
        self.__dict__.setdefault("batches", []).append(tuple(batch.indices.tolist()))
        return batch

    def noised(self, sums):
        sums = list(sums)
        self.__dict__.setdefault("exact", []).append([total.clone() for total in sums])
        out = super().noised(sums)
        sent = self.__dict__.setdefault("sent", [])
        if self.script is not None:
            out = [part.clone() for part in self.script[len(sent)]]
        sent.append([part.clone() for part in out])
        return out


def task(loop="valid", level="sigma-1", records=100, **settings):
    chosen = SETTINGS.model_copy(
        update={"loop": loop if loop != "patient" else "valid", **settings}
    )
    if loop == "patient":
        level = "patient-eps-5"
    return config.Task(
        settings=chosen, level=config.PrivacyLevel.parse(level), seed=1, size=16,
        records=records, patients=10, per_patient=records // 10, delta=0.01,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    drawn = np.random.default_rng(1).integers(0, 2, (100, 2, 16, 16)).astype(np.uint8)
    drawn[:, 0] *= 255
    return drawn


def owners_of(pairs):
    """Ten rows a patient."""
    return [np.arange(n, min(n + 10, len(pairs))) for n in range(0, len(pairs), 10)]


def recorded(generator, pairs, script, changes):
    """The generator's door to the pairs, which keeps what goes through it."""
    patient = generator.task.level.unit == "patient"
    mechanism = generator.mechanism(len(owners_of(pairs)) if patient else len(pairs))
    mechanism.__class__, mechanism.script = Recorder, script
    plan = {k: v for k, v in changes.items() if k in ("noise_multiplier", "sampling_rate")}
    mechanism.plan = replace(mechanism.plan, **plan)
    return mechanism


def game(pairs, loop="valid", script=None, steps=3, **changes):
    """A game over 100 public records, and its mechanism."""
    given = task(
        loop, **{k: v for k, v in changes.items() if k in config.WganGenerator.model_fields}
    )
    generator = generators.build(given)
    mechanism = recorded(generator, pairs, script, changes)
    critic = wgan.build_critic(given.settings, 16)
    wgan.initialise(critic, torch.Generator().manual_seed(1))
    match = wgan.Game(
        generator.network, critic, pairs, settings=given.settings, mechanism=mechanism, seed=1,
        device=CPU, owners=owners_of(pairs) if loop == "patient" else None,
    )  # fmt: skip
    for _ in range(steps):
        match.step()
    return match, mechanism


class OwnCoins(diffusion.Denoising):
    """Noise levels and flips that follow from each record alone, as if its coins lay with it."""

    def rows(self, pairs, copies, times, random):
        each = [
            super(OwnCoins, self).rows(pair[None], copies, times, torch.Generator().manual_seed(
                int(pair.astype(np.int64).ravel() @ np.arange(pair.size))
            ))
            for pair in pairs
        ]  # fmt: skip
        if not each:
            return super().rows(pairs, copies, times, random)
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))


def lesson(pairs, unit="patch", script=None, steps=3, **changes):
    """A denoiser's private steps on 100 public records, and their mechanism."""
    level = "patient-eps-5" if unit == "patient" else "sigma-1"
    settings = config.DiffusionGenerator(
        kind="diffusion", channels=(4, 8), steps=3, batch_size=8, multiplicity=3,
        patient_batch_size=3, patient_patches=4, clip_norm=changes.pop("clip_norm", 0.5),
    )  # fmt: skip
    given = task(level=level).model_copy(update={"settings": settings})
    generator = generators.build(given)
    mechanism = recorded(generator, pairs, script, changes)
    network = generator.network
    taught = diffusion.PrivateLesson(
        network, OwnCoins(settings), settings=settings, tuned=list(network.parameters()),
        mechanism=mechanism, pairs=pairs, owners=owners_of(pairs) if unit == "patient" else None,
        seed=1, device=CPU,
    )  # fmt: skip
    for _ in range(steps):
        taught.step()
    return taught, mechanism


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("loop", LOOPS)
def test_01_every_release_is_charged_and_no_draw_is_used_twice(pairs, loop):
    match, mechanism = game(pairs, loop)
    charge = generators.build(task(loop)).charge
    public = 2 if loop == "as-published" else 1  # that loop noises its fakes by themselves
    assert mechanism.draws == charge.draws
    assert len(mechanism.sent) == charge.draws * charge.releases_per_draw * public
    with pytest.raises(ChargeError, match="have been made"):
        match.step()


def test_01_a_batch_gives_no_more_than_was_paid_for():
    charge = Charge(sampling_rate=0.5, noise_multiplier=1, draws=2, releases_per_draw=2)
    mechanism = Mechanism(
        charge, units=4, present=4, clip_norm=1.0, sampler=Seeded(1), noise=Seeded(2)
    )
    module, batch = torch.nn.Linear(3, 1), mechanism.draw()
    for _ in range(2):
        batch.release(module, lambda part: module(torch.ones(1, 3)).flatten(), 1)
    with pytest.raises(ChargeError, match="paid for 2"):
        batch.release(module, lambda part: module(torch.ones(1, 3)).flatten(), 1)


def test_01_batches_of_one_run_are_independent_draws(pairs):
    """Consecutive batches share members no more often than chance has it."""
    charge = Charge(sampling_rate=0.2, noise_multiplier=1, draws=2000)
    mechanism = Mechanism(
        charge, units=50, present=50, clip_norm=1, sampler=Seeded(3), noise=Seeded(4)
    )
    inside = torch.zeros(2000, 50)
    for row in inside:
        row[mechanism.draw().indices] = 1
    shared = (inside[1:] * inside[:-1]).mean().item()
    assert shared == pytest.approx(0.04, abs=0.004)


def test_01_critic_updates_of_the_valid_loop_see_different_batches(pairs):
    _, mechanism = game(pairs, sampling_rate=0.5)
    assert len(mechanism.exact) == mechanism.draws == 15
    assert len(set(mechanism.batches)) == 15


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


def inclusion(rate=0.1, units=50, draws=4000):
    charge = Charge(sampling_rate=rate, noise_multiplier=1, draws=draws)
    mechanism = Mechanism(
        charge, units=units, present=units, clip_norm=1, sampler=Seeded(3), noise=Seeded(4)
    )
    inside = torch.zeros(draws, units)
    for row in inside:
        row[mechanism.draw().indices] = 1
    return inside


def test_03_batch_sizes_vary_as_poisson_batches_do():
    inside = inclusion()
    assert inside.mean().item() == pytest.approx(0.1, abs=0.005)
    assert inside.sum(1).var().item() == pytest.approx(50 * 0.1 * 0.9, rel=0.1)


def test_04_inclusion_of_two_records_is_independent():
    correlation = torch.corrcoef(inclusion().T) - torch.eye(50)
    assert correlation.abs().max() < 0.08


@pytest.mark.parametrize("loop", LOOPS)
def test_05_empty_batches_are_used_and_noised(pairs, loop):
    match, mechanism = game(pairs, loop, sampling_rate=1e-9, steps=0)
    before = [p.clone() for p in match.critic.parameters()]
    match.step()
    expected = 10 if loop == "as-published" else SETTINGS.critic_updates
    assert len(mechanism.sent) == expected
    assert all(flat(part).std() > 0.5 for part in mechanism.sent)
    assert any((a != b).any() for a, b in zip(before, match.critic.parameters(), strict=True))


@pytest.mark.parametrize("loop", ["valid", "patient"])
def test_06_public_numbers_do_not_follow_the_data(pairs, loop):
    """Rate, units, noise, delta and plan are the same with a record or a patient less."""
    _, whole = game(pairs, loop, steps=0)
    _, less = game(pairs[:-10], loop, steps=0)
    assert (whole.plan, whole.units) == (less.plan, less.units)
    assert whole.present > less.present


def test_06_more_units_than_the_public_number_are_refused(pairs):
    with pytest.raises(ValueError, match="public number is 100"):
        game(np.concatenate([pairs, pairs[:1]]), steps=0)


@pytest.mark.parametrize("loop", ["valid", "patient"])
def test_07_fakes_and_divisor_are_public(pairs, loop):
    """What goes into the optimiser is what came out of the mechanism over a fixed number."""
    match, mechanism = game(pairs, loop, steps=0)
    given, counts = [], []
    update, fakes = match._update, match._fakes
    match._update = lambda gradients: given.append(flat(gradients)) or update(gradients)
    match._fakes = lambda count: counts.append(count) or fakes(count)
    for _ in range(2):
        match.step()
    divisor = SETTINGS.patient_batch_size if loop == "patient" else SETTINGS.batch_size
    for sent, used in zip(mechanism.sent, given, strict=True):
        torch.testing.assert_close(flat(sent) / divisor, used)
    assert set(counts) == {SETTINGS.patient_patches if loop == "patient" else SETTINGS.batch_size}


@pytest.mark.parametrize("loop", ["valid", "patient"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0])
def test_08_one_unit_moves_a_release_by_at_most_the_clip_norm(pairs, loop, clip_norm):
    """Neighbouring data sets under frozen randomness: every coin is the same."""
    unit, moved = 10 if loop == "patient" else 1, []
    changes = {"steps": 1, "sampling_rate": 1.0, "critic_updates": 1, "clip_norm": clip_norm}
    for gone in range(5):
        # The unit is moved to the end, where its absence leaves all other coins in place.
        order = np.roll(np.arange(100), -gone * unit)
        _, whole = game(pairs[order], loop, **changes)
        _, less = game(pairs[order][:-unit], loop, **changes)
        moved.append((flat(whole.sent[0]) - flat(less.sent[0])).norm().item())
    assert max(moved) <= clip_norm * (1 + 1e-3)
    if clip_norm == 1e-3:  # where every gradient is beyond it
        assert max(moved) > 0.9 * clip_norm


@pytest.mark.parametrize("unit", ["patch", "patient"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0])
def test_08_nor_does_it_with_several_noise_levels_a_record(pairs, unit, clip_norm):
    """The denoiser's rows of one record are clipped as one."""
    size, moved = 10 if unit == "patient" else 1, []
    for gone in range(3):
        order = np.roll(np.arange(100), -gone * size)
        how = {"steps": 1, "clip_norm": clip_norm, "sampling_rate": 1.0}
        _, whole = lesson(pairs[order], unit, **how)
        _, less = lesson(pairs[order][:-size], unit, **how)
        moved.append((flat(whole.sent[0]) - flat(less.sent[0])).norm().item())
    assert max(moved) <= clip_norm * (1 + 1e-3)
    if clip_norm == 1e-3:
        assert max(moved) > 0.9 * clip_norm


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_09_a_record_that_is_no_number_breaks_nothing(pairs, loop, value, monkeypatch):
    def poisoned(chosen):
        unit = to_unit(chosen)
        unit[:1, 0, 3, 3] = value
        return unit

    monkeypatch.setattr(wgan, "to_unit", poisoned)
    match, _ = game(pairs, loop, sampling_rate=0.5)
    assert all(p.isfinite().all() for p in match.critic.parameters())
    assert all(p.isfinite().all() for p in match.generator.parameters())


def test_10_no_record_changes_anothers_gradient(pairs):
    critic = wgan.build_critic(SETTINGS, 16).double()
    records = torch.from_numpy(to_unit(pairs[:6])).double()

    def alone(rows):
        batch = records[rows]
        return flat(
            clipping.clipped_sum(
                critic, lambda part: wgan.mean_score(critic(batch[part])), len(rows), 0.3
            )[0]
        )

    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 3, 2, 1, 4]):
        torch.testing.assert_close(alone(order), sum(alone([row]) for row in order))


@pytest.mark.parametrize("source", [Seeded, Secure])
def test_11_noise_has_its_deviation_and_never_repeats(source):
    stream = source(1) if source is Seeded else source()
    first, second = stream.normal(400_000), stream.normal(400_000)
    assert first.std().item() == pytest.approx(1, rel=0.01)
    assert (first**4).mean().item() == pytest.approx(3, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_11_noise_has_the_tails_of_a_normal():
    """Float32 deviates end at 5.8: a sum beyond that has no noise that could explain it away."""
    stream, largest = Seeded(0), 0.0
    for _ in range(40):
        largest = max(largest, stream.normal(5_000_000).abs().max().item())
        if largest > 5.8:
            return
    pytest.fail(f"the largest of 2e8 deviates is {largest}; some are beyond 5.8")


@pytest.mark.parametrize("loop", LOOPS)
def test_11_releases_carry_the_noise_that_was_charged(pairs, loop):
    _, mechanism = game(pairs, loop)
    left = [flat(a) - flat(b) for a, b in zip(mechanism.sent, mechanism.exact, strict=True)]
    deviation = mechanism.plan.noise_multiplier * SETTINGS.clip_norm
    assert torch.stack(left).std().item() == pytest.approx(deviation, rel=0.02)
    correlation = torch.corrcoef(torch.stack(left)) - torch.eye(len(left))
    assert correlation.abs().max() < 0.2
    assert mechanism.plan.noise_multiplier == generators.build(task(loop)).charge.noise_multiplier


def test_11_no_seed_is_printed():
    statement = generators.build(task()).spent()
    assert "seed" not in {key.lower() for key in statement}
    assert "not for release" in statement["noise"]


@pytest.mark.parametrize("loop", ["valid", "patient"])
def test_12_all_that_is_learned_follows_from_what_was_released(pairs, loop):
    """With the same releases, wholly other data give the same weights.

    Generator steps, weight clips and optimisers could otherwise read private data behind the
    mechanism's back.
    """
    first, sent = game(pairs, loop)
    other = (1 - pairs // np.array([255, 1], np.uint8)[:, None, None]).astype(np.uint8)
    second, replayed = game(other, loop, script=sent.sent)
    assert len(replayed.sent) == len(sent.sent)
    for module in ("generator", "critic"):
        for a, b in zip(
            getattr(first, module).parameters(), getattr(second, module).parameters(), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("unit", ["patch", "patient"])
def test_12_a_denoiser_learns_from_what_was_released_alone(pairs, unit):
    first, sent = lesson(pairs, unit)
    other = (1 - pairs // np.array([255, 1], np.uint8)[:, None, None]).astype(np.uint8)
    second, replayed = lesson(other, unit, script=sent.sent)
    assert len(replayed.sent) == len(sent.sent) == 3
    assert not torch.equal(flat(sent.exact[0]), flat(replayed.exact[0]))
    for module in ("network", "average"):
        for a, b in zip(
            getattr(first, module).parameters(), getattr(second, module).parameters(), strict=True
        ):
            assert torch.equal(a, b)


def test_13_patches_are_prepared_each_by_itself(rng):
    """Nothing is fitted on the private set, and a constant patch is no 0 / 0."""
    stack = rng.normal(100, 30, (5, 16, 16))
    stack[2] = 7
    together = scale(stack)
    assert all(
        (scale(image) == prepared).all() for image, prepared in zip(stack, together, strict=True)
    )
    assert (together[2] == 0).all()
    pairs = rng.integers(0, 255, (6, 2, 16, 16)).astype(np.uint8)
    few, all_of_them = game(pairs[:3], steps=0)[0], game(pairs, steps=0)[0]
    rows = torch.arange(3)
    assert torch.equal(few._take(rows), all_of_them._take(rows))


@pytest.mark.parametrize("loop", LOOPS)
def test_14_a_statement_never_stands_alone(loop):
    statement = generators.build(task(loop)).spent()
    for key in ("epsilon", "epsilon_patient", "delta", "unit", "neighbouring_relation", "sampling",
                "accountant", "cross_checks", "selection", "noise", "events"):  # fmt: skip
        assert statement[key], key
    assert "dp-accounting 0." in statement["accountant"]
    for word in ("per patch", "per patient", "delta", "add or remove one"):
        assert word in statement["text"]
    json.dumps(statement, allow_nan=False)


def test_14_the_published_claim_never_stands_without_the_bound():
    statement = generators.build(task("as-published")).spent()
    assert "does not hold" in statement["text"]
    assert statement["epsilon_published"] < statement["epsilon"] < statement["epsilon_patient"]


@pytest.mark.parametrize("kind", ["wgan", "real", "phantom"])
def test_15_the_choice_of_the_segmenter_is_in_the_ledger(kind):
    given = config.Study().task("first", kind, "sigma-2" if kind == "wgan" else "none", 1)
    statement = generators.build(given).spent()
    choices = [event for event in statement["events"] if "choice" in event["access"]]
    assert len(choices) == 1
    assert choices[0]["covered"] is False
    assert statement["selection"].startswith("not covered")


def test_15_what_a_run_does_is_fixed_beforehand():
    """No early stop, no best epoch: the number of updates is a function of public settings."""
    generator = generators.build(task())
    assert generator.steps == SETTINGS.generator_updates
    assert generator.charge.draws == SETTINGS.generator_updates * SETTINGS.critic_updates


@pytest.mark.parametrize("loop", LOOPS)
def test_16_what_is_handed_on_holds_nothing_exact(tmp_path, pairs, loop):
    """Only the generator's weights leave `fit`; losses and the critic stay in the state folder."""
    artifacts.save_pairs(tmp_path / "patches.npy", pairs)
    owners = pd.DataFrame({"participant_id": [f"sub-{n // 10}" for n in range(100)]})
    artifacts.write_table(tmp_path / "patches.tsv", owners)
    generator = generators.build(task(loop), tmp_path / "patches.npy")
    generator.fit(tmp_path / "state", CPU, {})
    names = {f"network.{name}" for name in generator.network.state_dict()}
    assert set(generator.weights()) == names
    assert "wasserstein" in (tmp_path / "state/history.jsonl").read_text()
    assert "wasserstein" not in json.dumps(generator.spent())


@pytest.mark.parametrize("loop", ["valid", "patient"])
def test_17_a_neighbour_with_the_same_releases_takes_the_same_branches(pairs, loop):
    """What is done, how often and with how many fakes is the same with a record or patient less."""

    def replay(given, script):
        match, mechanism = game(given, loop, script=script, steps=0, sampling_rate=0.5)
        trace = []
        for name in ("_update", "_fakes", "_latents"):
            plain = getattr(match, name)
            setattr(match, name, lambda *a, n=name, f=plain: trace.append((n, shape(a))) or f(*a))
        for _ in range(3):
            match.step()
        return trace, match.state(), mechanism

    def shape(arguments):
        return [a if isinstance(a, int) else len(a) for a in arguments]

    trace, state, mechanism = replay(pairs, None)
    unit = 10 if loop == "patient" else 1
    for gone in (0, 50, 90):
        less = np.delete(pairs, np.s_[gone : gone + unit], axis=0)
        other_trace, other_state, _ = replay(less, mechanism.sent)
        assert other_trace == trace
        moved = {name for name in state if not torch.equal(state[name], other_state[name])}
        # Whose patches a patient gives is drawn from the sampler's stream: the place in it may move.
        assert moved <= {"mechanism.sampler"}
