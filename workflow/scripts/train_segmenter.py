"""Train one U-Net of the grid and score it on the validation patients."""

import json
from pathlib import Path

import pandas as pd

import job
from veil import artifacts, training
from veil.cohorts import bids, check
from veil.config import BidsCohort, Segmentation
from veil.evaluation.segmentation import dice
from veil.segmentation import unet
from veil.segmentation.inference import segment

state = Path(snakemake.params.folder) / "state"
with job.running(snakemake, state):
    settings = Segmentation.model_validate_json(snakemake.params.segmentation)
    cohort = BidsCohort.model_validate_json(snakemake.params.cohort)
    pairs = Path(snakemake.input.pairs)
    identity = {
        "settings": json.loads(snakemake.params.segmentation),
        "code": snakemake.params.code,
        "pairs": artifacts.file_hash(pairs),
    }
    segmenter = unet.train(
        artifacts.open_pairs(pairs), settings, snakemake.wildcards.cell,
        seed=snakemake.params.seed, state=state, device=training.choose_device(),
        identity=identity,
    )  # fmt: skip
    rows = []
    manifest, root = Path(snakemake.input.manifest), Path(snakemake.params.root)
    for patient in bids.read_manifest(manifest, root, "validation"):
        image, label, region = check.read_patient(patient, cohort.region)
        found = segment(image.data, region, segmenter, snakemake.params.size, settings.stride)
        rows.append({"participant_id": patient.participant_id, "dsc": dice(found, label)})
    segmenter.save(Path(snakemake.output.weights), settings.channels)
    artifacts.write_table(Path(snakemake.output.validation), pd.DataFrame(rows))
    training.write_history(state, Path(snakemake.output.history))
