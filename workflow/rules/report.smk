# From scores to one page.
# INPUTS   every point's scores, statement, synthetic pairs and error maps
# OUTPUTS  results/report/: tables/*.tsv, figures/*.svg, index.html

TESTS = [STUDY.cohort, *STUDY.external]
FIGURES = figure_titles()


rule gather_scores:
    """Gather scores and privacy statements of every point into tidy tables."""
    input:
        scores=expand("{point}/scores/segmentation.tsv", point=points()),
        chosen=expand("{point}/segmenters/chosen.json", point=points()),
        similarity=expand("{point}/scores/similarity.tsv", point=points()),
        membership=expand("{point}/scores/membership.tsv", point=points()),
        memorisation=expand("{point}/scores/memorisation.tsv", point=points()),
        privacy=expand("{point}/generator/privacy.json", point=points()),
        audits=expand("{point}/scores/audit.tsv", point=private_points()),
        threshold=f"results/{STUDY.cohort}/data/threshold.tsv",
    output:
        audits="results/report/tables/audits.tsv",
        frontier=report(
            "results/report/tables/frontier.tsv",
            caption="../report/frontier.rst",
            category="Tables",
            labels={"table": "Frontier"},
        ),
        membership="results/report/tables/membership.tsv",
        memorisation="results/report/tables/memorisation.tsv",
        points="results/report/tables/points.tsv",
        scores="results/report/tables/scores.tsv",
        similarity="results/report/tables/similarity.tsv",
        summary="results/report/tables/summary.tsv",
        table_1=report(
            "results/report/tables/table_1.tsv",
            caption="../report/table-1.rst",
            category="Tables",
            labels={"table": "Table 1"},
        ),
    log:
        "logs/report/gather_scores.log",
    conda:
        "../envs/veil.yaml"
    params:
        cohort=STUDY.cohort,
        started=list(filter(STUDY.starts, STUDY.generators)),
        code=code_hash("gather_scores.py"),
    script:
        "../scripts/gather_scores.py"


rule draw_figures:
    """Draw the paper's figures for the study that ran."""
    input:
        points=rules.gather_scores.output.points,
        summary=rules.gather_scores.output.summary,
        similarity=rules.gather_scores.output.similarity,
        frontier=rules.gather_scores.output.frontier,
        test_patches=f"results/{STUDY.cohort}/data/test_patches.npy",
        closest=expand("{point}/scores/closest.npy", point=points()),
        pairs=expand("{point}/synthetic/pairs.npy", point=points()),
        errors=expand("{point}/scores/errors", point=points()),
    output:
        pictures=[
            report(
                f"results/report/figures/{figure}.svg",
                caption=caption(figure),
                category="Figures",
                labels={"figure": title},
            )
            for figure, title in FIGURES.items()
        ],
        for_papers=expand("results/report/figures/{figure}.pdf", figure=FIGURES),
    log:
        "logs/report/draw_figures.log",
    conda:
        "../envs/veil.yaml"
    params:
        tests=TESTS,
        code=code_hash("draw_figures.py"),
    script:
        "../scripts/draw_figures.py"


rule write_report:
    """Write the page."""
    input:
        audits=rules.gather_scores.output.audits,
        points=rules.gather_scores.output.points,
        table_1=rules.gather_scores.output.table_1,
        frontier=rules.gather_scores.output.frontier,
        similarity=rules.gather_scores.output.similarity,
        membership=rules.gather_scores.output.membership,
        memorisation=rules.gather_scores.output.memorisation,
        figures=rules.draw_figures.output.pictures,
    output:
        report(
            "results/report/index.html",
            caption="../report/page.rst",
            category="Report",
            labels={"page": "The whole report"},
        ),
    log:
        "logs/report/write_report.log",
    conda:
        "../envs/veil.yaml"
    params:
        study=STUDY.name,
        note=STUDY.note,
        cohort=STUDY.cohort,
        public=STUDY.cohorts[STUDY.cohort].kind == "phantom",
        tests=TESTS,
        tolerance=STUDY.segmentation.tolerance,
        figures=list(FIGURES.values()),
        captions=caption_texts(),
        command=command(),
        code=code_hash("write_report.py", files=("veil/report/page.html.j2",)),
    script:
        "../scripts/write_report.py"
