# From patients to image-label patches.
# INPUTS   results/{cohort}/data/manifest.tsv and the scans it lists
# OUTPUTS  results/{cohort}/data/: patches.npy (a memory map) and patches.tsv (whose they are) of the
#          training patients; test_patches.* of the test and validation_patches.* of the validation patients


rule cut_patches:
    """Cut the training patients' patches; private, and never leaving this side."""
    input:
        cohort_files,
        manifest=f"{DATA}/manifest.tsv",
    output:
        pairs=f"{DATA}/patches.npy",
        table=f"{DATA}/patches.tsv",
    log:
        "logs/{cohort}/cut_patches.log",
    benchmark:
        f"{DATA}/patches.benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    threads: 2
    resources:
        mem="8GB",
        runtime="1h",
    params:
        root=cohort_root,
        cohort=cohort_settings,
        split="train",
        patches=STUDY.patches.model_dump_json(),
        seed=seed_for("patches"),
        code=code_hash("cut_patches.py"),
    script:
        "../scripts/cut_patches.py"


use rule cut_patches as cut_test_patches with:
    output:
        pairs=f"{DATA}/test_patches.npy",
        table=f"{DATA}/test_patches.tsv",
    log:
        "logs/{cohort}/cut_test_patches.log",
    benchmark:
        f"{DATA}/test_patches.benchmark.tsv"
    params:
        root=cohort_root,
        cohort=cohort_settings,
        split="test",
        patches=STUDY.patches.model_dump_json(),
        seed=seed_for("patches"),
        code=code_hash("cut_patches.py"),


use rule cut_patches as cut_validation_patches with:
    output:
        pairs=f"{DATA}/validation_patches.npy",
        table=f"{DATA}/validation_patches.tsv",
    log:
        "logs/{cohort}/cut_validation_patches.log",
    benchmark:
        f"{DATA}/validation_patches.benchmark.tsv"
    params:
        root=cohort_root,
        cohort=cohort_settings,
        split="validation",
        patches=STUDY.patches.model_dump_json(),
        seed=seed_for("patches"),
        code=code_hash("cut_patches.py"),
