"""The register: every access to patients, one sealed file each, kept for good (floor 2).

A folder of its own outside the results, which no rule makes or reads: so that neither deleting
results nor naming other points in a configuration makes anything forgotten. Studies that share the
patients should share it. Patients are known by what their scans hold, not by an id that may change.

    register/
        training-001-<study>-<cohort>-<generator>-<privacy>-seed-<n>.json    one access
        release-001-....json                                                 one bundle that left
        training-001-....finished    its result is kept: from now on it is never made again
        .training-001-....key        until then, what its coins and noise are made of
        kept/training-001-.../       the finished result: weights, statement, history

Privacy: private. It says who was in which training. What would void it: a second register for the
same patients, or files deleted from it.
"""

from __future__ import annotations

import datetime
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from veil import artifacts
from veil.privacy import accounting
from veil.privacy.accounting import Charge

KEPT = "kept"


class RegisterError(artifacts.ArtifactError):
    """An access that the register forbids, or a register that cannot be trusted."""


class Scans(BaseModel):
    """What is known of one patient: SHA-256 of what was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    participant_id: str
    scan: str
    """Of the image's voxels: it stands for the person."""
    label: str
    """Of label and region: what else training saw."""


class Spent(BaseModel):
    """What one access cost: the charge of one event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampling_rate: float
    noise_multiplier: float
    draws: int
    releases_per_draw: int
    records: int
    """Records of one patient that it may have seen: 1 where the patient is the unit."""

    def as_charge(self) -> tuple[Charge, int]:
        """As the accountant takes it."""
        charge = Charge(**self.model_dump(exclude={"records"}))
        return charge, self.records


class Access(BaseModel):
    """One entry: who was read, for which point, and at what cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["training", "release"]
    point: str
    """study/cohort/generator/privacy/seed-n"""
    number: int
    """Of its kind and point, from 1 on."""
    when: str
    """ISO 8601, UTC."""
    patients: tuple[Scans, ...]
    spent: tuple[Spent, ...]
    delta: float
    noise_source: Literal["seeded", "secure"]
    holds: Literal["bound", "best case"]
    made_of: dict[str, Any]
    """What the result follows from: task, code, patches, start; of a release, its sums."""
    of: str | None = None
    """Of a release: the training whose result left."""

    @property
    def name(self) -> str:
        """Name of its file, without the ending."""
        return f"{self.kind}-{self.number:03d}-{self.point.replace('/', '-')}"

    @property
    def people(self) -> list[set[str]]:
        """For each patient the names by which the person is known again."""
        return people_of(self.point, self.patients)


def people_of(point: str, patients: Iterable[Scans]) -> list[set[str]]:
    """For each patient of a point's cohort what the person is known by: the scan, wherever it
    lies, and the id within a study's cohort, whatever becomes of the scan."""
    cohort = "/".join(point.split("/")[:2])
    return [{patient.scan, f"{cohort}/{patient.participant_id}"} for patient in patients]


class Register:
    """The folder, and what can be asked of it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def accesses(self) -> list[Access]:
        """All entries, the oldest first; RegisterError names one that was altered."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            held = artifacts.read_sealed(path)
            try:
                access = Access.model_validate(held)
            except ValidationError as error:
                raise RegisterError(f"{path}: is no entry of a register: {error}") from None
            if access.name != path.stem:
                raise RegisterError(
                    f"{path}: holds the entry {access.name}; allowed: each under its own name"
                )
            found.append(access)
        return sorted(found, key=lambda access: (access.when, access.name))

    def add(self, kind: Literal["training", "release"], point: str, **about: Any) -> Access:
        """Write a new entry, whole or not at all, and never over another one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        taken = [a.number for a in self.accesses() if (a.kind, a.point) == (kind, point)]
        number = max(taken, default=0) + 1
        while True:
            access = Access(kind=kind, point=point, number=number, when=now, **about)
            if self._written(access):
                if kind == "training":
                    key = os.open(self._key(access), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(key, "wb") as file:
                        file.write(os.urandom(32))
                return access
            number += 1  # another process was quicker

    def _written(self, access: Access) -> bool:
        """Whether the entry is there now, and was not before: a link is made only where none is."""
        path = self.folder / f"{access.name}.json"
        temporary = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            artifacts.write_sealed(temporary, access.model_dump(mode="json"))
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links on this file system
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(temporary.read_text(encoding="utf-8"))
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        path.chmod(0o444)
        return True

    def keep(self, access: Access, files: Iterable[Path]) -> None:
        """Copy an access' finished result beside its entry, whole or not at all."""
        folder = self._kept(access)
        temporary = folder.with_name(f".{uuid.uuid4().hex[:8]}.{folder.name}")
        temporary.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, temporary / file.name)
            artifacts.seal(temporary / file.name)
        if folder.exists():
            shutil.rmtree(temporary)
            raise RegisterError(
                f"{folder}: a finished result is kept there already; allowed: one an access"
            )
        temporary.rename(folder)
        artifacts.write_text(self._mark(access), "its result is kept\n")
        self._key(access).unlink(missing_ok=True)

    def is_finished(self, access: Access) -> bool:
        """Whether its result was kept, and so may have been seen."""
        return self._mark(access).exists() or self._kept(access).is_dir()

    def secret(self, access: Access) -> bytes | None:
        """What coins and noise of an access that is not finished are made of: the same however
        often it is begun; None if it is gone."""
        path = self._key(access)
        return path.read_bytes() if path.exists() else None

    def alone(self) -> AbstractContextManager[None]:
        """Within, no other process decides what may be added."""
        return artifacts.alone(self.folder / ".lock")

    def _mark(self, access: Access) -> Path:
        return self.folder / f"{access.name}.finished"

    def _key(self, access: Access) -> Path:
        return self.folder / f".{access.name}.key"

    def restore(self, access: Access, files: Iterable[Path]) -> None:
        """Bring the kept result back; RegisterError if a file of it is missing or was altered."""
        for file in files:
            kept = self._kept(access) / file.name
            if not kept.is_file():
                raise RegisterError(f"{kept}: is missing from a kept result; restore it")
            artifacts.check_seal(kept)
            with artifacts.whole(file) as temporary:
                shutil.copyfile(kept, temporary)

    def _kept(self, access: Access) -> Path:
        return self.folder / KEPT / access.name

    def trainings(self) -> list[Access]:
        """All of them: one that was begun and not finished may have been watched."""
        return [access for access in self.accesses() if access.kind == "training"]

    def released(self) -> list[Access]:
        """The trainings whose results left the building, each once."""
        gone = {access.of for access in self.accesses() if access.kind == "release"}
        return [access for access in self.accesses() if access.name in gone]


class Total(BaseModel):
    """What several accesses come to for the patient who lost most."""

    model_config = ConfigDict(frozen=True)

    accesses: int
    epsilon: float
    """Per patient, by a filter: it holds however each access was chosen."""
    delta: float
    best_case: bool
    """Whether one of them is of a loop whose epsilon is no bound."""

    @classmethod
    def of(
        cls, accesses: Iterable[Access], people: Iterable[set[str]], delta: float,
        more: Iterable[Spent] = (),
    ) -> Self:  # fmt: skip
        """Over the accesses that read any of these people, and `more` that is planned.

        Whoever was read more often lost more: the loss is that of the patient with the largest.
        """
        every, planned = list(accesses), [spent.as_charge() for spent in more]
        names = [set().union(*access.people) for access in every]
        # Patients who were in the same accesses lost the same.
        groups = {tuple(n for n, known in enumerate(names) if person & known) for person in people}
        found = {n: every[n] for group in groups for n in group}
        losses = [
            accounting.filter_epsilon(
                [s.as_charge() for n in group for s in found[n].spent] + planned, delta
            )
            for group in groups
        ]
        return cls(
            accesses=len(found),
            epsilon=max(losses, default=0.0),
            delta=delta,
            best_case=any(access.holds == "best case" for access in found.values()),
        )


def spent_by(statement: Mapping[str, Any]) -> tuple[Spent, ...]:
    """What a privacy statement charges, as entries have it."""
    records = 1 if statement["unit"] == "patient" else statement["records_per_patient"]
    keys = ("sampling_rate", "noise_multiplier", "draws", "releases_per_draw")
    return tuple(
        Spent(records=records, **{key: event[key] for key in keys})
        for event in statement["events"]
        if event["covered"]
    )
