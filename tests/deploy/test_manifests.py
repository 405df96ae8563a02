"""The files of deploy/ that a user copies: they fit the schemas, their scripts run, and their commands are understood."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import types

import pytest
import yaml
from kubeflow.training import ApiClient

from hm3_tf.cli import VERBS
from hm3_tf.cluster import read_cluster
from hm3_tf.config import checked
from hm3_tf.verbs.verb import parse

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICE, JOB = yaml.safe_load_all((DEPLOY / "kubernetes" / "job.yaml").read_text())
TFJOB = yaml.safe_load((DEPLOY / "kubernetes" / "tfjob.yaml").read_text())
MODELS = {"V1Service": SERVICE, "V1Job": JOB, "KubeflowOrgV1TFJob": TFJOB}  # of the official Python clients
WORKER = TFJOB["spec"]["tfReplicaSpecs"]["Worker"]
PODS = {"job": JOB["spec"]["template"]["spec"], "tfjob": WORKER["template"]["spec"]}
JOB_NAME, WORKERS = JOB["metadata"]["name"], JOB["spec"]["completions"]
SBATCH = DEPLOY / "slurm" / "train.sbatch"

HM3 = f"""#!{sys.executable}
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print(json.dumps([sys.argv[1:], os.environ.get("TF_CONFIG")]), flush=True)
if os.environ["STATUS"] == "wait":
    time.sleep(20)
sys.exit(int(os.environ["STATUS"]))
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'  # one task
SCONTROL = '#!/bin/bash\necho "scontrol $*"\n'


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder of stand-ins: hm3 prints its arguments and ends with $STATUS, srun runs it, scontrol prints its arguments."""
    folder = tmp_path_factory.mktemp("commands")
    for name, text in {"hm3": HM3, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def start(command: list[str], commands: pathlib.Path, status: int | str, **variables: str) -> subprocess.Popen:
    """Starts a script that calls hm3, which ends with `status`, or with 75 at SIGTERM where that is "wait"."""
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "STATUS": str(status), **variables}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def start_pod(name: str, commands: pathlib.Path, status: int | str = 0, index: int = 0) -> subprocess.Popen:
    """Starts the command of a pod, with the variables that the container and the Job's controller give it."""
    (container,) = PODS[name]["containers"]
    given = {variable["name"]: variable["value"] for variable in container.get("env", ())}
    given |= {"HOSTNAME": f"{JOB_NAME}-{index}", "JOB_COMPLETION_INDEX": str(index)}
    return start(container["command"] + container["args"], commands, status, **given)


def start_batch(commands: pathlib.Path, status: int | str = 0, **variables: str) -> subprocess.Popen:
    """Starts the sbatch script on its first node."""
    given = {"SLURM_JOB_ID": "1234", "SLURM_CPUS_PER_TASK": "8", **variables}
    return start(["bash", str(SBATCH)], commands, status, **given)


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Returns a script's exit status and lines."""
    output, _ = process.communicate(timeout=30)
    return process.returncode, output.splitlines()


def kept_by(model: str, manifest: dict) -> dict:
    """Returns what is left of a manifest in the client's model: unknown fields get lost, values of another type change."""
    client = ApiClient()
    return client.sanitize_for_serialization(
        client.deserialize(types.SimpleNamespace(data=json.dumps(manifest)), model)
    )


@pytest.mark.parametrize("model", MODELS)
def test_a_manifest_fits_the_model_of_the_official_client(model):
    assert kept_by(model, MODELS[model]) == MODELS[model]


WRONG = {
    "no such field": {"completionsMode": "Indexed"},
    "another type": {"completions": "2"},
    "no such field within": {"successPolicy": {"rules": [{"succeededIndices": "0"}]}},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
def test_a_wrong_field_of_a_manifest_would_be_found(fields):
    manifest = {**JOB, "spec": {**JOB["spec"], **fields}}
    assert kept_by("V1Job", manifest) != manifest


STARTS = {
    "job": lambda commands: start_pod("job", commands),
    "tfjob": lambda commands: start_pod("tfjob", commands),
    "sbatch": start_batch,
}


@pytest.mark.parametrize("name", STARTS)
def test_the_command_of_a_file_is_understood(commands, monkeypatch, name):
    monkeypatch.chdir(ROOT)  # as in the image and on Slurm, where configs/ is in the working directory
    status, (line, *_) = ended(STARTS[name](commands))
    verb, *arguments = json.loads(line)[0]
    assert status == 0 and verb == "train"
    assert checked(parse(verb, VERBS[verb], arguments).config).distribution.strategy == "multi_worker"


def test_each_pod_of_the_job_finds_its_own_address_in_one_cluster(commands, monkeypatch):
    ends = [ended(start_pod("job", commands, index=index)) for index in range(WORKERS)]
    configs = [json.loads(json.loads(line)[1]) for _, (line,) in ends]
    for index, config in enumerate(configs):
        assert config["task"] == {"type": "worker", "index": index}
        assert config["cluster"] == configs[0]["cluster"]
        assert len(config["cluster"]["worker"]) == WORKERS
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert read_cluster().address == f"{JOB_NAME}-{index}.{PODS['job']['subdomain']}:2222"


def test_the_service_gives_the_pods_of_the_job_their_names():
    labels = JOB["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert SERVICE["metadata"]["name"] == PODS["job"]["subdomain"]
    assert SERVICE["spec"]["clusterIP"] == "None" and SERVICE["spec"]["publishNotReadyAddresses"]
    assert [port["port"] for port in SERVICE["spec"]["ports"]] == [2222]


@pytest.mark.parametrize("name", PODS)
def test_the_workers_open_their_port_and_mount_what_they_share(commands, name):
    (container,) = PODS[name]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [2222]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in PODS[name]["volumes"]}
    _, (line,) = ended(start_pod(name, commands))
    folders = [word.split("=")[1] for word in json.loads(line)[0] if re.match("--(data_dir|workdir)=", word)]
    assert len(folders) == 2 and all(folder.startswith(f"{mounts['shared']}/") for folder in folders)


def test_all_workers_of_the_job_run_at_once_and_the_chief_ends_it():
    spec = JOB["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}


def action_of_the_job(status: int) -> str:
    """Returns what the Job does after a pod ended with a status: the first rule that fits it, or a count."""
    for rule in JOB["spec"]["podFailurePolicy"]["rules"]:
        on = rule.get("onExitCodes")
        if on:
            assert on["operator"] == "In" and on["containerName"] == PODS["job"]["containers"][0]["name"]
            if status in on["values"]:
                return rule["action"]
    return "Count"


@pytest.mark.parametrize(
    ("status", "action"),
    [(1, "FailJob"), (2, "FailJob"), (69, "Ignore"), (75, "Ignore"), (137, "Count"), (143, "Count")],
)
def test_the_job_makes_a_new_pod_where_a_restart_resumes(commands, status, action):
    assert ended(start_pod("job", commands, status))[0] == status
    assert PODS["job"]["restartPolicy"] == "Never"  # a pod failure policy needs it
    assert action_of_the_job(status) == action


def test_the_job_does_not_count_disruptions():
    conditions = [{"type": "DisruptionTarget", "status": "True"}]
    assert {"action": "Ignore", "onPodConditions": conditions} in JOB["spec"]["podFailurePolicy"]["rules"]


@pytest.mark.parametrize(("status", "restarts"), [(0, 0), (1, 0), (2, 0), (69, 1), (75, 1), (137, 1), (143, 1)])
def test_the_operator_restarts_a_worker_where_that_resumes(commands, status, restarts):
    assert WORKER["restartPolicy"] == "ExitCode"
    seen, _ = ended(start_pod("tfjob", commands, status))
    assert (seen >= 128) == bool(restarts)  # what the operator goes by
    assert (seen == 0) == (status == 0)


def test_the_operator_knows_the_container_and_its_port():
    (container,) = PODS["tfjob"]["containers"]
    assert container["name"] == "tensorflow"
    assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]


@pytest.mark.parametrize(("name", "status"), [("job", 75), ("tfjob", 138)])
def test_sigterm_reaches_the_worker_in_a_pod(commands, name, status):
    process = start_pod(name, commands, "wait")
    process.stdout.readline()  # it waits now
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == status
    assert PODS[name]["terminationGracePeriodSeconds"] > 30  # what a worker may take to write its checkpoint


@pytest.mark.parametrize(
    ("status", "requeued"), [(0, 0), (1, 0), (2, 0), (127, 0), (69, 1), (75, 1), (137, 1), (143, 1)]
)
def test_the_batch_script_goes_back_to_the_queue_where_a_restart_resumes(commands, status, requeued):
    seen, (_, *lines) = ended(start_batch(commands, status))
    assert seen == status
    assert lines == ["scontrol requeue 1234"] * requeued


@pytest.mark.parametrize(("restarts", "requeued"), [("99", 1), ("100", 0)])
def test_the_batch_script_does_not_restart_for_ever(commands, restarts, requeued):
    _, (_, *lines) = ended(start_batch(commands, 69, SLURM_RESTART_COUNT=restarts))
    assert len(lines) == requeued


def test_slurm_reads_the_options_of_the_batch_script():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    first, *lines = SBATCH.read_text().splitlines()
    assert first == "#!/bin/bash"
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]  # Slurm reads no further
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in head if line.startswith("#SBATCH"))
    assert len(options) == SBATCH.read_text().count("#SBATCH")
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "requeue"} <= set(options)
    assert re.fullmatch(r"TERM@\d+", options["signal"])  # to the workers; B: would be to the script alone


def test_the_image_has_what_the_commands_name():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in shlex.split(line)[1:-1]]
    assert {"hm3_tf", "data_pipeline", "configs", "requirements.txt", "setup.py"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    user = next(line for line in lines if line.startswith("USER")).split()[1]
    assert {str(pod["securityContext"]["runAsUser"]) for pod in PODS.values()} == {user} != {"0"}
