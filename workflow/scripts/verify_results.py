"""Hold every result against the checksum that its job left beside it, and every bundle's files."""

from pathlib import Path

import job
from veil import artifacts
from veil.release import bundle

with job.running(snakemake):
    folder = Path(snakemake.params.folder)
    sealed, bundles = artifacts.sealed_below(folder), sorted(folder.rglob(job.OWN_SUMS))
    there = [path for path in sealed if path.exists()]
    faults = []
    for check, paths in ((artifacts.check_seal, there), (bundle.check_sums, bundles)):
        for path in paths:
            try:
                check(path)
            except artifacts.ArtifactError as error:
                faults.append(str(error))
    if faults:
        raise artifacts.ArtifactError("\n".join(faults))
    job.log.info(
        "%d results and %d bundles are as their jobs left them; %d results were deleted since",
        len(there), len(bundles), len(sealed) - len(there),
    )  # fmt: skip
