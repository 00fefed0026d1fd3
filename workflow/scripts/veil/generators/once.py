"""Private training happens once (floor 4).

Before a private point is trained, the register is asked. A point that was finished on the same
patients comes back from there; training again is refused, unless the configuration allows it. With
`noise: seeded` nothing is to be released, so that a study may train anew, and is told.

Privacy: an entry is written before the first private record is read, and a result is kept before it
is handed on. What would void it: a training that does not come through `Once.train`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veil import artifacts, training
from veil.cohorts import bids
from veil.config import Study, Task
from veil.privacy.ledger import Statement
from veil.privacy.register import (
    Access,
    Register,
    RegisterError,
    Scans,
    Total,
    people_of,
    spent_by,
)

log = logging.getLogger("veil")
Again = Literal["keep", "train"]


@dataclass(frozen=True, kw_only=True)
class Once:
    """One private point, and what stands in the register about it."""

    register: Register
    point: str
    """study/cohort/generator/privacy/seed-n"""
    patients: Sequence[Scans]
    """Of the training split, as their scans are now."""
    made_of: Mapping[str, Any]
    """What the result will follow from, as JSON values: task, code, patches, start."""
    statement: Statement
    again: Again | None = None
    """What the configuration says of training this point again."""
    budget: float | None = None
    """Epsilon per patient that all accesses together may not pass."""

    @property
    def secure(self) -> bool:
        """Whether the result may be released, so that its cost is real."""
        return self.statement.noise_source == "secure"

    def train(self, files: Sequence[Path], make: Callable[[Access], None]) -> None:
        """Have `files` made by `make`, or brought back.

        `make` is handed the access that it is charged to, and writes all files. RegisterError says
        why nothing may be trained, and what the ways out are.
        """
        with self.register.alone():
            access = self._open()
        if self.register.is_finished(access):
            self.register.restore(access, files)
            return
        make(access)
        self.register.keep(access, files)

    def _open(self) -> Access:
        """The access to go on with, to bring back, or a new one."""
        people = people_of(self.point, self.patients)
        before = self._before(set().union(*people))
        finished = [access for access in before if self.register.is_finished(access)]
        same = [a for a in finished if not self._changed_patients(a) and not self.differences(a)]
        for access in (same or finished)[-1:]:
            if not self._trains_again(access):
                return access
        for access in reversed(before):
            going = access not in finished and self.register.secret(access)
            if going and not self._changed_patients(access) and not self.differences(access):
                log.info("goes on with %s, which was begun and not finished", access.name)
                return access
        self._check_budget(people)
        return self.register.add(
            "training",
            self.point,
            patients=tuple(self.patients),
            spent=spent_by(self.statement.model_dump()),
            delta=self.statement.delta,
            noise_source=self.statement.noise_source,
            holds=self.statement.holds,
            made_of=json.loads(json.dumps(dict(self.made_of))),
        )

    def _before(self, people: set[str]) -> list[Access]:
        """Earlier trainings of this point on any of these people, from the same kind of source.

        Under another name of study or cohort it is the same point if the same was asked.
        """
        where, task = self.point.split("/")[2:], json.loads(json.dumps(self.made_of.get("task")))
        return [
            access
            for access in self.register.trainings()
            if access.noise_source == self.statement.noise_source
            and people & set().union(*access.people)
            and (
                access.point == self.point
                or (access.point.split("/")[2:] == where and access.made_of.get("task") == task)
            )
        ]

    def _trains_again(self, before: Access) -> bool:
        """Whether a point that was finished is to be trained again; says what is done, and why."""
        changed, differing = self._changed_patients(before), self.differences(before)
        if not changed and not differing:
            log.info("brings back %s from the register: nothing differs", before.name)
            return False
        what = "; ".join(filter(None, [*changed, differing]))
        asked = self.again == "train" and (changed or not self._only_code(before))
        if self.again == "keep" or (self.secure and not changed and not asked):
            log.warning(
                "brings back %s from the register and trains nothing. Since then: %s", before.name,
                what,
            )  # fmt: skip
            return False
        if self.secure and not asked:
            raise RegisterError(self._refusal(before, changed))
        log.warning(
            "trains %s again, which was finished as %s: another access to the same patients, and "
            "the losses add up. Since then: %s", self.point, before.name, what,
        )  # fmt: skip
        return True

    def _refusal(self, before: Access, changed: Sequence[str]) -> str:
        key = self.point.split("/", 2)[2]
        return (
            f"{self.point}: was trained on {before.when[:10]} ({before.name}), and its patients "
            f"are no longer as they were: {'; '.join(changed)}. Training again would be charged to "
            "the same patients. Allowed: restore the files as they were; or privacy: {again: "
            f"{{{key}: keep}}}} to go on with the finished result; or privacy: {{again: {{{key}: "
            "train}} to train again, and then both count"
        )

    def _changed_patients(self, before: Access) -> list[str]:
        """How the training patients differ from those of an access, by name."""
        old = {patient.participant_id: patient for patient in before.patients}
        new = {patient.participant_id: patient for patient in self.patients}
        return [
            f"{name}: its {what} is another one"
            for name in sorted(old.keys() & new.keys())
            for what in ("scan", "label")
            if getattr(old[name], what) != getattr(new[name], what)
        ] + [
            f"{name}: is {where}"
            for names, where in (
                (old.keys() - new.keys(), "no longer in training"),
                (new.keys() - old.keys(), "new in training"),
            )
            for name in sorted(names)
        ]

    def differences(self, before: Access) -> str:
        """What the result would follow from now, and did not then."""
        return training.differences(before.made_of, self.made_of)

    def _only_code(self, before: Access) -> bool:
        """Whether nothing but the code differs."""
        return not training.differences(
            {**before.made_of, "code": ""}, {**self.made_of, "code": ""}
        )

    def _check_budget(self, people: list[set[str]]) -> None:
        """Refuse, or tell of, an access that would take a patient beyond the budget."""
        if self.budget is None:
            return
        planned = spent_by(self.statement.model_dump())
        total = Total.of(self.register.trainings(), people, self.statement.delta, planned)
        if not total.accesses:  # alone, it is what its own accountant says
            alone = self.statement.epsilon_patient
            total = total.model_copy(update={"epsilon": math.inf if alone is None else alone})
        if total.epsilon <= self.budget:
            return
        text = (
            f"{self.point}: with it a patient would come to epsilon {total.epsilon:.3g} over "
            f"{total.accesses + 1} accesses, at delta {total.delta:.3g}; allowed by privacy.budget "
            f"is {self.budget:g}. What was spent stands in {self.register.folder}"
        )
        if self.secure:
            raise RegisterError(text)
        log.warning("%s. Its noise is seeded and releases nothing, so it goes on", text)


def made_of(task: Task, code: str, patches: Path | None, start: Path | None) -> dict[str, Any]:
    """What a training follows from, as JSON values."""
    owners = patches.with_suffix(".tsv") if patches else None
    files = {"patches": patches, "owners": owners, "start": start}
    hashes = {name: artifacts.file_hash(path) if path else "" for name, path in files.items()}
    return {"task": task.model_dump(mode="json"), "code": code, **hashes}


def point(
    study: Study, of: Mapping[str, str], manifest: Path, made_of: Mapping[str, Any],
    statement: Statement,
) -> Once:  # fmt: skip
    """A point of a study, by its path's parts (cohort, generator, privacy, seed) and its cohort's
    manifest."""
    key = f"{of['generator']}/{of['privacy']}/seed-{of['seed']}"
    return Once(
        register=Register(Path(study.privacy.register)),
        point=f"{study.name}/{of['cohort']}/{key}",
        patients=[
            Scans(participant_id=p.participant_id, scan=p.scan_sha256, label=p.label_sha256)
            for p in bids.read_manifest(manifest, Path(), "train")
        ],
        made_of=made_of,
        statement=statement,
        again=study.privacy.again.get(key),
        budget=study.privacy.budget,
    )


def as_trained(asked: Task, meta: Mapping[str, Any]) -> Task:
    """The task that weights with this metadata were made by, to be sampled as is asked now."""
    if "task" not in meta:
        return asked
    made = Task.model_validate(meta["task"])
    keys = getattr(type(asked.settings), "SAMPLING_KEYS", ())
    update = {key: getattr(asked.settings, key) for key in keys}
    return made.model_copy(update={"settings": made.settings.model_copy(update=update)})
