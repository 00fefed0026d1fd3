# What the rules share: the validated study, the grammar of paths, and parameters.
import json
import re

from snakemake.exceptions import WorkflowError
from types import SimpleNamespace

from veil import config as settings
from veil.provenance import code_hash, derive_seed

try:
    STUDY = settings.load(config)
except settings.ConfigError as error:
    raise WorkflowError(str(error)) from None

POINT = "results/{cohort}/{generator}/{privacy}/seed-{seed}"
DATA = "results/{cohort}/data"
CELLS = STUDY.segmentation.grid.cells()
SEGMENTATION = STUDY.segmentation.model_dump_json(exclude={"grid"})
GRAMMAR = f"""the grammar of a result's path:
  results/<cohort>/<generator>/<privacy>/seed-<n>/<file>
    cohort     {", ".join(STUDY.cohorts)}
    generator  {", ".join(STUDY.generators)}
    privacy    none | sigma-X | eps-X, X in its shortest decimal spelling (sigma-0.65)
    file       generator/weights.safetensors | generator/privacy.json | synthetic/pairs.npy |
               segmenters/chosen.json | scores/segmentation.tsv
  results/<cohort>/data/<file>
    file       manifest.tsv | qc.tsv | qc.png | patches.npy | threshold.tsv
  results/report/index.html"""


wildcard_constraints:
    cohort="|".join(STUDY.cohorts),
    generator="|".join(STUDY.generators),
    privacy=settings.PRIVACY,
    seed=settings.SEED,
    cell=r"lr-[^/]+_dropout-[^/]+_augment-(?:on|off)",


def refuse_malformed_targets():
    """Refuse a target under results/ that no rule makes, before anything else happens."""
    targets = workflow.dag_settings.targets if workflow.dag_settings else ()
    for target in filter(None, targets):
        path = str(target).removeprefix("./")
        if not path.startswith("results/"):
            continue
        if problem := problem_of(path.rstrip("/").split("/")[1:]):
            raise WorkflowError(f"{target}: {problem}; {GRAMMAR}")


def problem_of(parts):
    """What is wrong with the parts of a path below results/, or None."""
    if parts[:1] == ["report"]:
        return None
    if parts[1:2] == ["data"] and parts[0] in STUDY.cohorts:
        return None
    if len(parts) < 5:
        return "the path is too short"
    try:
        STUDY.check_point(*parts[:3])
    except ValueError as error:
        return str(error)
    seed = parts[3]
    if not re.fullmatch(rf"seed-(?:{settings.SEED})", seed):
        return f"{seed!r} is not seed-<n> with n a whole number"
    return None


def cohorts_of_kind(kind):
    """A wildcard pattern for the cohorts of one kind (matching nothing if there are none)."""
    names = [name for name, cohort in STUDY.cohorts.items() if cohort.kind == kind]
    return "|".join(names) or "(?!)"


def is_bids(cohort):
    """Whether a cohort lies on disk as BIDS already, outside results/."""
    return STUDY.cohorts[cohort].kind == "bids"


def cohort_root(wildcards):
    """The root of a cohort's BIDS data set."""
    if is_bids(wildcards.cohort):
        return STUDY.cohorts[wildcards.cohort].path
    return f"results/{wildcards.cohort}/data/bids"


def cohort_files(wildcards):
    """What a rule that reads a cohort's scans depends on."""
    root = Path(cohort_root(wildcards))
    if not is_bids(wildcards.cohort):
        return [str(root)]
    found = [path for suffix in ("nii", "nii.gz") for path in root.rglob(f"sub-*.{suffix}")]
    return sorted(map(str, [*found, *root.glob("participants.tsv")]))


def cohort_settings(wildcards):
    """How to read a cohort, as JSON of a config.BidsCohort."""
    return STUDY.cohorts[wildcards.cohort].as_bids(cohort_root(wildcards)).model_dump_json()


def region_of(cohort):
    """The cohort's `region` setting."""
    return STUDY.cohorts[cohort].as_bids("").region


def tests_of(cohort):
    """The cohorts to test on when `cohort` is the private one, which comes first."""
    return [cohort, *(name for name in (STUDY.cohort, *STUDY.external) if name != cohort)]


def only(cohort):
    """Wildcards that name only a cohort."""
    return SimpleNamespace(cohort=cohort)


def cohort_json(wildcards):
    """The cohort as the configuration has it, as JSON."""
    return STUDY.cohorts[wildcards.cohort].model_dump_json()


def seed_for(*stage):
    """A function of wildcards that derives a seed from the study's seed and the result's path."""

    def derive(wildcards):
        return derive_seed(STUDY.seed, *map(str, wildcards), *stage)

    return derive


def points():
    """Every point that the study asks for, as formatted point folders."""
    return [
        POINT.format(
            cohort=STUDY.cohort, generator=entry.generator, privacy=privacy, seed=seed
        )
        for entry in STUDY.points
        for privacy in entry.privacy
        for seed in entry.seeds
    ]
