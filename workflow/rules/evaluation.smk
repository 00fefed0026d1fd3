# From U-Nets and synthetic pairs to scores against real test patients.
# INPUTS   {point}/segmenters/*/, {point}/synthetic/pairs.npy, manifests, scans and patches of
#          test patients
# OUTPUTS  {point}/segmenters/chosen.json, {point}/scores/segmentation.tsv, {point}/scores/similarity.tsv,
#          {point}/scores/errors/ (NIfTI error maps), results/{cohort}/data/threshold.tsv


rule score_segmentation:
    """Choose the U-Net by validation patients and score it on every test patient."""
    input:
        test_scans,
        manifests=test_manifests,
        validation=expand(
            f"{POINT}/segmenters/{{cell}}/validation.tsv",
            cell=CELLS,
            allow_missing=True,
        ),
        weights=expand(
            f"{POINT}/segmenters/{{cell}}/weights.safetensors",
            cell=CELLS,
            allow_missing=True,
        ),
    output:
        chosen=f"{POINT}/segmenters/chosen.json",
        scores=f"{POINT}/scores/segmentation.tsv",
        errors=directory(f"{POINT}/scores/errors"),
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/score_segmentation.log",
    benchmark:
        f"{POINT}/scores/benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="6h",
        gpu=1,
    params:
        tests=test_settings,
        segmentation=SEGMENTATION,
        size=STUDY.patches.size,
        code=code_hash("score_segmentation.py"),
    script:
        "../scripts/score_segmentation.py"


rule score_similarity:
    """How far the synthetic pairs are from the test patients' patches."""
    input:
        synthetic=f"{POINT}/synthetic/pairs.npy",
        real=f"{DATA}/test_patches.npy",
    output:
        f"{POINT}/scores/similarity.tsv",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/score_similarity.log",
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="1h",
    params:
        code=code_hash("score_similarity.py"),
    script:
        "../scripts/score_similarity.py"


rule score_threshold:
    """The trivial baseline: one threshold, chosen on the validation patients."""
    input:
        test_scans,
        manifests=test_manifests,
    output:
        f"{DATA}/threshold.tsv",
    log:
        "logs/{cohort}/score_threshold.log",
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="2h",
    params:
        tests=test_settings,
        code=code_hash("score_threshold.py"),
    script:
        "../scripts/score_threshold.py"
