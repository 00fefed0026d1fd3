"""Ways to break the guarantee, each applied to a copy of the library: the tests must notice.

A mutant that no test fails on has survived, and so has one whose passage is no longer there. Each is
run against its own copy, which is checked afterwards (`mutant_server.py`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

LIBRARY = ROOT / "workflow/scripts"
STATEMENTS, REGISTER = "test_statements.py", "test_register.py"


@dataclass(frozen=True)
class Mutant:
    """One passage of one file, and what it becomes."""

    module: str
    old: str
    new: str
    tests: str
    """Which tests are run on it, as pytest's -k has it."""
    file: str = STATEMENTS


CLIPPING, MECHANISM = "privacy/clipping.py", "privacy/mechanism.py"
NOISE, RANDOMNESS = "privacy/noise.py", "privacy/randomness.py"
MUTANTS = {
    # ---------------------------------------------------------------- clipping
    "no clipping": Mutant(
        CLIPPING,
        "factors = (clip_norm / (norms + 1e-12)).clamp(max=1)",
        "factors = torch.ones_like(norms)",
        "test_08 and wgan",
    ),
    "records that are no number pass": Mutant(
        CLIPPING,
        "return torch.where(norms.isfinite(), factors, 0)",
        "return factors.nan_to_num(1.0, 1.0)",
        "test_09 and patch",
    ),
    "patients are not clipped": Mutant(
        CLIPPING,
        "weight = float(_clip_weights(norm, clip_norm))",
        "weight = float(norm.isfinite())",
        "test_08 and patient and wgan",
    ),
    "vectors are not clipped": Mutant(
        CLIPPING,
        "return torch.where(weights > 0, weights * vectors, 0.0)",
        "return torch.where(weights > 0, vectors, 0.0)",
        "test_08 and fitted",
    ),
    "vectors that are no number pass": Mutant(
        CLIPPING,
        "return torch.where(weights > 0, weights * vectors, 0.0)",
        "return vectors",
        "test_09 and fitted",
    ),
    # ---------------------------------------------------------------- mechanism
    "more than the clip norm": Mutant(
        MECHANISM,
        "return self.clip_norm / (1 + SLACK)",
        "return self.clip_norm * (1 + SLACK)",
        "test_08 and wgan",
    ),
    "half the noise": Mutant(
        MECHANISM,
        "lattice.deviation(self.charge.noise_multiplier * self.clip_norm)",
        "lattice.deviation(self.charge.noise_multiplier * self.clip_norm / 2)",
        "test_11 and wgan",
    ),
    "half the noise of vectors": Mutant(
        MECHANISM,
        "return self._mechanism._noised([points], lattice)[0]",
        "half = self._mechanism._noised([0 * points], lattice)[0] / 2\n"
        "        return lattice.values(lattice.nearest(lattice.values(points) + half))",
        "test_11_every",
    ),
    "no noise": Mutant(
        MECHANISM,
        "add_noise(together, self.noise, deviation, self.releases)",
        "_ = add_noise, deviation",
        "test_05 or test_11",
    ),
    "one noise vector for all tensors": Mutant(
        MECHANISM,
        "add_noise(together, self.noise, deviation, self.releases)",
        "for part in together.split([p.numel() for p in points]):\n"
        "            add_noise(part, self.noise, deviation, self.releases)",
        "test_19 and wgan",
    ),
    "the same noise in every release": Mutant(
        MECHANISM,
        "add_noise(together, self.noise, deviation, self.releases)",
        "add_noise(together, self.noise, deviation, 0)",
        "test_11 or test_19",
    ),
    "low digits of the sum pass": Mutant(
        MECHANISM,
        "return [part.to(total.dtype) for part, total in zip(sent, sums, strict=True)]",
        "return [\n"
        "            (part + total - lattice.values(lattice.nearest(total))).to(total.dtype)\n"
        "            for part, total in zip(sent, sums, strict=True)\n"
        "        ]",
        "test_12 and diffusion",
    ),
    "sums are not rounded": Mutant(
        MECHANISM,
        "lattice.towards_zero(clipped).sum(0)",
        "(clipped.sum(0) / lattice.spacing)",
        "test_18 and fitted",
    ),
    "shuffled batches of one size": Mutant(
        MECHANISM,
        "np.flatnonzero(coins < self.charge.sampling_rate)",
        "np.argsort(coins)[: round(self.charge.sampling_rate * self.units)]",
        "test_03 or test_04",
    ),
    "draws are not counted": Mutant(
        MECHANISM,
        "            raise ChargeError(f\"all {self.charge.draws} draws that were paid for have been made\")\n"
        "        self.draws += 1",
        "            raise ChargeError(f\"all {self.charge.draws} draws that were paid for have been made\")",
        "test_01 and wgan",
    ),
    "a batch is released as often as asked": Mutant(
        MECHANISM, "self._left -= 1", "pass", "test_01_a_batch"
    ),
    "inclusion by place": Mutant(
        MECHANISM,
        "self.sampler.uniform(self.draws, self.identities)\n        return Batch",
        "self.sampler.uniform(self.draws, np.arange(self.present, dtype=np.uint64))\n"
        "        return Batch",
        "test_20_nobody and patch",
    ),
    "streams by place": Mutant(
        MECHANISM,
        "self._mechanism.sampler.own(self._step, identities[self.indices.numpy()])",
        "self._mechanism.sampler.own(self._step, np.arange(len(self), dtype=np.uint64))",
        "test_20_nobody and patch",
    ),
    # ---------------------------------------------------------------- noise and randomness
    "radii too short": Mutant(NOISE, ".log().mul_(-2).sqrt_()", ".log().mul_(-1.9).sqrt_()", "test_11"),
    "two deviates from one": Mutant(
        NOISE, "(angle.cos(), angle.sin_())", "(angle.cos(), angle.cos())", "test_19"
    ),
    "a coarse lattice": Mutant(NOISE, "ROUNDING = 9", "ROUNDING = -5", "test_18 or test_the_slack"),
    "a lattice that follows the data": Mutant(
        MECHANISM,
        "lattice = Lattice.of(self._mechanism.clip_norm, vectors.shape[1])",
        "lattice = Lattice.of(self._mechanism.clip_norm, 4 ** (4 * len(vectors)))",
        "test_18 and fitted",
    ),
    "coins of one step for all": Mutant(
        RANDOMNESS, "np.full_like(identities, step)", "np.zeros_like(identities)", "test_20_an_owners"
    ),
    "a key that everybody has": Mutant(
        RANDOMNESS, "given or os.urandom(32)", "given or bytes(32)", "test_20_coins"
    ),
    "equal records share coins": Mutant(
        RANDOMNESS,
        "hashlib.blake2b(record + number.to_bytes(8, \"little\"), digest_size=8)",
        "hashlib.blake2b(record, digest_size=8)",
        "test_20_equal",
    ),
    "one keystream for all releases": Mutant(
        RANDOMNESS, "release.to_bytes(8, \"little\")\n        return chacha",
        "bytes(8)\n        return chacha", "test_11 or test_19",
    ),
    "radius and angle from one stream": Mutant(
        RANDOMNESS, "self._subkey(f\"noise {which}\")", "self._subkey(\"noise\")", "test_11_noise"
    ),
    # ---------------------------------------------------------------- generators
    "the rate follows the private number of records": Mutant(
        "generators/private.py",
        "return Mechanism(\n            self.charge,",
        "return Mechanism(\n"
        "            replace(self.charge, sampling_rate=min(self.batch / len(identities), 1.0)),",
        "test_06",
    ),
    "identities by place": Mutant(
        "generators/private.py",
        "return randomness.identities(patches)",
        "return np.arange(len(pairs), dtype=np.uint64)",
        "test_20_nobody and patch",
    ),
    "one batch for all critic updates": Mutant(
        "generators/wgan.py",
        "        for _ in range(self.settings.critic_updates):\n"
        "            batch = self.mechanism.draw()\n            records",
        "        batch = self.mechanism.draw()\n"
        "        for _ in range(self.settings.critic_updates):\n            records",
        "test_01 and wgan",
    ),
    "as many fakes as private records": Mutant(
        "generators/wgan.py",
        "records = torch.cat([self._take(batch.indices), self._fakes(divisor)])\n"
        "            signs = torch.cat([-torch.ones(len(batch)), torch.ones(divisor)])",
        "records = torch.cat([self._take(batch.indices), self._fakes(len(batch))])\n"
        "            signs = torch.cat([-torch.ones(len(batch)), torch.ones(len(batch))])",
        "(test_07 or test_17) and wgan",
    ),
    "the critic's realised divisor": Mutant(
        "generators/wgan.py",
        "self._update([part / divisor for part in total])",
        "self._update([part / max(len(batch), 1) for part in total])",
        "test_07 and wgan",
    ),
    "empty batches are skipped": Mutant(
        "generators/wgan.py",
        "            batch = self.mechanism.draw()\n            records",
        "            batch = self.mechanism.draw()\n"
        "            if not len(batch):\n                continue\n            records",
        "test_05 and wgan",
    ),
    "the denoiser's realised divisor": Mutant(
        "generators/diffusion.py",
        "parameter.grad = gradient / divisor",
        "parameter.grad = gradient / max(len(batch), 1)",
        "test_07 and diffusion",
    ),
    "the denoiser subtracts the batch's mean": Mutant(
        "generators/diffusion.py",
        "records = self.pairs[batch.indices.numpy()]",
        "records = self.pairs[batch.indices.numpy()]\n"
        "            records = records - records.mean(0).astype(np.uint8)",
        "test_10 and diffusion",
    ),
    "the denoiser's coins by place": Mutant(
        "generators/diffusion.py",
        "coins = Coins([(own, 1) for own in batch.own()])",
        "coins = Coins([(np.random.default_rng(self.taken), len(batch))])",
        "test_08 and diffusion and patch",
    ),
    "the denoiser's patches by place": Mutant(
        "generators/diffusion.py",
        "        for patient, own in zip(batch.indices.tolist(), batch.own(), strict=True):\n",
        "        own = np.random.default_rng(self.taken)\n"
        "        for patient in batch.indices.tolist():\n",
        "test_08 and diffusion and patient",
    ),
    "the denoiser keeps weights that saw no noise": Mutant(
        "generators/diffusion.py",
        "        return float(losses.sum()) / divisor\n\n    def _losses_of",
        "        with torch.no_grad():\n"
        "            next(self.average.parameters()).add_(float(losses.sum()) * 1e-6)\n"
        "        return float(losses.sum()) / divisor\n\n    def _losses_of",
        "test_12 and diffusion",
    ),
    "`fitted` divides by the realised number of patients": Mutant(
        "generators/fitted.py", ".numpy() / self.task.patients", ".numpy() / len(owners)",
        "(test_07 or test_12) and fitted",
    ),
    "`fitted` without a release": Mutant(
        "generators/fitted.py",
        "batch.release_vectors(torch.from_numpy(chosen)).numpy() / self.task.patients",
        "(batch.release_vectors(torch.from_numpy(chosen)).numpy() * 0 + chosen.sum(0)) / 6",
        "test_12 and fitted",
    ),
    "`fitted` centres patients on their mean": Mutant(
        "generators/fitted.py",
        "chosen = seen if self",
        "seen = seen - seen.mean(0)\n        chosen = seen if self",
        "test_10 and fitted",
    ),
    # ---------------------------------------------------------------- accounting and ledger
    "releases of one draw are free": Mutant(
        "privacy/accounting.py",
        "return self.noise_multiplier / math.sqrt(self.releases_per_draw)",
        "return self.noise_multiplier",
        "test_02_several",
    ),
    "half the draws are charged": Mutant(
        "privacy/accounting.py",
        "dp.SelfComposedDpEvent(step, charge.draws)",
        "dp.SelfComposedDpEvent(step, -(-charge.draws // 2))",
        "test_02_accountants",
    ),
    "the filter forgets how many records a patient has": Mutant(
        "privacy/accounting.py",
        "squares = (c.draws * (records / c.effective_noise) ** 2 for c, records in live)",
        "squares = (c.draws * (1 / c.effective_noise) ** 2 for c, records in live)",
        "test_02_at_rate",
    ),
    "a strict delta that is none": Mutant(
        "privacy/accounting.py", "STRICT_DELTA = 1e-5", "STRICT_DELTA = 1e-3", "test_14"
    ),
    "a patient pays as a patch": Mutant(
        "privacy/ledger.py",
        "patient = accounting.patient_epsilon(self.charges, delta, self.records_per_patient)",
        "patient = accounting.epsilon(self.charges, delta)",
        "test_14",
    ),
    "a best case is called a bound": Mutant(
        "privacy/ledger.py", "\"holds\": \"bound\" if valid else \"best case\"", "\"holds\": \"bound\"",
        "test_14_a_best",
    ),
    # ---------------------------------------------------------------- register
    "changed patients are trained on": Mutant(
        "generators/once.py",
        "raise RegisterError(self._refusal(before, changed))",
        "log.warning(self._refusal(before, changed))",
        "changed_patients", REGISTER,
    ),
    "changed code trains again": Mutant(
        "generators/once.py",
        "(self.secure and not changed and not asked)",
        "(False)",
        "code_and_parameters", REGISTER,
    ),
    "entries are written over": Mutant(
        "privacy/register.py", "os.link(temporary, path)", "os.replace(temporary, path)",
        "over_another or at_one_time", REGISTER,
    ),
    "the mean patient's total": Mutant(
        "privacy/register.py",
        "epsilon=max(losses, default=0.0)",
        "epsilon=min(losses, default=0.0)",
        "lost_most", REGISTER,
    ),
    "releases that the configuration forgot": Mutant(
        "release/wall.py",
        "every = [self.training, *self.register.released(), *planned]\n        return",
        "every = [self.training, *planned]\n        return",
        "ever_left", REGISTER,
    ),
}  # fmt: skip


class Server:
    """A process that runs tests on mutants, one after the other."""

    def __init__(self, place: Path):
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("mutant_server.py"))], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def status(self, mutant: Mutant, name: str) -> tuple[int, str]:
        """pytest's exit status on a mutant, and what it printed."""
        folder = self.place / name.replace(" ", "-").replace("`", "").replace("'", "")
        shutil.copytree(LIBRARY, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        path = folder / "scripts/veil" / mutant.module
        text = path.read_text()
        assert mutant.old in text, f"{name}: its passage is not in {mutant.module}"
        path.write_text(text.replace(mutant.old, mutant.new))
        asked = {
            "library": str(folder / "scripts"),
            "tests": [
                f"tests/privacy/{mutant.file}",
                *(["-k", mutant.tests] if mutant.tests else []),
            ],
            "log": str(folder / "log"),
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found = int(self.process.stdout.readline())
        return found, (folder / "log").read_text()[-3000:]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("mutants"))
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)


KILLED = []


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(server, name):
    status, log = server.status(MUTANTS[name], name)
    # 1: tests failed. Anything else but 0 is a broken mutant, not a killed one.
    assert status in (0, 1), log
    assert status == 1, f"survived: {name}"
    KILLED.append(name)


def test_enough_mutants_are_killed(record_property):
    record_property("summary", f"mutants killed: {len(KILLED)}/{len(MUTANTS)}")
    assert len(MUTANTS) >= 25


@pytest.mark.parametrize("file", [STATEMENTS, REGISTER])
def test_a_library_that_raises_is_seen(server, file):
    """So that each file of tests does run on the mutant, and on nothing else."""
    broken = Mutant(
        "privacy/accounting.py",
        "import math\n",
        "import math\nraise RuntimeError('broken')\n",
        "",
        file,
    )
    status, log = server.status(broken, f"broken {file}")
    assert status == 2, log  # pytest: interrupted, since the file cannot be collected
    assert "broken" in log


@pytest.mark.parametrize(
    ("file", "tests"),
    [(STATEMENTS, "test_02 or (test_08 and fitted)"), (REGISTER, "changed_patients")],
)
def test_tests_hold_on_an_unchanged_copy(server, file, tests):
    """Otherwise every mutant would be killed for nothing."""
    same = Mutant(CLIPPING, "import math\n", "import math\n", tests, file)
    status, log = server.status(same, f"unchanged {file}")
    assert status == 0, log
