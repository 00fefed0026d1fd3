# From synthetic pairs to U-Nets, each with its score on real validation patients.
# INPUTS   {point}/synthetic/pairs.npy, the private cohort's manifest and validation scans
# OUTPUTS  {point}/segmenters/{cell}/: weights.safetensors, history.jsonl, validation.tsv


rule train_segmenter:
    """Train one U-Net of the grid and score it on the validation patients."""
    input:
        cohort_files,
        pairs=f"{POINT}/synthetic/pairs.npy",
        manifest=f"{DATA}/manifest.tsv",
    output:
        weights=f"{POINT}/segmenters/{{cell}}/weights.safetensors",
        history=f"{POINT}/segmenters/{{cell}}/history.jsonl",
        validation=f"{POINT}/segmenters/{{cell}}/validation.tsv",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/{cell}.log",
    benchmark:
        f"{POINT}/segmenters/{{cell}}/benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="1d",
        gpu=1,
    params:
        segmentation=SEGMENTATION,
        size=STUDY.patches.size,
        root=cohort_root,
        cohort=cohort_settings,
        seed=seed_for(),
        folder=subpath(output.weights, parent=True),
        code=code_hash("train_segmenter.py"),
    script:
        "../scripts/train_segmenter.py"
