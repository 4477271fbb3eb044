"""What the page on machines hands out: manifests and scripts whose names, options and references fit together."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hooke import cli

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted((ROOT / "examples" / "kubernetes").glob("*.yaml"))

TEXT, NUMBER, TRUTH = str, int, bool
QUANTITY = r"\d+(\.\d+)?(m|[KMGT]i?)?"

_META = {"name": TEXT, "labels": {"*": TEXT}}
_KEYS = {"name": TEXT, "key": TEXT}
_CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "command": [TEXT],
    "args": [TEXT],
    "env": [{"name": TEXT, "value": TEXT, "valueFrom": {"secretKeyRef": _KEYS}}],
    "ports": [{"name": TEXT, "containerPort": NUMBER}],
    "readinessProbe": {"tcpSocket": {"port": TEXT}},
    "resources": {"requests": {"cpu": TEXT, "memory": TEXT}, "limits": {"cpu": TEXT, "memory": TEXT}},
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": TRUTH}],
}
_POD = {
    "metadata": _META,
    "spec": {
        "restartPolicy": TEXT,
        "terminationGracePeriodSeconds": NUMBER,
        "containers": [_CONTAINER],
        "volumes": [
            {
                "name": TEXT,
                "secret": {"secretName": TEXT},
                "persistentVolumeClaim": {"claimName": TEXT},
                "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
            }
        ],
    },
}
FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v1", "Service"): {"selector": {"*": TEXT}, "ports": [{"name": TEXT, "port": NUMBER, "targetPort": TEXT}]},
    ("v1", "PersistentVolumeClaim"): {"accessModes": [TEXT], "resources": {"requests": {"storage": TEXT}}},
    ("apps/v1", "Deployment"): {
        "replicas": NUMBER,
        "strategy": {"type": TEXT},
        "selector": {"matchLabels": {"*": TEXT}},
        "template": _POD,
    },
    ("batch/v1", "Job"): {
        "parallelism": NUMBER,
        "completions": NUMBER,
        "completionMode": TEXT,
        "backoffLimit": NUMBER,
        "template": _POD,
    },
}
"""Of the Kubernetes API reference: the fields that the manifests use, with their types."""


def wrong(value: Any, known: Any, place: str) -> Iterator[str]:
    """Where a value is not what the fields say."""
    if isinstance(known, dict) and isinstance(value, dict):
        for name, part in value.items():
            if name not in known and "*" not in known:
                yield f"{place}.{name}"
            else:
                yield from wrong(part, known.get(name, known.get("*")), f"{place}.{name}")
    elif isinstance(known, list) and isinstance(value, list):
        for index, part in enumerate(value):
            yield from wrong(part, known[0], f"{place}[{index}]")
    elif not (isinstance(known, type) and type(value) is known):
        yield f"{place}: {value!r}"


def objects() -> list[dict[str, Any]]:
    return [made for path in MANIFESTS for made in yaml.safe_load_all(path.read_text())]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (made for made in objects() if made["kind"] == kind and made["metadata"]["name"] == name)
    return found


def pods() -> list[dict[str, Any]]:
    return [made["spec"]["template"] for made in objects() if "template" in made["spec"]]


def options(command: str) -> set[str]:
    group = typer.main.get_command(cli.app)
    return {name for parameter in group.commands[command].params for name in parameter.opts}  # type: ignore[attr-defined]


def test_the_manifests_are_kubernetes_objects() -> None:
    assert [path.name for path in MANIFESTS] == ["center.yaml", "workers.yaml"] and len(objects()) == 4
    for made in objects():
        assert set(made) == {"apiVersion", "kind", "metadata", "spec"}
        known = FIELDS[made["apiVersion"], made["kind"]]
        assert list(wrong(made["metadata"], _META, "metadata")) == []
        assert list(wrong(made["spec"], known, made["kind"])) == []
    assert list(wrong({"replica": 1}, FIELDS["apps/v1", "Deployment"], "x")) == ["x.replica"]  # the test can tell
    assert list(wrong({"replicas": "1"}, FIELDS["apps/v1", "Deployment"], "x")) == ["x.replicas: '1'"]


def test_their_quantities_can_be_read() -> None:
    asked = [named("PersistentVolumeClaim", "center")["spec"]["resources"]["requests"]]
    for pod in pods():
        asked += [part for one in pod["spec"]["containers"] for part in one["resources"].values()]
        asked += [{"size": one["emptyDir"]["sizeLimit"]} for one in pod["spec"]["volumes"] if "emptyDir" in one]
    assert all(re.fullmatch(QUANTITY, value) for part in asked for value in part.values())


def test_what_refers_to_each_other_is_there() -> None:
    center, service = named("Deployment", "center")["spec"], named("Service", "center")
    labels = center["template"]["metadata"]["labels"]
    assert center["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    (container,), (port,) = center["template"]["spec"]["containers"], service["spec"]["ports"]
    assert port["targetPort"] == container["ports"][0]["name"] == container["readinessProbe"]["tcpSocket"]["port"]
    (worker,) = named("Job", "workers")["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one.get("value") for one in worker["env"]}
    assert given["HOOKE_CENTER"] == f"grpc+tls://{service['metadata']['name']}:{port['port']}"
    claims = [one for one in center["template"]["spec"]["volumes"] if "persistentVolumeClaim" in one]
    assert named("PersistentVolumeClaim", claims[0]["persistentVolumeClaim"]["claimName"])
    for pod in pods():
        volumes = {one["name"] for one in pod["spec"]["volumes"]}
        assert {one["name"] for part in pod["spec"]["containers"] for one in part["volumeMounts"]} == volumes


def test_the_keys_are_those_that_the_comment_makes_secrets_of() -> None:
    lines = [line.lstrip("# ") for line in MANIFESTS[0].read_text().splitlines() if line.startswith("#")]
    text = " ".join(lines).replace("\\ ", "")
    made = dict(re.findall(r"secret generic (\S+)((?: --from-file=keys/\S+)+)", text))
    files = {name: set(re.findall(r"keys/(\S+)", words)) for name, words in made.items()}
    assert files == {"center-keys": {"server.pem", "server.key", "token"}, "worker-keys": {"ca.pem", "token"}}
    used = re.findall(r"secretName: (\S+)", "".join(path.read_text() for path in MANIFESTS))
    assert set(used) == set(files)
    assert f"hooke certificate keys --host {named('Service', 'center')['metadata']['name']} " in f"{text} "
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        (secret,) = (one["secret"]["secretName"] for one in pod["spec"]["volumes"] if "secret" in one)
        words = [*container.get("args", ()), *(str(one.get("value")) for one in container["env"])]
        assert set(re.findall(r"/keys/(\S+)", " ".join(words))) <= files[secret]


def test_the_center_s_options_are_the_command_s() -> None:
    (container,) = named("Deployment", "center")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["hooke", "center"]
    assert {word.partition("=")[0] for word in container["args"]} <= options("center")
    listen = next(word for word in container["args"] if word.startswith("--listen"))
    assert listen.endswith(f":{container['ports'][0]['containerPort']}")


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "slurm.sh"])
def test_the_commands_in_the_pages_have_only_options_that_there_are(path: Path) -> None:
    known = {name: options(name) for name in ("run", "center", "status", "certificate", "report", "audit", "plan")}
    text = re.sub(r"\\\n(#\s+)?\s*", "", path.read_text())
    for line in re.findall(r"^(?:\$ |#\s+|[A-Z_]+=\S+ )*(hooke (?:\w+) .*)", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        if words[1] in known:
            script = next((index for index, word in enumerate(words) if word.endswith(".py")), len(words))
            given = {word.partition("=")[0] for word in words[2:script] if word.startswith("--")}
            assert given <= known[words[1]] | {"--help"}, line


def test_the_slurm_script_is_a_shell_script() -> None:
    path = ROOT / "examples" / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    directives = re.findall(r"^#SBATCH (--[a-z-]+)", path.read_text(), re.MULTILINE)
    assert directives and set(directives) <= {"--job-name", "--ntasks", "--cpus-per-task", "--time", "--requeue"}


def test_the_slurm_script_gives_every_worker_its_center(tmp_path: Path) -> None:
    """With an `srun` that starts two tasks, one after the other."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nfor SLURM_PROCID in 0 1; do "$@"; done\n')
    (tmp_path / "python").write_text(
        '#!/bin/bash\necho "$HOOKE_CENTER $HOOKE_TOKEN $HOOKE_AUTHORITY $OMP_NUM_THREADS $*"\n'
    )
    for name in ("srun", "python"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "token").write_text("secret\n")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "4", "HOOKE_CENTER": "grpc+tls://a:1"}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "slurm.sh"), "train.py", "--lr", "0.1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"grpc+tls://a:1 secret {tmp_path}/keys/ca.pem 4 train.py --lr 0.1"] * 2
