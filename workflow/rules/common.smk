# What the rules share: the validated study, the grammar of paths, and parameters.
import json
import re
from functools import lru_cache
from types import SimpleNamespace

from snakemake.exceptions import WorkflowError

from veil import config as settings
from veil.provenance import code_hash, derive_seed

try:
    for place in workflow.configfiles:
        settings.check_file(Path(place))
    for place in workflow.overwrite_configfiles:
        settings.keep_whole(config, Path(place))
    STUDY = settings.load(config)
except settings.ConfigError as error:
    raise WorkflowError(str(error)) from None

POINT = "results/{cohort}/{generator}/{privacy}/seed-{seed}"
RELEASE = "results/{cohort}/release/{generator}/{privacy}/seed-{seed}"
DATA = "results/{cohort}/data"
START = "results/{cohort}/{generator}/public/seed-{seed}"
CELLS = STUDY.segmentation.grid.cells()
SEGMENTATION = STUDY.segmentation.model_dump_json(exclude={"grid", "tolerance"})
POINT_FILES = (
    r"generator/(weights\.safetensors|privacy\.json|history\.jsonl|benchmark\.tsv)"
    r"|synthetic/pairs\.npy|scores/(segmentation\.tsv|similarity\.tsv|audit\.tsv"
    r"|membership\.tsv|memorisation\.tsv|closest\.npy|errors|benchmark\.tsv)"
    r"|segmenters/(chosen\.json|[^/]+/(weights\.safetensors|history\.jsonl|validation\.tsv))"
)
START_FILES = r"start\.safetensors|history\.jsonl|benchmark\.tsv"
DATA_FILES = r"bids|manifest\.tsv|qc\.tsv|qc\.png|(?:test_|validation_)?patches\.(?:npy|tsv)|threshold\.tsv"
# What a wildcard may be, given what stands around it in the path: only cohorts with training
# patients have points, and only generators that can be private have privacy levels.
TRAINED = [
    name
    for name, cohort in STUDY.cohorts.items()
    if cohort.splits.train and cohort.splits.validation
]
COHORT = "|".join([*TRAINED, *(rf"{name}(?=/data/)" for name in STUDY.cohorts)])
GENERATOR = "|".join(STUDY.generators)
STARTED = "|".join(filter(STUDY.starts, STUDY.generators)) or "(?!)"
NEVER_PRIVATE = "".join(
    rf"(?<!/{name}/)"
    for name, generator in STUDY.generators.items()
    if generator.kind in settings.UNTAUGHT
)
PRIVACY = rf"none|{NEVER_PRIVATE}(?:{settings.PRIVACY})"
KNOWN_PATHS = (
    rf"report/.*|(?:{COHORT})/data/(?:{DATA_FILES})"
    rf"|(?:{COHORT})/(?:{STARTED})/public/seed-(?:{settings.SEED})/(?:{START_FILES})"
    rf"|(?:{COHORT})/release/(?:{GENERATOR})/(?:{PRIVACY})/seed-(?:{settings.SEED})/SHA256SUMS"
    rf"|(?:{COHORT})/(?:{GENERATOR})/(?:{PRIVACY})/seed-(?:{settings.SEED})/(?:{POINT_FILES})"
)
GRAMMAR = f"""the grammar of a result's path:
  results/<cohort>/<generator>/<privacy>/seed-<n>/<file>
    cohort     {", ".join(STUDY.cohorts)}
    generator  {", ".join(STUDY.generators)}
    privacy    none | sigma-X | eps-X | patient-eps-X, X in its shortest decimal spelling (sigma-0.65)
    file       generator/weights.safetensors | generator/privacy.json | synthetic/pairs.npy |
               segmenters/chosen.json | scores/segmentation.tsv | scores/similarity.tsv |
               scores/audit.tsv | scores/membership.tsv | scores/memorisation.tsv
  results/<cohort>/data/<file>
    file       manifest.tsv | qc.tsv | qc.png | patches.npy | test_patches.npy | threshold.tsv
  results/<cohort>/<generator>/public/seed-<n>/start.safetensors
    generator  {", ".join(filter(STUDY.starts, STUDY.generators)) or "none of this study"}
  results/<cohort>/release/<generator>/<privacy>/seed-<n>/SHA256SUMS
  results/report/index.html"""


wildcard_constraints:
    cohort=COHORT,
    generator=GENERATOR,
    privacy=PRIVACY,
    seed=settings.SEED,
    cell=r"lr-[^/]+_dropout-[^/]+_augment-(?:on|off)",


def problem_of(parts):
    """What is wrong with the parts of a path below results/, or None."""
    if parts[1:2] == ["data"] and parts[0] in STUDY.cohorts:
        return unknown_file("/".join(parts[2:]), DATA_FILES)
    if parts[1:2] == ["release"] and parts[5:] == ["SHA256SUMS"]:
        return problem_of([parts[0], *parts[2:5], "generator/privacy.json"])
    if len(parts) < 5:
        return "the path is too short"
    start = parts[2] == "public"
    try:
        STUDY.check_point(*parts[:2], "none" if start else parts[2])
    except ValueError as error:
        return str(error)
    if not re.fullmatch(rf"seed-(?:{settings.SEED})", parts[3]):
        return f"{parts[3]!r} is not seed-<n> with n a whole number"
    if start and not STUDY.starts(parts[1]):
        return f"generator {parts[1]!r} has no public start"
    return unknown_file("/".join(parts[4:]), START_FILES if start else POINT_FILES)


def unknown_file(name, pattern):
    """What is wrong with the last part of a path, or None."""
    return None if re.fullmatch(pattern, name) else f"no rule makes {name!r}"


def refuse(wildcards):
    """Raise, saying what is wrong with the path and what the grammar is."""
    problem = problem_of(list(Path(wildcards.malformed).parts))
    raise WorkflowError(f"results/{wildcards.malformed}: {problem}; {GRAMMAR}")


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
    if not is_bids(wildcards.cohort):
        return [cohort_root(wildcards)]
    return scans_below(Path(cohort_root(wildcards)))


@lru_cache  # asked by every job
def scans_below(root):
    """The scans of a BIDS cohort, and its table."""
    found = [
        path for suffix in ("nii", "nii.gz") for path in root.rglob(f"sub-*.{suffix}")
    ]
    names = sorted(map(str, [*found, *root.glob("participants.tsv")]))
    for name in names:
        # Snakemake notes its inputs as text.
        if name != name.encode(errors="replace").decode():
            raise WorkflowError(
                f"{ascii(name)}: name is not UTF-8; allowed: a name that is"
            )
    return names


def cohort_settings(wildcards):
    """How to read a cohort, as JSON of a config.BidsCohort."""
    return (
        STUDY.cohorts[wildcards.cohort]
        .as_bids(cohort_root(wildcards))
        .model_dump_json()
    )


def region_of(cohort):
    """The cohort's `region` setting."""
    return STUDY.cohorts[cohort].as_bids(".").region


def tests_of(cohort):
    """The cohorts to test on when `cohort` is the private one, which comes first."""
    return [
        cohort,
        *(name for name in (STUDY.cohort, *STUDY.external) if name != cohort),
    ]


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


def private_points():
    """Those of them that claim a guarantee, and so are audited."""
    return [point for point in points() if Path(point).parent.name != "none"]


def names_of_other_releases(wildcards):
    """The points that the configuration releases on the same cohort besides this one."""
    mine = f"{wildcards.generator}/{wildcards.privacy}/seed-{wildcards.seed}"
    named = STUDY.release.points if wildcards.cohort == STUDY.cohort else ()
    return [point for point in named if point != mine]


def other_releases(wildcards):
    """Their privacy statements, to be added up."""
    return [
        f"results/{wildcards.cohort}/{point}/generator/privacy.json"
        for point in names_of_other_releases(wildcards)
    ]


def releases(wildcards):
    """The bundles that the configuration names."""
    if not STUDY.release.points:
        raise WorkflowError(
            "release.points is empty; allowed: points as generator/privacy/seed-n, "
            "as diffusion/eps-10/seed-0"
        )
    return [
        f"results/{STUDY.cohort}/release/{point}/SHA256SUMS"
        for point in STUDY.release.points
    ]


def audit_of_point(wildcards):
    """The attack on a point's mechanism, for points that have one."""
    return [f"{POINT}/scores/audit.tsv"] if wildcards.privacy != "none" else []


def is_phantom(wildcards):
    """Whether a cohort's patients are phantoms, and nobody's."""
    return STUDY.cohorts[wildcards.cohort].kind == "phantom"


def test_roots(wildcards):
    """Of each test cohort the root, whether it is one of phantoms, and the table that it was
    imported by, as JSON."""
    return json.dumps(
        [
            (cohort_root(c), is_phantom(c), import_table(c) if is_import(c) else None)
            for c in map(only, tests_of(wildcards.cohort))
        ]
    )


def is_import(wildcards):
    """Whether a cohort is brought into BIDS by a table."""
    return STUDY.cohorts[wildcards.cohort].kind == "import"


def import_table(wildcards):
    """The table that lists a cohort's files."""
    return STUDY.cohorts[wildcards.cohort].path


def generator_kind(wildcards):
    """The module behind a generator's name."""
    return STUDY.generators[wildcards.generator].kind


def training_patches(wildcards):
    """The private patches and whose they are, for generators that learn from them."""
    learns = generator_kind(wildcards) not in settings.UNTAUGHT
    return [f"{DATA}/patches.npy", f"{DATA}/patches.tsv"] if learns else []


def public_start(wildcards):
    """What training goes on from, for generators that learn from phantoms first."""
    return [f"{START}/start.safetensors"] if STUDY.starts(wildcards.generator) else []


def start_task(wildcards):
    """What the public stage is asked, as JSON of a config.Task."""
    seed = seed_for("start")(wildcards)
    return STUDY.start_task(wildcards.generator, seed).model_dump_json()


def generator_task(wildcards):
    """What the generator is asked to be, as JSON of a config.Task."""
    seed = seed_for("generator")(wildcards)
    return STUDY.task(*wildcards[:3], seed).model_dump_json()


def generator_code(script):
    """A function of wildcards: the hash of a script's code and of the generator it will use."""

    def code(wildcards):
        return code_hash(script, f"veil.generators.{generator_kind(wildcards)}")

    return code


def generator_gpus(wildcards):
    """GPUs that training asks for: none for generators that train no network."""
    return int(generator_kind(wildcards) not in (*settings.UNTAUGHT, "fitted"))


def handed_through(wildcards):
    """The real patches, for the generator that hands them through, and for no other."""
    return [f"{DATA}/patches.npy"] if generator_kind(wildcards) == "real" else []


def test_scans(wildcards):
    """The scans of all test cohorts."""
    return [
        f for cohort in tests_of(wildcards.cohort) for f in cohort_files(only(cohort))
    ]


def test_manifests(wildcards):
    """Manifests of all test cohorts, the private one first."""
    return [
        f"results/{cohort}/data/manifest.tsv" for cohort in tests_of(wildcards.cohort)
    ]


def test_settings(wildcards):
    """Names, roots and settings of the test cohorts, as JSON of evaluation.Tests."""
    return json.dumps(
        [
            {"name": c, "root": cohort_root(only(c)), "region": region_of(c)}
            for c in tests_of(wildcards.cohort)
        ]
    )


def figure_titles():
    """The figures that this study can fill: file stem, and the question it answers."""
    titles = {
        "frontier": "What does each epsilon buy above what is free?",
        "figure-2": "What do the synthetic pairs look like?",
        "figure-3": "How does quality fall as privacy rises?",
        "figure-4": "Where are the errors?",
    }
    titles |= {
        "figure-6": "How far are synthetic pairs from real ones?",
        "figure-8": "Do the images differ from each other?",
        "figure-9": "Do synthetic images lie where real ones do?",
    }
    for cohort in STUDY.external:
        titles[f"figure-5-{cohort}"] = f"Does it carry over to {cohort}?"
    if any(level != "none" for entry in STUDY.points for level in entry.privacy):
        titles["figure-7"] = "What does the best private model get right?"
        titles["closest"] = "Which synthetic pairs are most like a patient's?"
    return titles


def command():
    """The command that makes a result of this study, but for the result's path."""
    here = Path.cwd()
    files = [
        path.relative_to(here) if path.is_relative_to(here) else path
        for path in map(Path, workflow.overwrite_configfiles)
    ]
    laid_over = f" --configfile {' '.join(map(str, files))} --" if files else ""
    return f"snakemake --cores all{laid_over}"


def caption(figure):
    """The caption file of a figure."""
    name = "figure-5" if figure.startswith("figure-5") else figure
    return workflow.source_path(f"../report/{name}.rst")


def caption_texts():
    """The captions as plain text, in the order of the figures."""
    return [" ".join(Path(caption(figure)).read_text().split()) for figure in FIGURES]
