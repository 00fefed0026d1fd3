"""The statement that goes with every result: `privacy.json` (floor 2).

Epsilon is computed here and only read elsewhere. A statement says unit, neighbouring
relation, delta, sampling, accountant and what it does not cover; a patch epsilon never
stands without the patient epsilon.
"""

from __future__ import annotations

from typing import Any

from veil.privacy import accounting
from veil.privacy.accounting import Charge

SELECTION = (
    "not covered: the segmenter (best of the grid) is chosen on real validation patients. The "
    "choice touches no training patient and no synthetic pair, but the chosen segmenter and its "
    "scores are no private release."
)
NOISE = (
    "pseudo-random, from the study's seed and the result's path, so that the run repeats. The "
    "guarantee holds against those who do not know the seed: do not publish it with the release."
)


def without_privacy() -> dict[str, Any]:
    """Statement of a generator trained on private data with no protection: epsilon infinite."""
    return {
        "guarantee": "none",
        "epsilon": None,
        "epsilon_patient": None,
        "text": "no privacy: epsilon is infinite for patches and patients alike",
        "selection": SELECTION,
    }


def public() -> dict[str, Any]:
    """Statement of a generator that reads nothing private: epsilon 0."""
    return {
        "guarantee": "public",
        "epsilon": 0.0,
        "epsilon_patient": 0.0,
        "text": "epsilon 0 for patches and patients: made without reading any private data",
        "selection": SELECTION,
    }


def gaussian(
    charge: Charge,
    *,
    delta: float,
    clip_norm: float,
    records: int,
    records_per_patient: int,
    loop: str,
    published_steps: int | None = None,
) -> dict[str, Any]:
    """Statement of DP-SGD.

    Privacy: protects each patch under add-or-remove-one, at a fixed public `records`; the
    patient epsilon covers all of a patient's patches at once. `published_steps` is given for
    the as-published loop alone: the count of noisy steps that its authors charged. What would
    void the statement: knowing the noise seed, batches that are not Poisson draws at this
    rate, or a divisor or a number of fakes that follows the private batch (the as-published
    loop does the last two, and its bound is stated under the assumption that they leak nothing).
    """
    patch = accounting.epsilon(charge, delta)
    patient = accounting.patient_epsilon(charge, delta, records_per_patient)
    statement: dict[str, Any] = {
        "guarantee": "differential privacy",
        "epsilon": patch,
        "epsilon_patient": patient,
        "delta": delta,
        "unit": f"patch (patient: up to {records_per_patient} patches)",
        "neighbouring_relation": accounting.RELATION,
        "sampling": f"Poisson, rate {charge.sampling_rate:.6g}, {charge.draws} independent draws, "
        f"{charge.releases_per_draw} noisy release(s) each",
        "loop": loop,
        "noise_multiplier": charge.noise_multiplier,
        "clip_norm": clip_norm,
        "sampling_rate": charge.sampling_rate,
        "draws": charge.draws,
        "releases_per_draw": charge.releases_per_draw,
        "records": records,
        "records_per_patient": records_per_patient,
        "accountant": accounting.accountant(),
        "noise": NOISE,
        "selection": SELECTION,
    }
    if published_steps is not None:
        statement["epsilon_published"] = accounting.published_epsilon(
            charge, delta, published_steps
        )
        statement["published_steps"] = published_steps
    statement["text"] = describe(statement)
    return statement


def describe(statement: dict[str, Any]) -> str:
    """The statement as one sentence that can stand alone."""
    published = statement.get("epsilon_published")
    claim = f" (published ledger: {published:.3g}, which does not hold)" if published else ""
    return (
        f"epsilon {statement['epsilon']:.3g} per patch{claim}, "
        f"{statement['epsilon_patient']:.3g} per patient, at delta {statement['delta']:.3g}, "
        f"{statement['neighbouring_relation']}, {statement['accountant']}"
    )
