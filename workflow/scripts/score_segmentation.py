"""Choose the U-Net by its validation patients and score it on every test patient."""

import json
from pathlib import Path

import pandas as pd

import job
from veil import artifacts, training, volumes
from veil.cohorts import bids, check
from veil.config import Segmentation
from veil.evaluation import segmentation as evaluation
from veil.segmentation.inference import segment
from veil.segmentation.unet import Segmenter

with job.running(snakemake):
    settings = Segmentation.model_validate_json(snakemake.params.segmentation)
    validation = {
        Path(path).parent.name: artifacts.read_table(Path(path))["dsc"].mean()
        for path in snakemake.input.validation
    }
    best = max(validation, key=validation.__getitem__)
    weights = next(p for p in map(Path, snakemake.input.weights) if p.parent.name == best)
    segmenter = Segmenter.load(weights, training.choose_device())
    rows = []
    for test, manifest in zip(
        json.loads(snakemake.params.tests), snakemake.input.manifests, strict=True
    ):
        patients = bids.read_manifest(Path(manifest), Path(test["root"]), "test")
        for number, patient in enumerate(patients):
            image, label, region = check.read_patient(patient, test["region"])
            found = segment(image.data, region, segmenter, snakemake.params.size, settings.stride)
            point = {"test_cohort": test["name"], "participant_id": patient.participant_id}
            scores = evaluation.scores(found, label, image.zooms, snakemake.params.tolerance)
            rows += [{**point, "metric": name, "value": value} for name, value in scores.items()]
            if number == 0:  # the example patient of the figures: the first, whoever that is
                errors = Path(snakemake.output.errors) / f"{test['name']}.nii.gz"
                volumes.write(errors, evaluation.error_map(found, label), image.affine)
    artifacts.write_table(Path(snakemake.output.scores), pd.DataFrame(rows))
    artifacts.write_json(
        Path(snakemake.output.chosen), {"cell": best, "mean_validation_dsc": validation}
    )
