"""What every entry point does first and last: logging, threads, and errors without tracebacks."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from veil import artifacts
from veil.cohorts.bids import CohortError
from veil.volumes import VolumeError

# An OSError is a full disk, a read-only folder, a file that went away: it says so itself.
EXPECTED = (CohortError, VolumeError, artifacts.ArtifactError, OSError)
# A bundle's own list of checksums: no seal goes into a bundle.
OWN_SUMS = "SHA256SUMS"
SKEW = 60  # seconds that clocks of one cluster may differ
log = logging.getLogger("veil")


def check_gpu(snakemake) -> None:  # type: ignore[no-untyped-def]
    """Stop if a GPU was asked for, `require_gpu` (of cluster profiles) is set, and none is seen."""
    asked = snakemake.resources.get("gpu") or "gpu" in snakemake.resources.get("gres", "")
    if asked and snakemake.resources.get("require_gpu"):
        import torch  # not above: jobs without a GPU need not wait for it

        if not torch.cuda.is_available():
            log.error("%s: this job asked for a GPU, and torch %s sees no CUDA device: check "
                      "driver, partition, CUDA_VISIBLE_DEVICES and that torch is a CUDA build; "
                      "allowed is also the CPU, with `require_gpu: 0` in the profile",
                      snakemake.rule, torch.__version__)  # fmt: skip
            sys.exit(1)


def check_times(inputs: Iterable[Path]) -> None:
    """Wait until the times of all inputs have passed; ArtifactError if one lies far ahead.

    Snakemake deletes what was made of a file that seems newer, however long that took.
    """
    for path in filter(Path.exists, inputs):
        ahead = path.stat().st_mtime - time.time()
        if ahead > SKEW:
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            raise artifacts.ArtifactError(
                f"{path}: last written at {written}, which has not come yet; allowed is a time "
                "that has passed: `touch` it, or set the clock of the machine that wrote it"
            )
        time.sleep(max(ahead, 0.0))


@contextmanager
def running(snakemake, state: Path | None = None) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """Log to the rule's log file and to the terminal; say what is wrong in plain words.

    Inputs are verified before the work, and outputs sealed after it. `state` is where the work
    keeps checkpoints: one job at a time, and cleared once all that came of them is safe.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if snakemake.log:
        Path(snakemake.log[0]).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(snakemake.threads)
    check_gpu(snakemake)
    try:
        with artifacts.alone(state.with_name(f".{state.name}.lock")) if state else nullcontext():
            inputs = [Path(name) for name in snakemake.input]
            check_times(inputs)
            # Folders of scans are verified by the job that checks them, not by all that read some.
            for path in filter(Path.is_file, inputs):
                artifacts.check_seal(path)
            yield
            for path in map(Path, snakemake.output):
                if path.name != OWN_SUMS:
                    artifacts.seal(path)
            if state and state.exists():
                shutil.rmtree(state)
    except EXPECTED as error:
        log.error("%s: %s", snakemake.rule, error)
        sys.exit(1)
    except Exception:
        log.exception("%s failed", snakemake.rule)
        raise
