"""The record of every access to private data, and the statement made of it: `privacy.json`.

Floor 2. Epsilon is computed here and only read elsewhere. A statement says unit, neighbouring
relation, delta, sampling, accountant and what it does not cover; a patch epsilon never stands
without the patient epsilon, nor either without its value at a strict delta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from veil import artifacts
from veil.privacy import accounting, randomness
from veil.privacy.accounting import STRICT_DELTA, Charge

Unit = Literal["patch", "patient"]
SELECTION = (
    "not covered: the segmenter (best of the grid) is chosen on real validation patients. The "
    "choice touches no training patient and no synthetic pair, but the chosen segmenter and its "
    "scores are no private release. Nor is the choice of one run, seed or level among several "
    "after seeing their scores."
)
BEST_CASE = (
    "best case, not a bound: charged are the noisy sums over real records and over as many fakes; "
    "the realised batch size, by which they are divided, leaks besides and is charged nowhere"
)
LATTICE = (
    "clipped to the clip norm less 1/128 of it, which takes up rounding; sums and noise meet as "
    "integers on a public lattice of at most 2^-20 of the clip norm, and nothing released has "
    "finer digits; the noise is a Gaussian rounded to the lattice, exactly (interval refinement, "
    "Haney et al. 2022), which adds nothing to delta"
)
COMPOSITION = (
    "of this run alone: whoever gets several runs on the same patients gets the sum of their "
    "losses, a little less than the sum of their epsilons"
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One private access: a Poisson-subsampled Gaussian with `unit` as its record."""

    access: str
    """What was done, as `training`."""
    charge: Charge
    """Draws that were made, not those that were planned."""
    clip_norm: float
    planned_draws: int

    def as_dict(self) -> dict[str, Any]:
        """The event as it stands in a statement."""
        charge = self.charge
        return {
            "access": self.access,
            "mechanism": "Gaussian on sums over Poisson batches",
            "sampling_rate": charge.sampling_rate,
            "noise_multiplier": charge.noise_multiplier,
            "clip_norm": self.clip_norm,
            "draws": charge.draws,
            "planned_draws": self.planned_draws,
            "releases_per_draw": charge.releases_per_draw,
            "covered": True,
        }


CHOICE = {"access": "choice of segmenter and run on validation patients", "covered": False}


class StatementError(artifacts.ArtifactError):
    """What is no privacy statement of this version."""


class Statement(BaseModel):
    """What is said of one result's privacy: `privacy.json`, in the types that decisions rest on.

    An epsilon is None where there is no finite one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    guarantee: Literal["public", "differential privacy", "none"]
    epsilon: float | None
    """Per patch, at `delta`."""
    epsilon_patient: float | None
    epsilon_strict: float | None
    """Per patch, at `delta_strict`."""
    epsilon_patient_strict: float | None
    text: str
    selection: str = SELECTION
    events: tuple[dict[str, Any], ...] = ()
    delta: float = 0.0
    delta_strict: float = STRICT_DELTA
    holds: Literal["bound", "best case"] = "bound"
    """Whether the epsilons are upper bounds, or only what is charged of a loop that leaks more."""
    holds_because: str | None = None
    unit: Literal["patch", "patient"] | None = None
    neighbouring_relation: str | None = None
    sampling: str | None = None
    loop: Literal["valid", "as-published"] | None = None
    noise_multiplier: float | None = None
    units: int | None = None
    patients: int | None = None
    """Public number of training patients."""
    records_per_patient: int | None = None
    accountant: str | None = None
    accountant_of_other_unit: str | None = None
    composition: str | None = None
    cross_checks: dict[str, float | None] | None = None
    noise_source: Literal["seeded", "secure"] | None = None
    noise: str | None = None
    """The same in words."""
    arithmetic: str | None = None
    halted: str | None = None
    epsilon_published: float | None = None
    """What others would print of an as-published loop."""
    weights_sha256: str | None = None
    access: str | None = None
    """Entry of the register that this result was charged to."""

    @classmethod
    def of(cls, stated: Mapping[str, Any]) -> Self:
        """Check a statement that was read; StatementError names what is wrong with it."""
        try:
            return cls.model_validate(dict(stated))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            )
            raise StatementError(f"is no privacy statement of this version: {faults}") from None

    def as_dict(self) -> dict[str, Any]:
        """As it is printed and saved; what does not apply is left out."""
        kept = self.model_dump(mode="json")
        whole = ("epsilon", "epsilon_patient", "epsilon_strict", "epsilon_patient_strict")
        return {key: value for key, value in kept.items() if value is not None or key in whole}


def without_privacy() -> dict[str, Any]:
    """Statement of a generator trained on private data with no protection: epsilon infinite."""
    return Statement(
        guarantee="none",
        epsilon=None,
        epsilon_patient=None,
        epsilon_strict=None,
        epsilon_patient_strict=None,
        text="no privacy: epsilon is infinite for patches and patients alike",
        events=({"access": "training without protection", "covered": False}, CHOICE),
    ).as_dict()


def public() -> dict[str, Any]:
    """Statement of a generator that reads nothing private: epsilon 0."""
    return Statement(
        guarantee="public",
        epsilon=0.0,
        epsilon_patient=0.0,
        epsilon_strict=0.0,
        epsilon_patient_strict=0.0,
        text="epsilon 0 for patches and patients: made without reading any private data",
        events=(CHOICE,),
    ).as_dict()


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Every private access behind one result.

    Privacy: protects each unit under add-or-remove-one, at fixed public numbers. With the patch
    as unit the patient epsilon covers all of a patient's patches at once; with the patient as
    unit the patch epsilon follows by group privacy. What would void it: knowing the coins
    (`noise_source`), batches that are not Poisson draws at the stated rates, an access that is not
    here, or a divisor that follows the private batch (the as-published loop has one: what is
    stated of it is a best case).
    """

    unit: Unit
    delta: float
    records_per_patient: int
    units: int
    """Public number of units, which sampling rates refer to."""
    patients: int
    """Public number of training patients."""
    noise_source: str
    """`seeded` or `secure`."""
    events: tuple[Event, ...]

    @property
    def charges(self) -> list[Charge]:
        """What the events cost."""
        return [event.charge for event in self.events]

    def epsilons(self, delta: float | None = None) -> tuple[float, float]:
        """(patch epsilon, patient epsilon), upper bounds at the ledger's `delta` or this one."""
        delta = delta or self.delta
        own = accounting.epsilon(self.charges, delta)
        if self.unit == "patient":
            return accounting.record_epsilon(self.charges, delta), own
        patient = accounting.patient_epsilon(self.charges, delta, self.records_per_patient)
        return own, patient

    def _other_accountant(self, patient: float) -> str:
        """How the epsilon of the unit that is not charged was found."""
        if self.unit == "patient":
            return "group privacy from the patient's loss: a record is two steps between neighbours"
        return accounting.patient_accountant(patient)

    def statement(self, loop: str, published_epsilon: float | None = None) -> dict[str, Any]:
        """The ledger as it is printed and saved.

        `published_epsilon` is given for the as-published loop alone: what its authors would print.
        """
        patch, patient = self.epsilons()
        strict = self.epsilons(STRICT_DELTA)
        first = self.events[0]
        valid = loop == "valid"
        stated: dict[str, Any] = {
            "guarantee": "differential privacy",
            "epsilon": _finite(patch),
            "epsilon_patient": _finite(patient),
            "epsilon_strict": _finite(strict[0]),
            "epsilon_patient_strict": _finite(strict[1]),
            "delta": self.delta,
            "holds": "bound" if valid else "best case",
            "holds_because": None if valid else BEST_CASE,
            "unit": self.unit,
            "neighbouring_relation": f"add or remove one {self.unit}",
            "sampling": f"Poisson over {self.unit} units, rate {first.charge.sampling_rate:.6g}, "
            f"{first.charge.draws} independent draws, "
            f"{first.charge.releases_per_draw} noisy release(s) each",
            "loop": loop,
            "noise_multiplier": first.charge.noise_multiplier,
            "units": self.units,
            "patients": self.patients,
            "records_per_patient": self.records_per_patient,
            "accountant": accounting.accountant(),
            "accountant_of_other_unit": self._other_accountant(patient),
            "composition": COMPOSITION,
            "cross_checks": accounting.cross_checks(self.charges, self.delta),
            "noise_source": self.noise_source,
            "noise": randomness.KINDS[self.noise_source].description,
            "arithmetic": LATTICE,
            "events": [*(event.as_dict() for event in self.events), CHOICE],
        }
        if first.charge.draws < first.planned_draws:
            stated["halted"] = (
                f"after {first.charge.draws} of {first.planned_draws} draws: the next step would "
                "have passed the budget"
            )
        if published_epsilon is not None:
            stated["epsilon_published"] = published_epsilon
        return Statement(**stated, text=describe(stated)).as_dict()


def describe(stated: Mapping[str, Any]) -> str:
    """The statement as one sentence that can stand alone."""
    published = stated.get("epsilon_published")
    claim = f" (published ledger: {published:.3g}, which does not hold)" if published else ""
    best = "" if stated["holds"] == "bound" else "best case, not a bound: "
    return (
        f"{best}epsilon {_shown(stated['epsilon'])} per patch{claim}, "
        f"{_shown(stated['epsilon_patient'])} per patient, at delta {stated['delta']:.3g} "
        f"({_shown(stated['epsilon_strict'])} and {_shown(stated['epsilon_patient_strict'])} at "
        f"delta {STRICT_DELTA:g}), "
        f"{stated['neighbouring_relation']}, {stated['accountant']}; the other unit by "
        f"{stated['accountant_of_other_unit']}"
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _shown(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.3g}"
