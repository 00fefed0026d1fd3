"""What every entry point does first and last: logging, threads, and errors without tracebacks."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veil import artifacts
from veil.cohorts.bids import CohortError
from veil.volumes import VolumeError

EXPECTED = (CohortError, VolumeError, artifacts.ArtifactError)
log = logging.getLogger("veil")


@contextmanager
def running(snakemake) -> Iterator[None]:  # type: ignore[no-untyped-def]
    """Log to the rule's log file and to the terminal; say what is wrong in plain words."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if snakemake.log:
        Path(snakemake.log[0]).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(snakemake.log[0], mode="w", encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(snakemake.threads)
    try:
        yield
    except EXPECTED as error:
        log.error("%s: %s", snakemake.rule, error)
        sys.exit(1)
    except Exception:
        log.exception("%s failed", snakemake.rule)
        raise
