"""The files in deploy/, as far as they can be tried without a cluster."""

import json
import re
import shlex
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


def test_ray_up_takes_its_config():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
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


def commands():
    for file in (*DEPLOY.glob("*.yaml"), ROOT / "docs" / "clusters.md"):
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
