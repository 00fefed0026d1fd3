# From private patches to a generator and its privacy statement.
# INPUTS   results/{cohort}/data/patches.npy (nothing at all for generators that need none)
# OUTPUTS  {point}/generator/: weights.safetensors, privacy.json, history.jsonl
#          {point}/generator/state/ holds checkpoints while training, undeclared: it must
#          survive a killed job


def generator_kind(wildcards):
    """The module behind a generator's name."""
    return STUDY.generators[wildcards.generator].kind


def training_patches(wildcards):
    """The private patches, for generators that learn from them."""
    return [f"{DATA}/patches.npy"] if generator_kind(wildcards) == "wgan" else []


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
    """GPUs that training asks for: none for generators that learn nothing."""
    return int(generator_kind(wildcards) == "wgan")


rule train_generator:
    """Train one generator, resuming from its checkpoint if there is one."""
    input:
        patches=training_patches,
    output:
        weights=f"{POINT}/generator/weights.safetensors",
        privacy=f"{POINT}/generator/privacy.json",
        history=f"{POINT}/generator/history.jsonl",
    params:
        task=generator_task,
        folder=subpath(output.weights, parent=True),
        code=generator_code("train_generator.py"),
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/train_generator.log",
    benchmark:
        f"{POINT}/generator/benchmark.tsv"
    resources:
        mem="8GB",
        runtime="3d",
        gpu=generator_gpus,
    conda:
        "../envs/veil.yaml"
    script:
        "../scripts/train_generator.py"
