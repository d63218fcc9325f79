"""The manifests for Kubernetes: what Kubernetes' and KubeRay's schemas say of them, and what they promise."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from importlib.resources import files
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.scripts.scripts import start
from ray.serve.config import AutoscalingConfig
from referencing import Registry, Resource
from tests.deployments.conftest import ROOT
from tests.deployments.misspelling import misspelt

from rayrec import __version__
from rayrec.cluster import SETTINGS
from rayrec.data.variables import NAME
from rayrec.recipe_files import packaged_recipes
from rayrec.serving.deployment import GRACEFUL_SECONDS

KUBERNETES = "1.32"
"""The oldest that is checked; what it knows, later ones do."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
SCHEMA = ROOT / "tests/deployments/kuberay.schema.yaml"
DOCUMENTS = {
    f"{path.name}:{document['kind']}": document
    for path in sorted(ROOT.glob("deployments/kuberay/*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
CLUSTERS = {name: document for name, document in DOCUMENTS.items() if document["apiVersion"] == "ray.io/v1"}
SETTINGS_MAP = DOCUMENTS["configuration.yaml:ConfigMap"]


@cache
def kuberay() -> Draft202012Validator:
    """KubeRay's fields, and below them Kubernetes' own, without keys that they do not know."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    return Draft202012Validator(schema, registry=Resource.from_contents(definitions) @ Registry())


def is_valid(document: Any) -> bool:
    if document.get("apiVersion") == "ray.io/v1":
        return bool(kuberay().is_valid(document))
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except (KeyError, kubernetes_validate.SchemaNotFoundError, kubernetes_validate.ValidationError):
        return False
    return True


def cluster(document: Any) -> Any:
    """The specification of the Ray cluster in a RayCluster, RayJob or RayService."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(document: Any) -> list[Any]:
    return [cluster(document)["headGroupSpec"], *cluster(document)["workerGroupSpecs"]]


def templates(document: Any) -> list[Any]:
    """Of all pods: the nodes', and that of a job's submitter."""
    submitter = document["spec"].get("submitterPodTemplate")
    return [group["template"] for group in groups(document)] + ([submitter] if submitter else [])


def container(template: Any) -> Any:
    (only,) = template["spec"]["containers"]
    return only


def nodes() -> list[Any]:
    return [container(group["template"]) for document in CLUSTERS.values() for group in groups(document)]


def secrets(node: Any) -> set[tuple[str, str]]:
    """The (name, key) of every Secret that a document refers to."""
    if isinstance(node, list):
        return set().union(*map(secrets, node))
    if not isinstance(node, dict):
        return set()
    own = {(node["secretKeyRef"]["name"], node["secretKeyRef"]["key"])} if "secretKeyRef" in node else set()
    return own.union(*map(secrets, node.values()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_manifest_passes_and_any_key_misspelt_does_not(name: str) -> None:
    if DOCUMENTS[name]["apiVersion"] == "ray.io/v1":
        kuberay().validate(DOCUMENTS[name])
    else:
        kubernetes_validate.validate(DOCUMENTS[name], KUBERNETES, strict=True)
    assert [where for where, changed in misspelt(DOCUMENTS[name]) if is_valid(changed)] == []


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_nodes_are_started_with_are_options_of_ray_start(name: str) -> None:
    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    for group in groups(CLUSTERS[name]):
        assert set(group["rayStartParams"]) <= known
    assert cluster(CLUSTERS[name])["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_endpoint_is_that_of_production_yaml() -> None:
    service = CLUSTERS["rayservice.yaml:RayService"]
    production = yaml.safe_load((ROOT / "deployments/production.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == production


def test_there_is_room_for_all_replicas_also_while_others_take_their_place() -> None:
    service = CLUSTERS["rayservice.yaml:RayService"]
    (deployment,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"]
    (workers,) = cluster(service)["workerGroupSpecs"]
    scaling = AutoscalingConfig.model_validate(deployment["autoscaling_config"])
    on_a_node = deployment["max_replicas_per_node"]
    assert on_a_node * workers["minReplicas"] >= scaling.min_replicas
    most = scaling.max_replicas * (1 + deployment["max_surge_percent"] / 100)
    assert on_a_node * workers["maxReplicas"] >= most
    # HAProxy and Ray need some, too.
    cpus = float(container(workers["template"])["resources"]["limits"]["cpu"])
    assert on_a_node * deployment["ray_actor_options"]["num_cpus"] < cpus


def test_a_job_runs_a_recipe_and_ends_its_cluster() -> None:
    spec = CLUSTERS["rayjob.yaml:RayJob"]["spec"]
    command, stage, recipe = shlex.split(spec["entrypoint"])
    assert (command, stage) == ("rayrec", "run")
    assert recipe in packaged_recipes()
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_asks_for_the_token_and_scales_by_the_second_autoscaler(name: str) -> None:
    spec = cluster(CLUSTERS[name])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    # Without `rayVersion` KubeRay refuses a token.
    assert f"ray=={spec['rayVersion']}" in pins
    assert spec["authOptions"] == {"mode": "token", "secretName": "rayrec-token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    # KubeRay refuses both with this autoscaler, and with its own options.
    for group in groups(CLUSTERS[name]):
        assert "restartPolicy" not in group["template"]["spec"]
        names = {variable["name"] for variable in container(group["template"])["env"]}
        assert not names & {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_TOKEN"}


def test_clusters_that_stay_outlive_their_head() -> None:
    for name in ("raycluster.yaml:RayCluster", "rayservice.yaml:RayService"):
        options = cluster(CLUSTERS[name])["gcsFaultToleranceOptions"]
        assert secrets(options) == {("rayrec-redis", "password")}
        # Two clusters of a RayService live side by side while one takes the other's place.
        assert "externalStorageNamespace" not in options


def test_gpu_nodes_start_from_none() -> None:
    for name in ("raycluster.yaml:RayCluster", "rayjob.yaml:RayJob"):
        (gpu,) = [group for group in cluster(CLUSTERS[name])["workerGroupSpecs"] if group["groupName"] == "gpu"]
        assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0) and gpu["maxReplicas"] > 0
        assert container(gpu["template"])["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container(gpu["template"])["image"].endswith("-gpu")


def test_nodes_have_what_rayrec_start_sets() -> None:
    given = SETTINGS_MAP["data"]
    # `rayrec start` has one node; here others take over from one that ends.
    assert {name: given.get(name) for name in SETTINGS if name != DRAIN} == {
        name: value for name, value in SETTINGS.items() if name != DRAIN
    }
    assert given["RAYREC_STORAGE"].startswith("s3://")
    assert given["MLFLOW_TRACKING_URI"].startswith("http://")
    for node in nodes():
        assert node["envFrom"] == [{"configMapRef": {"name": SETTINGS_MAP["metadata"]["name"]}}]


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_pod_has_the_time_to_end_in_order(name: str) -> None:
    drain = float(SETTINGS_MAP["data"][DRAIN])
    assert drain > GRACEFUL_SECONDS
    for group in groups(CLUSTERS[name]):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain + GRACEFUL_SECONDS


def test_every_variable_in_the_files_is_in_the_nodes_environment() -> None:
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("deployments/**/*.yaml")]
    used = {name for text in texts for line in text.splitlines() for name in NAME.findall(line.partition("#")[0])}
    assert used == {"DATABASE_USER", "DATABASE_PASSWORD"}
    for node in nodes():
        assert used <= {variable["name"] for variable in node["env"]} | set(SETTINGS_MAP["data"])


def test_the_secrets_are_those_that_the_documentation_has_made() -> None:
    needed = set().union(*map(secrets, CLUSTERS.values()))
    needed |= {(cluster(document)["authOptions"]["secretName"], "auth_token") for document in CLUSTERS.values()}
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8").replace("\\\n", " ")
    made = {
        (name, key)
        for name, keys in re.findall(r"kubectl create secret generic (\S+) (.*)", text)
        for key in re.findall(r"--from-(?:literal|file)=([\w-]+)=", keys)
    }
    assert made == needed


@pytest.mark.parametrize("name", CLUSTERS)
def test_pods_are_bounded_and_may_do_nothing_special(name: str) -> None:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for template in templates(CLUSTERS[name]):
        identity = template["spec"]["securityContext"]
        assert identity["runAsNonRoot"] and identity["runAsUser"] > 0
        assert identity["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(template)["securityContext"] == restricted
        resources = container(template)["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert "cpu" in resources["requests"]
        assert f"/rayrec:{__version__}" in container(template)["image"]
    autoscaler = cluster(CLUSTERS[name])["autoscalerOptions"]
    assert autoscaler["securityContext"] == restricted
    assert autoscaler["resources"]["requests"]["memory"] == autoscaler["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_nodes_are_asked_for_their_health_where_ray_asks_for_no_token(name: str) -> None:
    public = {("/api/gcs_healthz", 8265), ("/api/local_raylet_healthz", 52365), ("/-/healthz", 8000)}
    for group in groups(CLUSTERS[name]):
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container(group["template"])[probe]["httpGet"]
            assert (asked["path"], asked["port"]) in public


def test_only_rayrecs_pods_the_operator_and_who_is_let_reach_them() -> None:
    policy = DOCUMENTS["configuration.yaml:NetworkPolicy"]["spec"]
    selected = policy["podSelector"]["matchLabels"]
    for document in CLUSTERS.values():
        for template in templates(document):
            assert selected.items() <= template["metadata"]["labels"].items()
    among_themselves, *others = policy["ingress"]
    assert among_themselves == {"from": [{"podSelector": {"matchLabels": selected}}]}
    # Whoever reaches the dashboard runs code.
    assert [rule["from"] for rule in others if {"port": 8265} in rule["ports"]] == [
        [
            {
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
            }
        ]
    ]
