"""The trivial baseline: one threshold, chosen on the validation patients."""

import json
from pathlib import Path

import pandas as pd

import job
from veil import artifacts
from veil.cohorts import bids, check
from veil.evaluation import segmentation as evaluation
from veil.evaluation import threshold

with job.running(snakemake):
    tests = list(zip(json.loads(snakemake.params.tests), snakemake.input.manifests, strict=True))

    def read(test, manifest, split):
        for patient in bids.read_manifest(Path(manifest), Path(test["root"]), split):
            yield patient.participant_id, check.read_patient(patient, test["region"])

    multiple = threshold.choose(
        (image.data, label, region) for _, (image, label, region) in read(*tests[0], "validation")
    )
    rows = []
    for test, manifest in tests:
        for name, (image, label, region) in read(test, manifest, "test"):
            found = threshold.predict(image.data, region, multiple)
            point = {"test_cohort": test["name"], "participant_id": name}
            scores = evaluation.scores(found, label, image.zooms, snakemake.params.tolerance)
            rows += [{**point, "metric": key, "value": value} for key, value in scores.items()]
    artifacts.write_table(Path(snakemake.output[0]), pd.DataFrame(rows))
