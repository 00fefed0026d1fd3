# From raw volumes to a checked manifest.
# INPUTS   a BIDS data set, a table of files to import, or nothing (phantoms)
# OUTPUTS  results/{cohort}/data/: bids/ (made or imported), manifest.tsv, qc.tsv, qc.png


rule make_phantom_cohort:
    """Draw a public cohort and write it as BIDS."""
    output:
        directory(f"{DATA}/bids"),
    log:
        "logs/{cohort}/make_phantom_cohort.log",
    wildcard_constraints:
        cohort=cohorts_of_kind("phantom"),
    conda:
        "../envs/veil.yaml"
    threads: 2
    resources:
        mem="4GB",
        runtime="1h",
    params:
        cohort=cohort_json,
        code=code_hash("make_phantom_cohort.py"),
    script:
        "../scripts/make_phantom_cohort.py"


rule import_cohort:
    """Bring files of any format that SimpleITK reads into the BIDS layout."""
    input:
        import_table,
    output:
        directory(f"{DATA}/bids"),
    log:
        "logs/{cohort}/import_cohort.log",
    wildcard_constraints:
        cohort=cohorts_of_kind("import"),
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="4h",
    params:
        cohort=cohort_json,
        code=code_hash("import_cohort.py"),
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
    log:
        "logs/{cohort}/check_cohort.log",
    benchmark:
        f"{DATA}/check.benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="4GB",
        runtime="1h",
    params:
        root=cohort_root,
        cohort=cohort_settings,
        code=code_hash("check_cohort.py"),
    script:
        "../scripts/check_cohort.py"
