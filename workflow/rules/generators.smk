# From public phantoms and private patches to a generator and its privacy statement.
# INPUTS   results/{cohort}/data/patches.npy (nothing private for generators that need none)
# OUTPUTS  {start}/: start.safetensors, history.jsonl
#          {point}/generator/: weights.safetensors, privacy.json, history.jsonl
#          state/ beside them holds checkpoints while training, undeclared: it must survive a
#          killed job


rule train_start:
    """Train on public phantoms what every privacy level then goes on from."""
    input:
        # Order only: a faulty cohort, private or external, stops the study before any training.
        checked=ancient(test_manifests),
    output:
        weights=f"{START}/start.safetensors",
        history=f"{START}/history.jsonl",
    log:
        "logs/{cohort}/{generator}/public/seed-{seed}/train_start.log",
    benchmark:
        f"{START}/benchmark.tsv"
    wildcard_constraints:
        generator=STARTED,
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="3d",
        gpu=generator_gpus,
    params:
        task=start_task,
        folder=subpath(output.weights, parent=True),
        code=generator_code("train_start.py"),
    script:
        "../scripts/train_start.py"


rule train_generator:
    """Train one generator, resuming from its checkpoint if there is one."""
    input:
        patches=training_patches,
        start=public_start,
        checked=ancient(test_manifests),  # order only, as above
    output:
        weights=f"{POINT}/generator/weights.safetensors",
        privacy=f"{POINT}/generator/privacy.json",
        history=f"{POINT}/generator/history.jsonl",
    log:
        "logs/{cohort}/{generator}/{privacy}/seed-{seed}/train_generator.log",
    benchmark:
        f"{POINT}/generator/benchmark.tsv"
    conda:
        "../envs/veil.yaml"
    resources:
        mem="8GB",
        runtime="3d",
        gpu=generator_gpus,
    params:
        task=generator_task,
        folder=subpath(output.weights, parent=True),
        code=generator_code("train_generator.py"),
    script:
        "../scripts/train_generator.py"
