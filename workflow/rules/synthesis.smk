# From a generator to a set of synthetic image-label pairs.
# INPUTS   {point}/generator/weights.safetensors (and the patches, for `real` alone)
# OUTPUTS  {point}/synthetic/pairs.npy


def handed_through(wildcards):
    """The real patches, for the generator that hands them through, and for no other."""
    return [f"{DATA}/patches.npy"] if generator_kind(wildcards) == "real" else []


rule sample_synthetic:
    """Sample the pairs that segmenters are trained on."""
    input:
        weights=f"{POINT}/generator/weights.safetensors",
        patches=handed_through,
    output:
        f"{POINT}/synthetic/pairs.npy",
    params:
        task=generator_task,
        pairs=STUDY.pairs,
        seed=seed_for("synthetic"),
        code=generator_code("sample_synthetic.py"),
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/sample_synthetic.log",
    threads: 2
    resources:
        mem="8GB",
        runtime="2h",
    conda:
        "../envs/veil.yaml"
    script:
        "../scripts/sample_synthetic.py"
