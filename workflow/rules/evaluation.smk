# From U-Nets and synthetic pairs to scores against real test patients.
# INPUTS   {point}/segmenters/*/, {point}/synthetic/pairs.npy, manifests, scans and patches of
#          test patients
# OUTPUTS  {point}/segmenters/chosen.json, results/{cohort}/data/threshold.tsv; below {point}/scores/:
#          segmentation.tsv, similarity.tsv, membership.tsv, memorisation.tsv, closest.npy, errors/ (NIfTI)


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
        tolerance=STUDY.segmentation.tolerance,
        size=STUDY.patches.size,
        code=code_hash("score_segmentation.py"),
    script:
        "../scripts/score_segmentation.py"


rule score_similarity:
    """How far the synthetic pairs are from patients' patches, and from each other."""
    input:
        synthetic=f"{POINT}/synthetic/pairs.npy",
        test=f"{DATA}/test_patches.npy",
        train=f"{DATA}/patches.npy",
    output:
        f"{POINT}/scores/similarity.tsv",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/score_similarity.log",
    benchmark:
        f"{POINT}/scores/similarity.benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="1h",
    params:
        inception=STUDY.fidelity.inception,
        sha256=STUDY.fidelity.inception_sha256,
        code=code_hash("score_similarity.py"),
    script:
        "../scripts/score_similarity.py"


rule score_membership:
    """Attack the synthetic pairs: who was in the training set, and what was copied."""
    input:
        synthetic=f"{POINT}/synthetic/pairs.npy",
        privacy=f"{POINT}/generator/privacy.json",
        weights=f"{POINT}/generator/weights.safetensors",
        start=public_start,
        train=f"{DATA}/patches.npy",
        train_patients=f"{DATA}/patches.tsv",
        test=f"{DATA}/test_patches.npy",
        test_patients=f"{DATA}/test_patches.tsv",
        validation=f"{DATA}/validation_patches.npy",
        validation_patients=f"{DATA}/validation_patches.tsv",
    output:
        membership=f"{POINT}/scores/membership.tsv",
        memorisation=f"{POINT}/scores/memorisation.tsv",
        closest=f"{POINT}/scores/closest.npy",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/score_membership.log",
    benchmark:
        f"{POINT}/scores/membership.benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="2h",
    params:
        task=generator_task,
        seed=seed_for("membership"),
        code=generator_code("score_membership.py"),
    script:
        "../scripts/score_membership.py"


rule score_threshold:
    """The trivial baseline: one threshold, chosen on the validation patients."""
    input:
        test_scans,
        manifests=test_manifests,
    output:
        f"{DATA}/threshold.tsv",
    log:
        "logs/{cohort}/score_threshold.log",
    benchmark:
        f"{DATA}/threshold.benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="2h",
    params:
        tests=test_settings,
        tolerance=STUDY.segmentation.tolerance,
        code=code_hash("score_threshold.py"),
    script:
        "../scripts/score_threshold.py"
