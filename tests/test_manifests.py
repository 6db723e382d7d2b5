"""What is in cluster/ is valid for those who read it: Ray, KubeRay's schema, shell and Docker."""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distconv.version import VERSION

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CRD = ROOT.parent / "shared" / "data" / "kuberay" / "ray.io_rayjobs.yaml.gz"
BIN = Path(sys.executable).parent


def close(schema: Any) -> Any:
    """Make a schema refuse what it does not name, and take Kubernetes' integers that may be strings."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def validator() -> jsonschema.protocols.Validator:
    """Give what holds a RayJob against KubeRay's schema."""
    if not CRD.exists():
        pytest.skip(f"{CRD}: KubeRay's schema is not here")
    with gzip.open(CRD) as file:
        # The schema is a million characters: libyaml reads it in a second.
        definition = yaml.load(file, yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    found = close(version["schema"]["openAPIV3Schema"])
    found["properties"]["metadata"] = {"type": "object"}
    return jsonschema.validators.validator_for(found)(found)


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-s3.yaml"])
def test_a_rayjob_is_one_that_kuberay_takes(validator: jsonschema.protocols.Validator, name: str) -> None:
    validator.validate(yaml.safe_load((CLUSTER / name).read_text()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 2),
        (("spec", "backoffLimit"), "two"),
        (("spec", "rayClusterSpec", "gpus"), 1),
    ],
)
def test_the_schema_finds_slips(
    validator: jsonschema.protocols.Validator, path: tuple[str, ...], value: object
) -> None:
    manifest = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(manifest)


def test_all_pods_of_the_rayjob_mount_the_claim_and_run_one_image() -> None:
    spec = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert [image.rpartition(":")[2] for image in images] == [VERSION]
    assert len({str(pod["volumes"]) for pod in pods}) == 1
    mounts = {mount["mountPath"] for pod in pods for c in pod["containers"] for mount in c["volumeMounts"]}
    assert mounts == {"/models"}


def test_all_pods_of_the_rayjob_with_buckets_have_one_identity_and_no_claim() -> None:
    cluster = yaml.safe_load((CLUSTER / "rayjob-s3.yaml").read_text())["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert {pod["serviceAccountName"] for pod in pods} == {"distconv"}
    assert not any("volumes" in pod for pod in pods)
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert [image.rpartition(":")[2] for image in images] == [VERSION]


def test_rays_launcher_takes_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    validate_config(config)
    with pytest.raises(Exception, match="head_node_typo"):
        validate_config(config | {"head_node_typo": "head"})


def test_the_slurm_script_has_no_slips() -> None:
    script = str(CLUSTER / "slurm.sh")
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run([BIN / "shellcheck", script], check=True)


def test_the_dockerfile_has_no_slips() -> None:
    subprocess.run([BIN / "hadolint", CLUSTER / "Dockerfile"], check=True)


def test_the_dockerfile_copies_what_is_there() -> None:
    for line in (CLUSTER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, _target = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources)


@pytest.mark.slow
def test_the_slurm_script_runs_its_command_and_gives_its_exit_code(tmp_path: Path) -> None:
    """With stand-ins for Slurm's own commands that run everything on this machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    srun = 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
    for name, body in {
        "srun": srun, "scontrol": "echo here\n", "hostname": "echo 127.0.0.1\n",
        "distconv": 'echo "$@"; exit 7\n',
    }.items():  # fmt: skip
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (tools / name).chmod(0o755)
    ray = '#!/usr/bin/env bash\necho "$@" >> "$CALLS"\n[ "$1" = status ] && echo " 1 node_x"\nexit 0\n'
    (tools / "ray").write_text(ray)
    (tools / "ray").chmod(0o755)
    environment = os.environ | {
        "DISTCONV_BIN": str(tools), "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "5", "CALLS": str(tmp_path / "calls"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "IN", "OUT"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == "convert IN OUT --address 127.0.0.1:20005"
    assert "start --head --block --node-ip-address=127.0.0.1 --port=20005" in (tmp_path / "calls").read_text()
