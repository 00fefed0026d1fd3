# From raw volumes to a checked manifest.
# INPUTS   a BIDS data set, a table of files to import, or nothing (phantoms)
# OUTPUTS  results/{cohort}/data/: bids/ (made or imported), manifest.tsv, qc.tsv, qc.png


rule make_phantom_cohort:
    """Draw a public cohort and write it as BIDS."""
    output:
        directory(f"{DATA}/bids"),
    params:
        cohort=cohort_json,
        code=code_hash("make_phantom_cohort.py"),
    wildcard_constraints:
        cohort=cohorts_of_kind("phantom"),
    log:
        "logs/{cohort}/make_phantom_cohort.log",
    threads: 2
    resources:
        mem="4GB",
        runtime="1h",
    conda:
        "../envs/veil.yaml"
    script:
        "../scripts/make_phantom_cohort.py"


def import_table(wildcards):
    """The table that lists a cohort's files."""
    return STUDY.cohorts[wildcards.cohort].path


rule import_cohort:
    """Bring files of any format that SimpleITK reads into the BIDS layout."""
    input:
        import_table,
    output:
        directory(f"{DATA}/bids"),
    params:
        cohort=cohort_json,
        code=code_hash("import_cohort.py"),
    wildcard_constraints:
        cohort=cohorts_of_kind("import"),
    log:
        "logs/{cohort}/import_cohort.log",
    resources:
        mem="4GB",
        runtime="4h",
    conda:
        "../envs/veil.yaml"
    script:
        "../scripts/import_cohort.py"


rule check_cohort:
    """Open every file, refuse what cannot be used, and write the manifest and the QC sheet."""
    input:
        cohort_files,
    output:
        manifest=f"{DATA}/manifest.tsv",
        qc=f"{DATA}/qc.tsv",
        picture=f"{DATA}/qc.png",
    params:
        root=cohort_root,
        cohort=cohort_settings,
        code=code_hash("check_cohort.py"),
    log:
        "logs/{cohort}/check_cohort.log",
    resources:
        mem="4GB",
        runtime="1h",
    conda:
        "../envs/veil.yaml"
    script:
        "../scripts/check_cohort.py"
