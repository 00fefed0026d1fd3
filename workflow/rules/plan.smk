# From the configuration alone to what it will cost.
# INPUTS   none
# OUTPUTS  a table on the terminal: `snakemake plan`


rule plan:
    """Print noise, steps, epsilons and work of every point, before any of it is spent."""
    log:
        "logs/plan.log",
    localrule: True
    conda:
        "../envs/veil.yaml"
    threads: 16
    params:
        study=STUDY.model_dump_json(),
    script:
        "../scripts/plan_study.py"
