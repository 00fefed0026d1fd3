# From a generator to a set of synthetic image-label pairs.
# INPUTS   {point}/generator/weights.safetensors (and the patches, for `real` alone)
# OUTPUTS  {point}/synthetic/pairs.npy


rule sample_synthetic:
    """Sample the pairs that segmenters are trained on."""
    input:
        weights=f"{POINT}/generator/weights.safetensors",
        privacy=f"{POINT}/generator/privacy.json",
        patches=handed_through,
    output:
        f"{POINT}/synthetic/pairs.npy",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/sample_synthetic.log",
    benchmark:
        f"{POINT}/synthetic/benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="2h",
    params:
        task=generator_task,
        pairs=STUDY.pairs,
        seed=seed_for("synthetic"),
        code=generator_code("sample_synthetic.py"),
    script:
        "../scripts/sample_synthetic.py"
