"""The study as a graph of jobs; `rdl book` calls this.

    snakemake -n --config profile=mini     what would run, and why
    snakemake --cores all                  run it and build the book
    snakemake study --cores all            students and rankings, no pages

What exists is enumerated once, by rdl_study.graph, into a plan: jobs on other machines read this
file again, and none of them has to import torch to learn what the nodes are.
"""
import json
import subprocess
import sys
from pathlib import Path

node = f"{sys.executable} -m rdl_study"
if "plan" not in config:
    asked = f"{node} plan --profile {config.get('profile', 'mini')} --threads {config.get('threads', 0)}"
    config["plan"] = subprocess.run(
        asked.split(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
plan = json.loads(Path(config["plan"]).read_text())
nodes = {one["name"]: one for one in plan["nodes"]}
folder, threads_of_all = plan["folder"], plan["threads"]
mem_mb, minutes = {"smoke": (6000, 60), "subset": (16000, 240), "full": (64000, 2880)}[plan["scale"]]
# On one machine two jobs side by side keep the cores busy, as one computes while the other imports.
side_by_side = 2 if int(config.get("memory_mb", 0)) >= 2 * mem_mb else 1
# Late digits of a result depend on the number of threads. So it is the plan's in every process that
# computes, whatever the executor gives it; Snakemake would set the rule's, which only schedules.
fixed = " ".join(f"{library}_NUM_THREADS={threads_of_all}" for library in ("OMP", "MKL", "OPENBLAS"))
if side_by_side > 1:  # threads that spin while they wait hold up the other job's: 1.3 s a step, not .7
    fixed += " OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}"


def markers(*kinds):
    return [f"{folder}/{name}.json" for name, one in nodes.items() if one["kind"] in kinds]


def threads(wildcards):
    """What a job counts for when cores are dealt out: pages mostly wait, and one must run alone."""
    one = nodes[wildcards.name]
    if one["alone"]:
        return threads_of_all
    return 1 if one["kind"] in ("fetch", "page") else max(1, threads_of_all // side_by_side)


def needed(wildcards):
    return [f"{folder}/{name}.json" for name in nodes[wildcards.name]["needs"]]


localrules: book, study


rule book:
    message: "the book of profile {plan[profile]}"
    input: ancient(markers("fetch", "teach", "lists", "student", "page"))
    shell: "{fixed} {node} build --profile {plan[profile]}"


rule study:
    message: "students and rankings of profile {plan[profile]} are done"
    input: ancient(markers("fetch", "teach", "lists", "student"))


for kind in ("fetch", "teach", "lists", "student", "page"):

    rule:
        name: kind
        message: "{wildcards.name}: {params.what}"
        # Only whether a marker exists counts: its name changes with all that it depends on.
        input: ancient(needed)
        output: f"{folder}/{{name,{kind}-.*}}.json"
        log: f"{folder}/logs/{{name,{kind}-.*}}.log"
        params: what=lambda wildcards: nodes[wildcards.name]["what"]
        priority: 0 if kind == "page" else 1
        threads: threads
        resources:
            mem_mb=mem_mb,
            runtime=minutes,
            # pages ask for the same machine as students: "auto" precision must mean the same
            **({"gpu": int(config["gpu"])} if config.get("gpu") and kind != "fetch" else {}),
        shell: "{fixed} {node} run {wildcards.name} --profile {plan[profile]} 2>&1 | tee {log}"
