"""The files in deploy/, as far as they can be tried without a cluster."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import typer
import yaml

from kdray.cli.arguments import with_flags
from kdray.cli.main import app
from kdray.config.load import load_config
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("file", ["cluster.yaml", "local.yaml"])
def test_ray_up_takes_its_config(file):
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((DEPLOY / file).read_text())
    jsonschema.validate(config, schema)
    assert config.get("head_node_type") in config.get("available_node_types", [None])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 8}, schema)


def test_the_manifest_is_a_rayjob():
    """Valid by the operator's own schema, too, when it was written: KubeRay at feeaf72, August 2026. Here what that
    demands, and what it cannot know."""
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() >= {"groupName", "minReplicas", "maxReplicas", "template"}
    pods = [cluster["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]} and mounts["shared"] == "/shared"
        assert container["resources"]["requests"] == container["resources"]["limits"]
    (image,) = {pod["containers"][0]["image"] for pod in pods}
    assert f":{cluster['rayVersion']}-" in (DEPLOY / "Dockerfile").read_text()
    numbers = f"--num-workers {workers['minReplicas']}..{workers['maxReplicas']} "
    assert numbers in job["spec"]["entrypoint"]
    for file in (DEPLOY / "cluster.yaml", DEPLOY / "Dockerfile", ROOT / "docs" / "clusters.md"):
        assert image in file.read_text(), file


STUBS = {
    "hostname": "echo n1",
    "sleep": "exec /bin/sleep 0.1",
    "srun": 'while [ "$1" != sh ]; do shift; done; for n in 0 1 2 3; do SLURM_PROCID=$n "$@"; done',
    "ray": """case $1 in
        start) echo "$@" "$RAY_TMPDIR" "$RAY_AUTH_MODE" >> started ;;
        status) [ -e started ] && sed 's/.*/ 1 node_x/' started ;;
    esac""",
    "kdray": 'echo $$ "$RAY_ADDRESS" "$@"; exit 7',
}
"""What the Slurm script calls, on four nodes."""


@pytest.mark.parametrize(
    "there, command", [(False, "train configs/crd.yaml --num-workers 16 --name crd"), (True, "resume crd")]
)
def test_the_slurm_script(tmp_path, there, command):
    """Started for real when it was written, with Slurm 22.05. Here what it does is seen without Slurm and Ray."""
    script = DEPLOY / "slurm.sh"
    sizes = dict(re.findall(r"--(nodes|gpus-per-node|cpus-per-task)=(\d+)", script.read_text()))
    assert int(sizes["nodes"]) * int(sizes["gpus-per-node"]) == 16
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if there:
        (tmp_path / "runs" / "crd").mkdir(parents=True)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": sizes["nodes"], "SLURM_CPUS_PER_TASK": sizes["cpus-per-task"]}
    job = subprocess.Popen(
        ["bash", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm},
        stdout=subprocess.PIPE,
        text=True,
    )
    told, _ = job.communicate(timeout=60)
    assert told.strip() == f"{job.pid} n1:23456 {command}"  # in the script's place, so that signals reach it
    assert job.returncode == 7
    also = "--num-cpus=32 --block /tmp/ray-123456 token"
    nodes = [f"start --head --port=23456 {also}", *3 * [f"start --address=n1:23456 {also}"]]
    assert (tmp_path / "started").read_text().splitlines() == nodes


def commands():
    for file in (*DEPLOY.glob("*.yaml"), *DEPLOY.glob("*.sh"), ROOT / "docs" / "clusters.md"):
        for command in re.findall(r"kdray (?:train|resume) [^\n;'#]*", file.read_text()):
            if "CONFIG" not in command:
                yield command


@pytest.mark.parametrize("command", sorted(set(map(str.strip, commands()))))
def test_the_commands_are_understood(command):
    verb, *words = shlex.split(command.removeprefix("kdray "))
    main = typer.main.get_command(app)
    context = main.get_command(main.context_class(main), verb).make_context(verb, words)  # raises where it is not
    if verb == "train":
        flags = {key: context.params[key] for key in ("num_workers", "name")}
        load_config(ROOT / context.params["config"], with_flags(context.params["overrides"], **flags))
