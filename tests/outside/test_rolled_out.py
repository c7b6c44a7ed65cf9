"""The unit, the image and the manifests that ship must fit the binary and each other, as far as no cluster is needed.

A manifest whose mounted configuration is refused, or whose grace is shorter than the drain, is found at three in the
morning by whoever rolls it out.
"""

import os
import re
import shutil
import socket
import subprocess
import threading

import pytest
import yaml
from stage import BINARY, ROOT, chat, eventually

UNIT = ROOT / "config/systemd/portcullis.service"
SOCKET = ROOT / "config/systemd/portcullis.socket"
CONTAINERFILE = ROOT / "config/container/Containerfile"
KUBERNETES = ROOT / "config/kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
DRAIN_DEADLINE = 60


@pytest.fixture(scope="module")
def objects():
    """Every object of the manifests, by kind and name."""
    found = [one for file in MANIFESTS for one in yaml.safe_load_all(file.read_text())]
    return {(one["kind"], one.get("metadata", {}).get("name")): one for one in found}


@pytest.fixture
def pod(objects):
    return objects["Deployment", "portcullis"]["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (only,) = pod["containers"]
    return only


def unit(file):
    """(key, value) of each line, comments left out."""
    lines = (line for line in file.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return [tuple(line.split("=", 1)) for line in lines]


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_accepts_the_units_and_finds_them_hardened(tmp_path):
    for file in (UNIT, SOCKET):
        (tmp_path / file.name).write_text(file.read_text().replace("/usr/local/bin/portcullis", str(BINARY)))
    units = [tmp_path / file.name for file in (UNIT, SOCKET)]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    hardened = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", tmp_path / UNIT.name]
    done = subprocess.run(hardened, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_unit_waits_longer_than_a_drain_lasts():
    assert seconds(dict(unit(UNIT))["TimeoutStopSec"]) > DRAIN_DEADLINE


def test_the_units_commands_exist(tmp_path):
    for key, command in unit(UNIT):
        if key.startswith("Exec"):
            _, verb, *_ = command.split()
            assert subprocess.run([BINARY, verb, "--help"], capture_output=True).returncode == 0, command


def test_the_gateway_tells_systemd_what_the_unit_expects(stage, tmp_path):
    settings = dict(unit(UNIT))
    assert settings["Type"] == "notify" and "WatchdogSec" in settings
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told = []

        def read():
            # Without a pause, as systemd does: what finds the queue full is dropped, and ten fill it.
            while "enough" not in told:
                told.extend(manager.recv(4096).decode().splitlines())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            one = stage(start=False)
            one.start(env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"})
            eventually(lambda: "READY=1" in told, what="READY=1")
            eventually(lambda: told.count("WATCHDOG=1") >= 3, what="WATCHDOG=1")
            assert "STOPPING=1" not in told
            assert one.gateway.end() == 0
            eventually(lambda: "STOPPING=1" in told, what="STOPPING=1")
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"enough", manager.getsockname())
            reader.join(10)


def test_a_socket_of_systemds_is_served(stage, tmp_path):
    one = stage(start=False)
    with socket.create_server(("127.0.0.1", 0)) as partners:
        port = partners.getsockname()[1]
        # LISTEN_PID is the process's own, which only a shell that becomes it can know.
        shell = tmp_path / "activated"
        shell.write_text(f'#!/bin/sh\nexport LISTEN_FDS=1 LISTEN_PID=$$\nexec "{BINARY}" "$@"\n')
        shell.chmod(0o700)
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [shell, "run", "-c", "portcullis.toml"], cwd=one.folder, env=os.environ | {"UPSTREAM_KEY": "key"},
                stdout=log, stderr=log, close_fds=False, preexec_fn=lambda: os.dup2(partners.fileno(), 3),
            )  # fmt: skip
    try:
        one.port = port
        assert one.ask(body=chat()).status == 200
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_the_image_runs_as_nobody_in_particular(pod):
    text = CONTAINERFILE.read_text()
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.M)
    assert len(stages) == 2 and all(f"--from={name}" in text for _, name in stages[:-1])
    user, group = re.search(r"^USER (\d+):(\d+)$", text, re.M).groups()
    assert (int(user), int(group)) == (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"])
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M)
    assert all((ROOT / source).exists() for line in copied for source in line.split())
    let_in = (ROOT / ".dockerignore").read_text()
    assert all(f"!{source}\n" in let_in for line in copied for source in line.split()), "the build context lacks it"


def test_the_mounted_configuration_is_accepted(objects, container, tmp_path):
    made = [BINARY, "certs", "--dir", tmp_path / "tls", "init", "--server", "gateway.example"]
    subprocess.run(made, check=True, capture_output=True)
    contents = {"portcullis": tmp_path / "config", "portcullis-orgs": tmp_path / "orgs"}
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    places = {mounted["config"]: contents["portcullis"], mounted["orgs"]: contents["portcullis-orgs"]}
    places |= {mounted["tls"]: tmp_path / "tls", mounted["state"]: tmp_path / "state", mounted["audit"]: tmp_path / "audit"}
    places[mounted["run"]] = tmp_path / "run"
    # What is mounted is there, whoever writes into it.
    (tmp_path / "run").mkdir()
    for name, folder in contents.items():
        folder.mkdir()
        for file, text in objects["ConfigMap", name]["data"].items():
            for inside, outside in places.items():
                text = re.sub(rf'"(unix:)?{inside}(?=["/])', rf'"\g<1>{outside}', text)
            (folder / file).write_text(text)
    env = {one["name"]: "something" for one in container["env"]}
    done = subprocess.run([BINARY, "check", "-c", tmp_path / "config/portcullis.toml"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


def test_every_path_of_the_configuration_is_mounted(objects, pod, container):
    text = objects["ConfigMap", "portcullis"]["data"]["portcullis.toml"]
    paths = re.findall(r'"(?:unix:|file:)?(/[^"]+)"', text)
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert all(any(path == mount or path.startswith(mount + "/") for mount in mounts) for path in paths), paths
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert not any("subPath" in mount for mount in mounts.values()), "subPath is never updated"
    tls = set(objects["Secret", "portcullis-tls"]["stringData"])
    assert {path.rsplit("/", 1)[1] for path in paths if path.startswith("/etc/portcullis-tls/")} == tls


def test_every_name_that_a_manifest_refers_to_exists(objects, pod, container):
    for volume in pod["volumes"]:
        refers = {
            "ConfigMap": volume.get("configMap", {}).get("name"),
            "Secret": volume.get("secret", {}).get("secretName"),
            "PersistentVolumeClaim": volume.get("persistentVolumeClaim", {}).get("claimName"),
        }
        assert all(name is None or (kind, name) in objects for kind, name in refers.items()), volume
    for variable in container["env"]:
        asked = variable.get("valueFrom", {}).get("secretKeyRef")
        assert not asked or asked["key"] in objects["Secret", asked["name"]]["stringData"]
    labels = objects["Deployment", "portcullis"]["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for (kind, _), one in objects.items():
        spec = one.get("spec", {})
        selects = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }
        if kind in selects:
            assert selects[kind](spec).items() <= labels, kind
        if kind == "Service":
            assert all(port["targetPort"] in ports for port in spec["ports"])
        assert "namespace" not in one.get("metadata", {}), "the operator chooses the namespace"
    monitored = objects["ServiceMonitor", "portcullis"]["spec"]
    metrics = objects["Service", "portcullis-metrics"]
    assert monitored["selector"]["matchLabels"].items() <= metrics["metadata"]["labels"].items()
    assert {end["port"] for end in monitored["endpoints"]} <= {port["name"] for port in metrics["spec"]["ports"]}
    text = objects["ConfigMap", "portcullis"]["data"]["portcullis.toml"]
    assert f'address      = "0.0.0.0:{ports["partners"]}"' in text and f'metrics = "0.0.0.0:{ports["metrics"]}"' in text
    applied = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    apart = {"kustomization.yaml", "secret.example.yaml", "servicemonitor.yaml"}
    assert set(applied) | apart == {file.name for file in MANIFESTS}


def test_the_pods_grace_covers_the_hook_and_the_drain(objects, pod, container):
    text = objects["ConfigMap", "portcullis"]["data"]["portcullis.toml"]
    delay, deadline = re.search(r'drain = \{ delay = "(\w+)", deadline = "(\w+)" \}', text).groups()
    hook = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= hook + seconds(delay) + seconds(deadline) + 10


def test_two_processes_never_keep_one_state(objects):
    spec = objects["Deployment", "portcullis"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def test_the_pod_is_locked_down(pod, container):
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] and context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_probes_of_the_pod_are_answered_on_the_metrics_listener(stage, container):
    one = stage(admin='metrics = "127.0.0.1:0"')
    port = one.gateway.printed(r"metrics on (?:http://)?127\.0\.0\.1:(\d+)")
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        with socket.create_connection(("127.0.0.1", port)) as kubelet:
            # As the kubelet asks: the pod's address as Host, and a user agent.
            path = container[probe]["httpGet"]["path"]
            head = f"GET {path} HTTP/1.1\r\nHost: 10.1.2.3:9464\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
            kubelet.sendall(head.encode())
            assert kubelet.recv(4096).startswith(b"HTTP/1.1 200 "), probe
