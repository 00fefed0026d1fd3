"""Hold every result against the checksum that its job left beside it."""

from pathlib import Path

import job
from veil import artifacts

with job.running(snakemake):
    sealed = artifacts.sealed_below(Path(snakemake.params.folder))
    faults = []
    for path in sealed:
        try:
            artifacts.check_seal(path)
        except artifacts.ArtifactError as error:
            faults.append(str(error))
    if faults:
        raise artifacts.ArtifactError("\n".join(faults))
    job.log.info("%d results are as their jobs left them", len(sealed))
