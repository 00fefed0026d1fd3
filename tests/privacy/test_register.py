"""The register: every access once and for good, results kept, totals that nobody can talk down."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from veil import artifacts
from veil.generators.once import Once, as_trained
from veil.privacy.accounting import Charge, epsilon, gaussian_epsilon
from veil.privacy.ledger import Event, Ledger, Statement
from veil.privacy.randomness import Secure
from veil.privacy.register import Access, Register, RegisterError, Scans, Total, people_of, spent_by
from veil.release.wall import Way

POINT = "mine/first/fitted/patient-eps-1/seed-0"
SIGMA = 4.0


def statement(source="secure", access=None, sigma=SIGMA, unit="patient", rate=1.0) -> Statement:
    charge = Charge(sampling_rate=rate, noise_multiplier=sigma, draws=1)
    event = Event(access="training", charge=charge, clip_norm=1.0, planned_draws=1)
    stated = Ledger(
        unit=unit, delta=1e-3, records_per_patient=20, units=10, patients=10, noise_source=source,
        events=(event,),
    ).statement("valid")  # fmt: skip
    return Statement.of(stated).model_copy(update={"access": access})


def patients(*names, scan="scan", label="label"):
    return [
        Scans(participant_id=name, scan=f"{scan} of {name}", label=f"{label} of {name}")
        for name in names
    ]


@pytest.fixture
def register(tmp_path):
    return Register(tmp_path / "register")


def once(register, people=None, source="secure", point=POINT, made_of=None, **how) -> Once:
    return Once(
        register=register, point=point, patients=people or patients("sub-1", "sub-2"),
        made_of=made_of or {"code": "a", "task": {"settings": {"clip_norm": 3.0}}},
        statement=statement(source, **{k: how.pop(k) for k in ("sigma", "unit") if k in how}), **how,
    )  # fmt: skip


class Training:
    """Makes two files, and counts how often it is asked to."""

    def __init__(self, folder: Path):
        self.files = [folder / "weights.safetensors", folder / "privacy.json"]
        self.times = 0

    def __call__(self, access: Access) -> None:
        self.times += 1
        for file in self.files:
            artifacts.write_text(file, f"training {self.times} of {access.name}")

    def run(self, given: Once) -> str:
        for file in self.files:
            file.unlink(missing_ok=True)
        given.train(self.files, self)
        return self.files[0].read_text()


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path / "results")


# ------------------------------------------------------------------ trained once


@pytest.mark.parametrize("source", ["secure", "seeded"])
def test_a_finished_point_is_brought_back(register, training, source):
    first = training.run(once(register, source=source))
    assert training.run(once(register, source=source)) == first
    assert training.times == 1
    assert len(register.accesses()) == 1


@pytest.mark.parametrize(
    "made_of",
    [
        {"code": "b", "task": {"settings": {"clip_norm": 3.0}}},
        {"code": "a", "task": {"settings": {"clip_norm": 4.0}}},
        {"code": "a", "task": {"settings": {"clip_norm": 3.0}}, "patches": "c"},
    ],
)
def test_code_and_parameters_train_nothing_again_and_are_named(register, training, made_of, caplog):
    first = training.run(once(register))
    assert training.run(once(register, made_of=made_of)) == first
    assert training.times == 1
    key = next(k for k in ("code", "clip_norm", "patches") if k in caplog.text)
    assert f"{key} is" in caplog.text
    assert "trains nothing" in caplog.text


def test_with_seeded_noise_a_study_may_train_anew_and_is_told(register, training, caplog):
    training.run(once(register, source="seeded"))
    training.run(once(register, source="seeded", made_of={"code": "b"}))
    assert training.times == 2
    assert "losses add up" in caplog.text
    assert len(register.trainings()) == 2


CHANGED = {
    "scan": (patients("sub-1") + patients("sub-2", scan="new"), "sub-2: its scan is another one"),
    "label": (patients("sub-1") + patients("sub-2", label="new"), "sub-2: its label is another one"),
    "one more": (patients("sub-1", "sub-2", "sub-3"), "sub-3: is new in training"),
    "one less": (patients("sub-1"), "sub-2: is no longer in training"),
    "all scans": (patients("sub-1", "sub-2", scan="new"), "sub-1: its scan is another one"),
    "another id": ([*patients("sub-1"), Scans(participant_id="sub-9", scan="scan of sub-2", label="x")],
                   "sub-9: is new in training"),
}  # fmt: skip


@pytest.mark.parametrize(("people", "said"), CHANGED.values(), ids=CHANGED)
def test_changed_patients_are_refused_by_name(register, training, people, said):
    first = training.run(once(register))
    with pytest.raises(RegisterError, match=said) as error:
        training.run(once(register, people))
    assert "fitted/patient-eps-1/seed-0: keep" in str(error.value)
    assert "fitted/patient-eps-1/seed-0: train" in str(error.value)
    assert training.times == 1
    assert training.run(once(register, people, again="keep")) == first
    assert training.run(once(register, people, again="train")) != first
    assert training.run(once(register, people, again="train")) != first
    assert training.times == 2, "allowed once, it trains once for each change"
    assert len(register.trainings()) == 2


def test_another_point_is_another_access(register, training):
    training.run(once(register))
    training.run(once(register, point=POINT.replace("seed-0", "seed-1")))
    assert training.times == 2
    assert {access.number for access in register.accesses()} == {1}


def test_a_training_that_was_killed_is_gone_on_with(register, training):
    def killed(access):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        once(register).train(training.files, killed)
    (access,) = register.accesses()
    assert not register.is_finished(access)
    secret = register.secret(access)
    training.run(once(register))
    assert register.accesses() == [access]
    assert register.is_finished(access)
    # It drew the same coins and noise again, and nobody can any more.
    assert len(secret) == 32
    assert register.secret(access) is None


def test_without_its_key_a_training_that_was_killed_is_another_access(register, training):
    def killed(access):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        once(register).train(training.files, killed)
    next(register.folder.glob(".*.key")).unlink()
    training.run(once(register))
    assert len(register.accesses()) == 2


def test_one_secret_gives_the_same_coins_and_noise_and_another_purpose_others():
    first, second, other = (Secure(bytes(32), purpose) for purpose in ("noise", "noise", "batches"))
    assert torch.equal(first.state(), second.state())
    assert not torch.equal(first.state(), other.state())
    assert not torch.equal(Secure().state(), Secure().state())


def test_seeded_and_secure_results_are_not_taken_for_each_other(register, training):
    seeded = training.run(once(register, source="seeded"))
    secure = training.run(once(register))
    assert seeded != secure
    assert training.run(once(register, source="seeded")) == seeded
    assert training.run(once(register)) == secure
    assert training.times == 2


def test_going_back_to_earlier_settings_brings_back_their_result(register, training):
    first = training.run(once(register, source="seeded"))
    training.run(once(register, source="seeded", made_of={"code": "b", "task": {}}))
    assert training.run(once(register, source="seeded")) == first
    assert training.times == 2


def test_a_study_of_another_name_is_the_same_point(register, training):
    first = training.run(once(register))
    assert training.run(once(register, point=POINT.replace("mine", "renamed"))) == first
    other = {"code": "a", "task": {"settings": {"clip_norm": 9.0}}}
    training.run(once(register, point=POINT.replace("mine", "other"), made_of=other))
    assert training.times == 2


def test_a_kept_result_that_was_deleted_is_not_made_again(register, training):
    training.run(once(register))
    shutil.rmtree(register.folder / "kept")
    with pytest.raises(RegisterError, match="is missing from a kept result"):
        training.run(once(register))
    assert training.times == 1


def test_allowed_to_train_again_code_alone_is_no_reason_to(register, training):
    first = training.run(once(register))
    code = {"code": "b", "task": {"settings": {"clip_norm": 3.0}}}
    assert training.run(once(register, made_of=code, again="train")) == first
    settings = {"code": "b", "task": {"settings": {"clip_norm": 4.0}}}
    assert training.run(once(register, made_of=settings, again="train")) != first


def test_an_entry_stands_before_anything_is_read(register, training):
    seen = []
    once(register).train(
        training.files, lambda a: (seen.append(len(register.accesses())), training(a))
    )
    assert seen == [1]


@pytest.mark.parametrize("name", ["weights.safetensors", "privacy.json"])
def test_a_damaged_kept_result_is_refused_by_name(register, training, name):
    training.run(once(register))
    kept = next(register.folder.glob(f"kept/*/{name}"))
    kept.write_text("other")
    with pytest.raises(artifacts.ArtifactError, match=name):
        training.run(once(register))
    kept.unlink()
    with pytest.raises(artifacts.ArtifactError, match=name):
        training.run(once(register))
    assert training.times == 1


def test_a_result_is_kept_before_it_is_handed_on(register, training, monkeypatch):
    """If keeping fails, the job fails, and what it made is deleted with it."""

    def full(self, access, files):
        raise OSError("disk full")

    monkeypatch.setattr(Register, "keep", full)
    with pytest.raises(OSError, match="disk full"):
        training.run(once(register))
    assert not any(register.is_finished(access) for access in register.accesses())


# ------------------------------------------------------------------ entries


def _add(folder: str) -> str:
    given = once(Register(Path(folder)))
    return given.register.add(
        "training", POINT, patients=tuple(given.patients), spent=spent_by(given.statement.model_dump()),
        delta=1e-3, noise_source="secure", holds="bound", made_of={},
    ).name  # fmt: skip


def test_entries_written_at_one_time_are_all_there(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = pool.map(_add, [str(tmp_path)] * 12)
    assert len(set(names)) == 12
    assert len(Register(tmp_path).accesses()) == 12


def test_no_entry_is_written_over_another(register, training):
    training.run(once(register))
    (access,) = register.accesses()
    assert not register._written(access)
    with pytest.raises(RegisterError, match="kept there already"):
        register.keep(access, [])


def test_an_altered_entry_is_refused_by_name(register, training):
    training.run(once(register))
    path = next(register.folder.glob("*.json"))
    whole = path.read_text()
    path.chmod(0o644)
    path.write_text(whole.replace("sub-1", "sub-7"))
    with pytest.raises(artifacts.ArtifactError, match=path.name):
        register.accesses()
    path.write_text(whole)
    path.rename(path.with_name("training-009-" + path.name.split("-", 2)[2]))
    with pytest.raises(RegisterError, match="under its own name"):
        register.accesses()


# ------------------------------------------------------------------ totals


def test_a_total_is_that_of_the_patient_who_lost_most(register, training):
    people = {name: patients(*name.split()) for name in ("sub-1 sub-2", "sub-2 sub-3", "sub-3")}
    for number, some in enumerate(people.values()):
        training.run(once(register, some, point=POINT.replace("seed-0", f"seed-{number}")))
    every = register.trainings()
    totals = [
        Total.of(every, people_of(POINT, patients(name)), 1e-5)
        for name in ("sub-1", "sub-2", "sub-4")
    ]
    assert [total.accesses for total in totals] == [1, 2, 0]
    one, two = (gaussian_epsilon(n**0.5 / SIGMA, 1e-5) for n in (1, 2))
    assert [total.epsilon for total in totals] == pytest.approx([one, two, 0], rel=1e-6)
    assert (
        Total.of(every, people_of(POINT, patients("sub-1", "sub-2")), 1e-5).epsilon
        == totals[1].epsilon
    )


def test_a_total_is_no_less_than_the_accountant_has_it():
    """The filter, which holds for adaptive choices, against a composition that does not."""
    for rate, draws in ((1.0, 1), (0.1, 200)):
        charge = Charge(sampling_rate=rate, noise_multiplier=3.0, draws=draws)
        access = entry(charge)
        total = Total.of([access, replace_number(access)], access.people, 1e-5).epsilon
        assert total >= epsilon([charge, charge], 1e-5) * 0.999
        assert total <= epsilon([charge, charge], 1e-5) * 1.5


def entry(charge: Charge) -> Access:
    keys = ("sampling_rate", "noise_multiplier", "draws", "releases_per_draw")
    return Access(
        kind="training", point=POINT, number=1, when="2026-01-01", delta=1e-3, holds="bound",
        patients=tuple(patients("sub-1")), noise_source="secure", made_of={},
        spent=({**{key: getattr(charge, key) for key in keys}, "records": 1},),
    )  # fmt: skip


def replace_number(access: Access) -> Access:
    return access.model_copy(update={"number": 2})


def test_a_person_is_known_by_scan_and_by_id(register, training):
    training.run(once(register))
    elsewhere = people_of("other/cohort/x/y/z", patients("sub-1"))
    renamed = people_of("other/cohort/x/y/z", patients("sub-1", scan="new"))
    rescanned = people_of(POINT, patients("sub-1", scan="new"))
    found = [
        Total.of(register.trainings(), who, 1e-5).accesses
        for who in (elsewhere, renamed, rescanned)
    ]
    assert found == [1, 0, 1]


def test_patches_of_a_patient_count_as_many(register, training):
    training.run(once(register, unit="patch"))
    total = Total.of(register.trainings(), people_of(POINT, patients("sub-1")), 1e-5)
    assert total.epsilon == pytest.approx(gaussian_epsilon(20 / SIGMA, 1e-5), rel=1e-6)


def test_the_budget_bounds_the_total_and_refuses_what_would_pass_it(register, training, caplog):
    budget = gaussian_epsilon(2**0.5 / SIGMA, 1e-3) + 1e-6
    seeds = [POINT.replace("seed-0", f"seed-{n}") for n in range(3)]
    for point in seeds[:2]:
        training.run(once(register, point=point, budget=budget))
    with pytest.raises(RegisterError, match=r"over 3 accesses.*privacy\.budget is"):
        training.run(once(register, point=seeds[2], budget=budget))
    assert len(register.accesses()) == 2
    training.run(once(register, patients("sub-8"), point=seeds[2], budget=budget))
    training.run(
        once(register, source="seeded", point=seeds[2].replace("mine", "m"), budget=budget)
    )
    assert "releases nothing, so it goes on" in caplog.text


def test_what_was_begun_counts_for_the_budget(register, training):
    """Points that are trained beside each other cannot pass it together."""

    def killed(access):
        raise InterruptedError

    budget = 1.01 * gaussian_epsilon(1 / SIGMA, 1e-3)
    with pytest.raises(InterruptedError):
        once(register, budget=budget).train(training.files, killed)
    with pytest.raises(RegisterError, match="over 2 accesses"):
        training.run(once(register, point=POINT.replace("seed-0", "seed-1"), budget=budget))
    training.run(once(register, budget=budget))


# ------------------------------------------------------------------ the way out


def test_a_release_names_all_that_ever_left(register, training, tmp_path):
    made = []
    for number in range(3):
        training.run(once(register, point=POINT.replace("seed-0", f"seed-{number}")))
        made.append(register.accesses()[-1].name)
    first, second, third = (Way(register, statement(access=name)) for name in made)
    assert first.names == ()
    first.sign_out("a" * 64)
    assert first.signed_out() == ["a" * 64]
    assert second.signed_out() == []
    assert second.names == ("fitted/patient-eps-1/seed-0",)
    assert second.together.accesses == 2
    second.sign_out("b" * 64)
    # One more bundle of the same training costs nothing more.
    second.sign_out("c" * 64)
    assert third.names == ("fitted/patient-eps-1/seed-0", "fitted/patient-eps-1/seed-1")
    assert third.together.epsilon == pytest.approx(gaussian_epsilon(3**0.5 / SIGMA, 1e-3), rel=1e-6)
    planned = Way(register, statement(access=made[0]), [statement(access=made[2])])
    assert "fitted/patient-eps-1/seed-2" in planned.names
    assert "mine" not in json.dumps(third.names)
    assert third.stated.epsilon == pytest.approx(third.together.epsilon)


def test_a_card_says_nothing_of_who_is_in_two_cohorts(register, training):
    """The gate counts a patient who is in both; what is printed is of the cohort alone."""
    here, there = POINT, POINT.replace("first", "second").replace("seed-0", "seed-1")
    for point, people in ((here, patients("sub-1")), (there, patients("sub-1", "sub-2"))):
        training.run(once(register, people, point=point))
    one, two = (Way(register, statement(access=access.name)) for access in register.accesses())
    two.sign_out("a" * 64)
    assert one.together.accesses == 2
    assert one.names == ()
    assert one.stated.accesses == 1


def test_the_entries_are_those(register, training):
    for number in range(3):
        training.run(once(register, point=POINT.replace("seed-0", f"seed-{number}")))
        Way(register, statement(access=register.trainings()[-1].name)).sign_out("a" * 64)
    assert {access.kind for access in register.accesses()} == {"training", "release"}
    assert len(register.accesses()) == 6


def test_a_result_that_the_register_does_not_know_is_not_let_out(register):
    with pytest.raises(RegisterError, match="holds no entry 'training-001"):
        _ = Way(register, statement(access="training-001-x")).together


def test_weights_are_sampled_with_the_settings_they_were_made_by():
    from harness import CASES

    asked = CASES["diffusion, patch"].task(channels=(8, 16), sampling_steps=7)
    made = CASES["diffusion, patch"].task()
    found = as_trained(asked, {"task": made.model_dump(mode="json")})
    assert found.settings.channels == made.settings.channels
    assert found.settings.sampling_steps == 7
    assert as_trained(asked, {}) == asked
    assert replace(once(Register(Path())), budget=1.0).budget == 1.0
