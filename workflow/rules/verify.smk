# From what was made to whether it still is what was made.
# INPUTS   everything under results/ that a job sealed
# OUTPUTS  none: faults by name on the terminal: `snakemake verify`


rule verify:
    """Hold every result against its checksum; an emptied file with its old time is found too."""
    log:
        "logs/verify.log",
    localrule: True
    conda:
        "../envs/veil.yaml"
    params:
        folder="results",
    script:
        "../scripts/verify_results.py"
