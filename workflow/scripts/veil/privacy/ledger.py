"""The record of every access to private data, and the statement made of it: `privacy.json`.

Floor 2. Epsilon is computed here and only read elsewhere. A statement says unit, neighbouring
relation, delta, sampling, accountant and what it does not cover; a patch epsilon never stands
without the patient epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from veil.privacy import accounting
from veil.privacy.accounting import Charge

Unit = Literal["patch", "patient"]
SELECTION = (
    "not covered: the segmenter (best of the grid) is chosen on real validation patients. The "
    "choice touches no training patient and no synthetic pair, but the chosen segmenter and its "
    "scores are no private release. Nor is the choice of one run, seed or level among several "
    "after seeing their scores."
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


def without_privacy() -> dict[str, Any]:
    """Statement of a generator trained on private data with no protection: epsilon infinite."""
    return {
        "guarantee": "none",
        "epsilon": None,
        "epsilon_patient": None,
        "text": "no privacy: epsilon is infinite for patches and patients alike",
        "selection": SELECTION,
        "events": [{"access": "training without protection", "covered": False}, CHOICE],
    }


def public() -> dict[str, Any]:
    """Statement of a generator that reads nothing private: epsilon 0."""
    return {
        "guarantee": "public",
        "epsilon": 0.0,
        "epsilon_patient": 0.0,
        "text": "epsilon 0 for patches and patients: made without reading any private data",
        "selection": SELECTION,
        "events": [CHOICE],
    }


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Every private access behind one result.

    Privacy: protects each unit under add-or-remove-one, at fixed public numbers. With the patch
    as unit the patient epsilon covers all of a patient's patches at once; with the patient as
    unit the patch epsilon follows by group privacy. What would void it: knowing the coins
    (`noise`), batches that are not Poisson draws at the stated rates, an access that is not
    here, or a divisor or a number of fakes that follows the private batch (the as-published
    loop does the last two; its bound assumes that they leak nothing).
    """

    unit: Unit
    delta: float
    records_per_patient: int
    units: int
    """Public number of units, which sampling rates refer to."""
    noise: str
    """Where the coins come from, in words."""
    events: tuple[Event, ...]

    @property
    def charges(self) -> list[Charge]:
        """What the events cost."""
        return [event.charge for event in self.events]

    def epsilons(self) -> tuple[float, float]:
        """(patch epsilon, patient epsilon), upper bounds at `delta`."""
        own = accounting.epsilon(self.charges, self.delta)
        if self.unit == "patient":
            return accounting.record_epsilon(self.charges, self.delta), own
        patient = accounting.patient_epsilon(self.charges, self.delta, self.records_per_patient)
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
        first = self.events[0]
        stated: dict[str, Any] = {
            "guarantee": "differential privacy",
            "epsilon": _finite(patch),
            "epsilon_patient": _finite(patient),
            "delta": self.delta,
            "unit": self.unit,
            "neighbouring_relation": f"add or remove one {self.unit}",
            "sampling": f"Poisson over {self.unit} units, rate {first.charge.sampling_rate:.6g}, "
            f"{first.charge.draws} independent draws, "
            f"{first.charge.releases_per_draw} noisy release(s) each",
            "loop": loop,
            "noise_multiplier": first.charge.noise_multiplier,
            "units": self.units,
            "records_per_patient": self.records_per_patient,
            "accountant": accounting.accountant(),
            "accountant_of_other_unit": self._other_accountant(patient),
            "composition": COMPOSITION,
            "cross_checks": accounting.cross_checks(self.charges, self.delta),
            "noise": self.noise,
            "selection": SELECTION,
            "events": [*(event.as_dict() for event in self.events), CHOICE],
        }
        if first.charge.draws < first.planned_draws:
            stated["halted"] = (
                f"after {first.charge.draws} of {first.planned_draws} draws: the next step would "
                "have passed the budget"
            )
        if published_epsilon is not None:
            stated["epsilon_published"] = published_epsilon
        stated["text"] = describe(stated)
        return stated


def describe(statement: dict[str, Any]) -> str:
    """The statement as one sentence that can stand alone."""
    published = statement.get("epsilon_published")
    claim = f" (published ledger: {published:.3g}, which does not hold)" if published else ""
    return (
        f"epsilon {_shown(statement['epsilon'])} per patch{claim}, "
        f"{_shown(statement['epsilon_patient'])} per patient, at delta {statement['delta']:.3g}, "
        f"{statement['neighbouring_relation']}, {statement['accountant']}; the other unit by "
        f"{statement['accountant_of_other_unit']}"
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _shown(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.3g}"
