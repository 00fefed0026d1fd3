"""Ten ways to break the guarantee, each applied to the code: the seventeen statements must notice.

Each mutant is a copy of the library with one passage replaced. A mutant that no statement's test
fails on has survived, and so has one whose passage is no longer there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from conftest import ROOT

LIBRARY = ROOT / "workflow/scripts"


@dataclass(frozen=True)
class Mutant:
    """One passage of one file, and what it becomes."""

    module: str
    old: str
    new: str
    statements: str
    """Which tests are run on it, as pytest's -k has it."""


MUTANTS = {
    "no clipping": Mutant(
        "privacy/clipping.py",
        "factors = (clip_norm / (norms * (1 + SLACK) + 1e-12)).clamp(max=1)",
        "factors = torch.ones_like(norms)",
        "test_08",
    ),
    "half the noise": Mutant(
        "privacy/mechanism.py",
        "deviation = self.plan.noise_multiplier * self.clip_norm",
        "deviation = self.plan.noise_multiplier * self.clip_norm / 2",
        "test_11",
    ),
    "no noise": Mutant(
        "privacy/mechanism.py",
        "deviation = self.plan.noise_multiplier * self.clip_norm",
        "deviation = 0.0",
        "test_05 or test_11",
    ),
    "one batch for all critic updates": Mutant(
        "generators/wgan.py",
        "        for _ in range(self.settings.critic_updates):\n"
        "            batch = self.mechanism.draw()\n            records",
        "        batch = self.mechanism.draw()\n"
        "        for _ in range(self.settings.critic_updates):\n            records",
        "test_01",
    ),
    "as many fakes as private records": Mutant(
        "generators/wgan.py",
        "records = torch.cat([self._take(batch.indices), self._fakes(divisor)])\n"
        "            signs = torch.cat([-torch.ones(len(batch)), torch.ones(divisor)])",
        "records = torch.cat([self._take(batch.indices), self._fakes(len(batch))])\n"
        "            signs = torch.cat([-torch.ones(len(batch)), torch.ones(len(batch))])",
        "test_07 or test_08",
    ),
    "the realised batch size as divisor": Mutant(
        "generators/wgan.py",
        "self._update([part / divisor for part in total])",
        "self._update([part / max(len(batch), 1) for part in total])",
        "test_07",
    ),
    "shuffled batches of one size": Mutant(
        "privacy/mechanism.py",
        "chosen = self.sampler.uniform(self.units)[: self.present] < self.plan.sampling_rate",
        "coins = self.sampler.uniform(self.units)[: self.present]\n"
        "        chosen = coins.argsort().argsort() < round(self.plan.sampling_rate * self.units)",
        "test_03 or test_04",
    ),
    "empty batches are skipped": Mutant(
        "generators/wgan.py",
        "            batch = self.mechanism.draw()\n            records",
        "            batch = self.mechanism.draw()\n"
        "            if not len(batch):\n                continue\n            records",
        "test_05",
    ),
    "records that are no number pass": Mutant(
        "privacy/clipping.py",
        "return torch.where(norms.isfinite(), factors, 0)",
        "return factors.nan_to_num(1.0, 1.0)",
        "test_09",
    ),
    "the rate follows the private number of records": Mutant(
        "generators/private.py",
        "return Mechanism(\n            self.charge,",
        "return Mechanism(\n"
        "            replace(self.charge, sampling_rate=min(self.batch / present, 1.0)),",
        "test_06",
    ),
}  # fmt: skip


def survives(name: str, mutant: Mutant, folder: Path) -> bool:
    """Whether the chosen statements' tests pass on the mutant."""
    shutil.copytree(LIBRARY, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "scripts/veil" / mutant.module
    text = path.read_text()
    assert mutant.old in text, f"{name}: its passage is not in {mutant.module}"
    path.write_text(text.replace(mutant.old, mutant.new))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider",
         "-o", "addopts=", "-o", f"pythonpath={folder / 'scripts'} tests/privacy",
         "-k", mutant.statements, "tests/privacy/test_statements.py"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    # 1: tests failed. Anything else but 0 is a broken mutant, not a killed one.
    assert done.returncode in (0, 1), done.stdout[-3000:]
    return done.returncode == 0


def test_every_mutant_is_killed(tmp_path, record_property):
    killed = []
    for name, mutant in MUTANTS.items():
        if not survives(name, mutant, tmp_path / name.replace(" ", "-")):
            killed.append(name)
    line = f"mutants killed: {len(killed)}/{len(MUTANTS)}"
    record_property("summary", line)
    assert sorted(killed) == sorted(MUTANTS), f"{line}; survived: {MUTANTS.keys() - set(killed)}"


def test_the_statements_hold_on_an_unchanged_copy(tmp_path):
    """Otherwise every mutant would be killed for nothing."""
    one = MUTANTS["no clipping"]
    assert survives(
        "unchanged", replace(one, new=one.old, statements="test_0 or test_11"), tmp_path
    )
