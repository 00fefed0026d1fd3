# Veil: what does privacy cost? Table of contents; one stage a file under workflow/rules.
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


# The library lies beside the scripts, so that every job can import it without installing.
sys.path.insert(0, str(Path(workflow.basedir) / "workflow" / "scripts"))


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/cohorts.smk"
include: "workflow/rules/patches.smk"
include: "workflow/rules/generators.smk"
include: "workflow/rules/synthesis.smk"
include: "workflow/rules/segmentation.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/release.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/verify.smk"
include: "workflow/rules/paths.smk"


rule all:
    """The study's report, and so all of the study."""
    default_target: True
    input:
        "results/report/index.html",
    localrule: True
