"""A real SLURM of one node on this machine, and the study on it.

    python tests/workflow/slurm.py            # what the tests run, as a table
    python tests/workflow/slurm.py --whole    # the tiny study whole, with and without groups

Needs root, and Debian's packages `slurm-wlm` and `munge`. Its GPUs are
false (/dev/null), so the profiles are used with `require_gpu: 0`. All of its state lies in one
temporary folder; the three links to it in /etc/slurm go with it, also after a failure.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml
from projects import SNAKEMAKE, copy_project

SYSTEM = Path("/etc/slurm")  # jobs find slurm.conf nowhere else: Snakemake strips SLURM_CONF
BINARIES = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "scontrol")

# More processors and memory than there are, so that the profiles' requests fit as they stand.
# cred_expire is also how long a requeued job waits.
SLURM_CONF = """\
ClusterName=veil
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=3600
KillWait=3
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n"


# ------------------------------------------------------------------ the cluster


def why_not() -> str:
    """Why SLURM cannot be brought up here; empty if it can."""
    if os.geteuid() != 0:
        return "not root: SLURM's daemons cannot be started"
    if taken := [str(path) for path in _links() if path.is_symlink() or path.exists()]:
        return f"{', '.join(taken)}: this machine has a SLURM already, which is left alone"
    missing = [name for name in BINARIES if not shutil.which(name)]
    return (
        f"{', '.join(missing)}: not installed (apt-get install slurm-wlm munge)" if missing else ""
    )


def _links() -> list[Path]:
    return [SYSTEM / name for name in ("slurm.conf", "gres.conf", "cgroup.conf")]


class Cluster:
    """One node. Enter it to bring it up; leaving it removes every trace."""

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="veil-slurm-"))
        self.host = socket.gethostname().split(".")[0]
        self.daemons: dict[str, subprocess.Popen] = {}
        try:
            self._configure()
            self._munge()
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", self.host)
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_node()
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for link in _links():
            if link.is_symlink() and link.readlink().parent == self.folder:
                link.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fail_node(self) -> None:
        """The node and everything on it dies at once, and comes back."""
        self._kill_node()
        control("update", f"NodeName={self.host}", "State=DOWN", "Reason=tested")
        self._start("slurmd", "-D", "-N", self.host)
        self._wait_until_idle()

    def _configure(self) -> None:
        texts = (SLURM_CONF, GRES_CONF, CGROUP_CONF)
        SYSTEM.mkdir(exist_ok=True)
        for name in ("slurmctld", "slurmd"):
            (self.folder / name).mkdir()
        for link, text in zip(_links(), texts, strict=True):
            path = self.folder / link.name
            path.write_text(text.format(folder=self.folder, host=self.host))
            link.symlink_to(path)  # raises where there is one
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def _munge(self) -> None:
        files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid",
                 "seed-file": "seed"}  # fmt: skip
        paths = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self._start("munged", "--foreground", "--force", *paths)
        wait_until((self.folder / "munge.socket").exists, 10, "munge's socket")

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.out").open("a")
        self.daemons[name] = subprocess.Popen(
            [name, *arguments], stdout=log, stderr=log, start_new_session=True
        )

    def _wait_until_idle(self) -> None:
        wait_until(lambda: command("sinfo", "-h", "-o", "%T").strip() == "idle", 30, "the node")

    def _kill_node(self) -> None:
        """Kill slurmd, then each job's keeper with all that it started."""
        if "slurmd" not in self.daemons:
            return
        daemon = self.daemons.pop("slurmd")
        daemon.kill()
        daemon.wait()
        keepers = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "slurmstepd"]
        for keeper in keepers:
            with suppress(psutil.NoSuchProcess):
                for process in [*keeper.children(recursive=True), keeper]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


def command(*words: str) -> str:
    """What a command prints; empty where it fails."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def control(*words: str) -> str:
    """What `scontrol` prints."""
    return command("scontrol", *words)


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Return once `holds()` is true; raise where it does not become so in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: nothing within {seconds:g} s")
        time.sleep(0.2)


# ------------------------------------------------------------------ the study

STUDY = {
    "external": [],
    "points": [{"generator": "wgan", "privacy": ["sigma-2"]}],
    "release": {"points": []},
}
POINT = "results/first/wgan/sigma-2/seed-{}"
WEIGHTS = f"{POINT}/generator/weights.safetensors"
SAVE = "seconds_between_saves: float = 60.0"


def copy_study(place: Path, data: Path | None = None) -> Path:
    """A fresh copy of the project, with the small study, and with finished data if there are any."""
    copy_project(place)
    (place / "study.yaml").write_text(yaml.safe_dump(STUDY))
    if data is not None:
        shutil.copytree(data / "results/first/data", place / "results/first/data")
    return place


def fit(place: Path, *without: str, require_gpu: int = 0) -> Path:
    """Edit a copy's profiles as one would for this cluster: no accounting, two slow processors."""
    for path in (place / "profiles").glob("slurm*/config.yaml"):
        keys = yaml.safe_load(path.read_text())
        keys |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 3,
                 "latency-wait": 5}  # fmt: skip
        keys["default-resources"]["require_gpu"] = require_gpu
        kept = {key: value for key, value in keys.items() if key not in ("set-threads", *without)}
        path.write_text(yaml.safe_dump(kept))
    return place


@contextmanager
def running(place: Path, *arguments: str, study: str = "study.yaml") -> Iterator:
    """Snakemake in the background: the process, and the file that it prints to."""
    output = place / "snakemake.out"
    studies = ["tests/fixtures/tiny.yaml", *([study] if study else [])]
    with output.open("w") as file:
        run = subprocess.Popen(
            [SNAKEMAKE, "--configfile", *studies, *arguments],
            cwd=place, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield run, output
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def on(profile: str) -> tuple[str, str]:
    """Snakemake's arguments for a profile of ours."""
    return "--workflow-profile", f"profiles/{profile}"


def finish(place: Path, profile: str, *arguments: str, **options: str) -> tuple[int, str]:
    """Exit status and output of Snakemake on the cluster."""
    with running(place, *on(profile), *arguments, **options) as (run, output):
        status = run.wait(1800)
        return status, output.read_text()


def submitted(output: str) -> int:
    """How many SLURM jobs a run submitted."""
    return len(re.findall(r"submitted with SLURM jobid", output))


def planned(output: str) -> int:
    """How many jobs Snakemake counted, less `all`, which is local."""
    return int(re.search(r"^total +(\d+)$", output, re.M)[1]) - 1  # type: ignore[index]


# ------------------------------------------------------------------ what is shown


def study(cluster: Cluster, place: Path) -> str:
    """The small study reaches its report, in fewer SLURM jobs than it has rules to run."""
    status, output = finish(fit(copy_study(place)), "slurm")
    assert status == 0, output[-4000:]
    assert (place / "results/report/index.html").stat().st_size > 50_000
    assert submitted(output) < planned(output)
    for name in ("logs/first/wgan/sigma-2/seed-0/train_generator.log",
                 f"{POINT.format(0)}/generator/benchmark.tsv"):  # fmt: skip
        assert (place / name).exists(), name
    return f"{planned(output)} jobs of Snakemake as {submitted(output)} of SLURM"


def faults(cluster: Cluster, place: Path) -> str:
    """Trainings whose node fails, and one that is cancelled, end with an undisturbed run's bytes."""
    whole = _often(copy_study(place / "whole", place))
    place = _often(fit(copy_study(place / "faults", place)))
    longer = ("--config", "generators={wgan: {generator_updates: 400}}")
    targets = [WEIGHTS.format(seed) for seed in (1, 2)]
    with (
        running(whole, "--cores", "1", *longer, "--", *targets) as (reference, _),
        running(place, *on("slurm-gres"), *longer, "--", *targets) as (run, output),
    ):
        for seed in (1, 2):
            _wait_for(run, output, _checkpoint(place, seed).exists)
        cluster.fail_node()
        first = [_resumed(run, output, place, seed) for seed in (1, 2)]
        cancelled = _job_of(1)
        command("scancel", cancelled)
        wait_until(lambda: _job_of(1) not in ("", cancelled), 120, "a retry")
        second = _resumed(run, output, place, 1)
        assert run.wait(900) == 0, output.read_text()[-4000:]
        assert submitted(output.read_text()) == 3
        assert reference.wait(900) == 0
    for target in targets:
        assert (place / target).read_bytes() == (whole / target).read_bytes(), target
    return (f"of 400 steps, resumed at {first[0]} and {first[1]} after the node failed, "
            f"and at {second} after scancel; same bytes")  # fmt: skip


def _often(place: Path) -> Path:
    """The copy saves every second instead of every minute."""
    path = place / "workflow/scripts/veil/training.py"
    text = path.read_text()
    assert SAVE in text
    path.write_text(text.replace(SAVE, SAVE.replace("60.0", "1.0")))
    return place


def _checkpoint(place: Path, seed: int) -> Path:
    return place / POINT.format(seed) / "generator/state/checkpoint.safetensors"


def _wait_for(run: subprocess.Popen, output: Path, holds: Callable[[], object]) -> None:
    """Wait for it while the run goes on."""
    wait_until(lambda: holds() or run.poll() is not None, 300, "training")
    assert run.poll() is None, output.read_text()[-4000:]


def _resumed(run: subprocess.Popen, output: Path, place: Path, seed: int) -> int:
    """The step at which a training says that it resumes, once its log (new each time) says so."""
    log = place / f"logs/first/wgan/sigma-2/seed-{seed}/train_generator.log"

    def step() -> re.Match | None:
        return re.search(r"resuming at step (\d+) of", log.read_text()) if log.exists() else None

    _wait_for(run, output, step)
    found = step()
    assert found is not None
    log.unlink()
    return int(found[1])


def _job_of(seed: int) -> str:
    """The SLURM job that trains a seed, by the comment that Snakemake gives it."""
    lines = command("squeue", "-h", "-t", "PD,R", "-o", "%i %k").splitlines()
    found = [line.split()[0] for line in lines if re.search(rf"train_generator.*_{seed}$", line)]
    return found[0] if found else ""


def too_many(cluster: Cluster, place: Path) -> str:
    """Asking for more GPUs than there are is refused at once, with SLURM's words; else the
    profiles stand as they are, and what they ask for can be read."""
    place = copy_study(place / "too-many", place)
    target = WEIGHTS.format(3)
    for profile, asked in (("slurm", ["gpu=9"]), ("slurm-gres", ["gpu=0", "gres=gpu:9"])):
        resources = [f"train_generator:{one}" for one in asked]
        status, output = finish(
            place, profile, "--retries", "0", "--set-resources", *resources, "--", target
        )
        assert status != 0
        assert "Requested node configuration is not available" in output, output[-4000:]
        assert "--cpus-per-task=4" in output and "--requeue" in output, output[-4000:]
    return "Requested node configuration is not available"


def no_gpu(cluster: Cluster, place: Path) -> str:
    """A job that asked for a GPU and sees none fails before it works, with both profiles."""
    place = fit(copy_study(place / "no-gpu", place), require_gpu=1)
    for profile in ("slurm", "slurm-gres"):
        status, output = finish(place, profile, "--retries", "0", "--", WEIGHTS.format(3))
        assert status != 0
        assert "train_generator: this job asked for a GPU, and torch" in output, output[-4000:]
        assert not (place / POINT.format(3) / "generator/state").exists()
    return "this job asked for a GPU, and torch ... sees no CUDA device"


CHECKS = (study, faults, too_many, no_gpu)


def whole(cluster: Cluster, place: Path) -> str:
    """The tiny study as it is, on the cluster."""
    return _whole(fit(copy_study(place / "grouped")))


def ungrouped(cluster: Cluster, place: Path) -> str:
    """The same without groups."""
    return _whole(fit(copy_study(place / "ungrouped"), "groups"))


def _whole(place: Path) -> str:
    status, output = finish(place, "slurm", study="")
    assert status == 0, output[-4000:]
    return f"{planned(output)} jobs of Snakemake as {submitted(output)} of SLURM"


def main() -> None:
    """Print what holds, and in how many seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--whole", action="store_true")
    checks = (whole, ungrouped) if parser.parse_args().whole else CHECKS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        with Cluster() as cluster:
            print(f"{'up':10} {time.monotonic() - start:4.0f} s", flush=True)
            for check in checks:
                start = time.monotonic()
                note = check(cluster, Path(folder) / "project")
                seconds = time.monotonic() - start
                print(f"{check.__name__:10} {seconds:4.0f} s  {note}", flush=True)


if __name__ == "__main__":
    main()
