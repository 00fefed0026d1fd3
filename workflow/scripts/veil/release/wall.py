"""What stands in the register about a point that is to leave (floor 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from veil.privacy.ledger import Statement
from veil.privacy.register import Access, Register, RegisterError, Total


@dataclass(frozen=True)
class Way:
    """The way out of one point, past the register; public points pass it by."""

    register: Register
    statement: Statement
    others: Sequence[Statement] = ()
    """Of the points that the configuration releases on the same patients besides."""

    @cached_property
    def training(self) -> Access | None:
        """The access that the point was charged to; RegisterError if the register has none, and
        None of a point without a guarantee, which was charged to none."""
        private = self.statement.guarantee == "differential privacy"
        return self._of(self.statement) if private else None

    def _of(self, statement: Statement) -> Access:
        for access in self.register.accesses():
            if access.kind == "training" and access.name == statement.access:
                return access
        raise RegisterError(
            f"{self.register.folder}: holds no entry {statement.access!r} of the training behind "
            "this point; allowed for a release: a point that was trained with this register "
            "(privacy.register)"
        )

    @cached_property
    def _together(self) -> dict[str, Access]:
        """Trainings of the same patients that left or will leave, this one first."""
        assert self.training is not None
        mine = set().union(*self.training.people)
        planned = [self._of(s) for s in self.others if s.guarantee == "differential privacy"]
        every = [self.training, *self.register.released(), *planned]
        return {a.name: a for a in every if mine & set().union(*a.people)}

    @cached_property
    def _of_cohort(self) -> list[Access]:
        """Those that left or will leave of the same cohort by name, this one first.

        What the card says follows from these alone: who is in two cohorts is nobody's business.
        """
        assert self.training is not None
        cohort = self.training.point.split("/")[:2]
        planned = [self._of(s) for s in self.others if s.guarantee == "differential privacy"]
        every = {a.name: a for a in [self.training, *self.register.released(), *planned]}
        return [access for access in every.values() if access.point.split("/")[:2] == cohort]

    @property
    def names(self) -> tuple[str, ...]:
        """The other points of the cohort, without what names the study and the cohort."""
        if self.training is None:
            return ()
        return tuple("/".join(access.point.split("/")[2:]) for access in self._of_cohort[1:])

    @property
    def stated(self) -> Total | None:
        """What all of the cohort come to for a patient who is in each."""
        if self.training is None:
            return None
        people = [person for access in self._of_cohort for person in access.people]
        return Total.of(self._of_cohort, [set().union(*people)], self.statement.delta)

    @cached_property
    def together(self) -> Total | None:
        """What all of them come to for the patient who lost most, at the delta of this point."""
        if self.training is None:
            return None
        people = self.training.people
        return Total.of(self._together.values(), people, self.statement.delta)

    def signed_out(self) -> list[str] | None:
        """Hashes of the checksums of the bundles of this training that left before; None of public
        ones."""
        if self.statement.guarantee == "public":
            return None
        return [
            access.made_of["sums"]
            for access in self.register.accesses()
            if self.training and access.kind == "release" and access.of == self.training.name
        ]

    def sign_out(self, sums: str) -> None:
        """Write down that a bundle with these checksums leaves."""
        if self.training is not None:
            about = self.training.model_dump(exclude={"kind", "number", "when", "made_of"})
            about |= {"made_of": {"sums": sums}, "of": self.training.name}
            self.register.add("release", about.pop("point"), **about)
