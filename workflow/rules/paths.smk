# What is asked for by a path that nothing makes.
# INPUTS   none
# OUTPUTS  none: the path is refused with the grammar


rule refuse_path:
    """Matches every path under results/ that no other rule makes, and says what is wrong."""
    input:
        refuse,
    output:
        "results/{malformed}",
    log:
        "logs/refuse_path/{malformed}.log",
    wildcard_constraints:
        malformed=rf"(?!(?:{KNOWN_PATHS})$).*",
    localrule: True
    conda:
        "../envs/veil.yaml"
    shell:
        "exit 1 2> {log}"
