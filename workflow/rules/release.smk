# From a point that may leave to a bundle that one can publish.
# INPUTS   {point}: synthetic/pairs.npy, generator/, scores/segmentation.tsv, scores/audit.tsv
# OUTPUTS  results/{cohort}/release/{generator}/{privacy}/seed-{seed}/, the only folder meant to
#          leave the building; its SHA256SUMS stands for all of it


rule release_point:
    """Bundle one point, and refuse to if a scan finds what must not leave."""
    input:
        cohort_files,
        pairs=f"{POINT}/synthetic/pairs.npy",
        privacy=f"{POINT}/generator/privacy.json",
        weights=f"{POINT}/generator/weights.safetensors",
        scores=f"{POINT}/scores/segmentation.tsv",
        audit=audit_of_point,
        manifests=test_manifests,
        others=other_releases,
    output:
        f"{RELEASE}/SHA256SUMS",
    log:
        "logs/{cohort}/release/{generator}/{privacy}/seed-{seed}.log",
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="2h",
    params:
        name="{generator}-{privacy}-seed-{seed}",
        others=names_of_other_releases,
        about=STUDY.release.model_dump_json(exclude={"points"}),
        task=generator_task,
        public=is_phantom,
        roots=test_roots,
        code=code_hash("release_point.py", files=("veil/release/card.md.j2",)),
    script:
        "../scripts/release_point.py"


rule release:
    """All bundles that the configuration names: `snakemake release`."""
    input:
        releases,
    localrule: True
