# From a claim to an attack on it.
# INPUTS   {point}/generator/: privacy.json (the claim) and weights.safetensors (what it was made by)
# OUTPUTS  {point}/scores/audit.tsv


rule audit_generator:
    """Attack a private point's mechanism with canaries, at its own schedule."""
    input:
        privacy=f"{POINT}/generator/privacy.json",
        weights=f"{POINT}/generator/weights.safetensors",
    output:
        f"{POINT}/scores/audit.tsv",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/audit_generator.log",
    benchmark:
        f"{POINT}/scores/audit.benchmark.tsv"
    wildcard_constraints:
        privacy=f"(?!none){PRIVACY}",
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="6h",
    params:
        task=generator_task,
        canaries=STUDY.audit.canaries,
        seed=seed_for("audit"),
        code=generator_code("audit_generator.py"),
    script:
        "../scripts/audit_generator.py"
