"""Runs the trainer as a job of GKE, or of any Kubernetes: `launch/gke.sh --gin pretrain.gin --image IMAGE ...`

Makes an Indexed Job, one pod per node and in it one trainer per GPU, and a headless service, by which the pods find each
other. Pods that are preempted, lost, or lose another one are made anew, and the run goes on. The current context of kubectl
says in which cluster. Options that are not listed here go to the trainer as they are; --dry_run prints the YAML.

    launch/gke.sh status --name base
    launch/gke.sh logs [-f] [POD] --name base
    launch/gke.sh stop --name base              # saves first
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

from launch.background import status_lines
from launch.command_line import (
    MODES_OF_ONE_PROCESS,
    add_job_options,
    check_name,
    command_text,
    confirm,
    make_parser,
    not_negative,
    parse_job,
    positive,
    say,
    split_verb,
)
from launch.exit_codes import FAILED, PREEMPTED, STORAGE, WRONG_INPUT
from launch.run_files import is_remote, read_status

_SCRIPT = "launch/gke.sh"
_VERBS = {
    "run": "makes a job",
    "status": "Tells what a job and its pods do.",
    "logs": "Shows what the newest pod of a number says; default: pod 0.",
    "stop": "Deletes a job; its trainers save first.",
}
_INSTANCE = "app.kubernetes.io/instance"
_INDEX = "batch.kubernetes.io/job-completion-index"
_CONTAINER = "trainer"
# What the pod's own launcher needs beyond the grace time to end what does not end by itself.
_SPARE_SECONDS = 15
_SHARED_MEMORY = "8Gi"  # a container's own are 64 MB, too little for NCCL between the GPUs of a node
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTP]i?)?")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9_.:/@-]*")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class KubectlError(Exception):
    """kubectl failed; the message is its own."""


def _parser():
    parser = make_parser(_SCRIPT, __doc__)
    add_job_options(parser, max_restarts=20)
    add = parser.add_argument
    add("--image", metavar="IMAGE", help="with Python and bert-trainer in it; see docs/cluster.md")
    add("--name", help="of the job; default: the last part of the run directory")
    add("--nodes", type=positive, default=1, metavar="N", help="pods, one a node; default: 1")
    add("--gpus_per_node", type=not_negative, default=0, metavar="N", help="default: 0, which is CPU")
    add("--gpu_type", metavar="TYPE", help="GKE's name of the GPU, such as nvidia-l4")
    add("--spot", action="store_true", help="on Spot nodes of GKE: cheaper, may be taken away at any time")
    add("--cpu", metavar="N", help="cores of a pod, such as 8")
    add("--memory", metavar="SIZE", help="of a pod, such as 32Gi")
    add("--shm", metavar="SIZE", help=f"shared memory, a part of --memory; default: {_SHARED_MEMORY} for several GPUs")
    add("--namespace", metavar="NAME", help="default: that of kubectl's context")
    add("--service_account", metavar="NAME", help="of Kubernetes, which may read and write the bucket")
    seconds = "to save when a pod is deleted; default: 120"
    add("--grace_seconds", type=positive, default=120, metavar="S", help=seconds)
    return parser


def _check(options, job, name):
    """Raises ValueError, with a message for a person, if options do not fit together."""
    patterns = {
        "image": (_IMAGE, "europe-docker.pkg.dev/project/images/bert-trainer:1"),
        "gpu_type": (_LABEL, "nvidia-l4"),
        "cpu": (_QUANTITY, "8"),
        "memory": (_QUANTITY, "32Gi"),
        "shm": (_QUANTITY, "8Gi"),
        "service_account": (_ACCOUNT, "trainer"),
    }
    for option, (pattern, example) in patterns.items():
        value = getattr(options, option)
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(f"--{option} {value!r}: use something like {example}")
    if options.image is None:
        raise ValueError("--image IMAGE is needed, one with bert-trainer in it: docs/cluster.md tells how to make it")
    check_name(name, "--name")
    if options.namespace is not None:
        check_name(options.namespace, "--namespace")
    last = f"{name}-{options.nodes - 1}"
    if len(last) > 63:
        raise ValueError(f"--name {name}: pods are named {last}, which is more than 63 letters")
    if not is_remote(job.run_dir):
        raise ValueError(f"--run_dir {job.run_dir} would be lost with the pod: use gs://BUCKET/FOLDER")
    if options.gpu_type and not options.gpus_per_node:
        raise ValueError(f"--gpu_type {options.gpu_type} is for --gpus_per_node N")
    trainers = options.nodes * max(1, options.gpus_per_node)
    if trainers > 1 and options.mode in MODES_OF_ONE_PROCESS:
        raise ValueError(f"--mode {options.mode} runs in one process: --nodes 1, and one GPU or none")
    if trainers > 1 and job.sets_strategy:
        raise ValueError(f"{trainers} trainers set the strategy themselves. Remove the --gin_param for strategy.")


def _default_name(run_dir):
    readable = re.sub(r"[^a-z0-9]+", "-", os.path.basename(run_dir.rstrip("/")).lower()).strip("-")
    return readable[:50] if readable[:1].isalpha() else f"bert-{readable[:45]}".rstrip("-")


def manifests(options, job, name):
    """Returns the headless service and the job, as Kubernetes has them.

    Args:
        options: what the command line says.
        job: `launch.command_line.TrainerJob`.
        name: of both.

    Raises:
        ValueError: with a message for a person, if options do not fit together.
    """
    _check(options, job, name)
    labels = {"app.kubernetes.io/name": "bert-trainer", _INSTANCE: name}
    metadata = {"name": name, **({"namespace": options.namespace} if options.namespace else {}), "labels": labels}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        # Pods find each other before they are ready.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {_INSTANCE: name}},
    }
    batch = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": options.nodes,
            "parallelism": options.nodes,
            "backoffLimit": options.max_restarts,
            "podFailurePolicy": {
                "rules": [
                    _on_exit_codes("FailJob", [WRONG_INPUT, FAILED, STORAGE]),
                    _on_exit_codes("Ignore", [PREEMPTED]),
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(options, job, name)},
        },
    }
    return [service, batch]


def _on_exit_codes(action, codes):
    rule = {"containerName": _CONTAINER, "operator": "In", "values": codes}
    return {"action": action, "onExitCodes": rule}


def _pod(options, job, name):
    """Returns the specification of a pod."""
    gpus = options.gpus_per_node
    own = ["--service", name, "--pods", str(options.nodes), "--processes", str(max(1, gpus))]
    own += ["--grace_seconds", str(options.grace_seconds), "--"]
    # With TF_CONFIG this is multi_worker; without, whoever looks at the run later needs no cluster.
    parameters = ['strategy="auto"'] if options.nodes * gpus > 1 or options.nodes > 1 else []
    requests = {kind: value for kind, value in (("cpu", options.cpu), ("memory", options.memory)) if value}
    limits = {"memory": options.memory} if options.memory else {}
    selector, tolerations = {}, []
    if gpus:
        limits["nvidia.com/gpu"] = gpus
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if options.gpu_type:
            selector["cloud.google.com/gke-accelerator"] = options.gpu_type
    if options.spot:
        spot = "cloud.google.com/gke-spot"
        selector[spot] = "true"
        tolerations.append({"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    shared_memory = options.shm or (_SHARED_MEMORY if gpus > 1 else None)
    container = {
        "name": _CONTAINER,
        "image": options.image,
        "command": ["python3", "-m", "launch.kubernetes_task"],
        # Kubernetes would put variables in the place of $(NAME); $$ stands for $.
        "args": [*own, *(text.replace("$", "$$") for text in job.arguments(parameters))],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
    }
    if requests or limits:
        container["resources"] = {part: each for part, each in (("requests", requests), ("limits", limits)) if each}
    pod = {
        "restartPolicy": "Never",
        "subdomain": name,
        "terminationGracePeriodSeconds": options.grace_seconds + _SPARE_SECONDS,
        "containers": [container],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if selector:
        pod["nodeSelector"] = selector
    if tolerations:
        pod["tolerations"] = tolerations
    if shared_memory:
        container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        pod["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}}]
    return pod


def yaml_text(documents):
    """Returns documents as YAML.

    Raises:
        KubectlError: if there is no PyYAML.
    """
    try:
        import yaml
    except ImportError:
        raise KubectlError("PyYAML is missing. Install: pip install 'bert-trainer[kubernetes]'") from None

    class Dumper(yaml.SafeDumper):
        """Writes parts that occur twice in full."""

        def ignore_aliases(self, data):
            return True

    def text(dumper, value):
        # 1e5 is a text to PyYAML, but a number to Kubernetes.
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if _is_number(value) else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)


def _is_number(text):
    for kind in (float, lambda text: int(text, 0)):
        with contextlib.suppress(ValueError):
            kind(text)
            return True
    return False


def _kubectl(*arguments, stdin=None):
    """Runs kubectl; returns what it prints.

    Raises:
        KubectlError: if it fails.
    """
    if shutil.which("kubectl") is None:
        raise KubectlError(
            "kubectl is not installed: kubernetes.io/docs/tasks/tools, or `gcloud components install kubectl`"
        )
    streams = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, **streams)
    if done.returncode:
        raise KubectlError(f"kubectl {arguments[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _show(*arguments):
    """Runs kubectl with the terminal; returns its exit code."""
    with contextlib.suppress(KeyboardInterrupt):
        return subprocess.run(["kubectl", *arguments]).returncode
    return 0


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    verb, arguments = split_verb(arguments, _VERBS)
    try:
        return _run(arguments) if verb == "run" else _look_after(verb, arguments)
    except KubectlError as error:
        say(str(error))
        return WRONG_INPUT


def _run(arguments):
    parser = _parser()
    options, job = parse_job(parser, arguments)
    if options.run_dir is None:
        parser.error("--run_dir gs://BUCKET/FOLDER is needed: what lies in a pod goes with it")
    name = options.name or _default_name(job.run_dir)
    try:
        documents = manifests(options, job, name)
    except ValueError as error:
        parser.error(str(error))
    where = ["--namespace", options.namespace] if options.namespace else []
    apply = ["apply", *where, "-f", "-"]
    text = yaml_text(documents)
    if options.dry_run:
        print(f"# would run: {command_text(['kubectl', *apply])}, with what follows on its standard input")
        print(f"# cost: that of the nodes, cloud.google.com/products/calculator; the job has {_size(options)}")
        print(text, end="")
        return 0
    context = _kubectl("config", "current-context").strip()
    ended = _ended(name, where)
    if ended is False:
        say(f"job {name} runs already. First: {command_text([_SCRIPT, 'stop', '--name', name, *where])}")
        return WRONG_INPUT
    old = (
        f"Delete job {name}, which has {ended}, with its pods' logs, and make it anew" if ended else f"Make job {name}"
    )
    if not confirm(f"{old}: {_size(options)}, in {context}?", options):
        return WRONG_INPUT
    if ended:
        _kubectl("delete", "job", name, *where, "--cascade=foreground")
    print(_kubectl(*apply, stdin=text), end="")
    for verb in (["status"], ["logs", "-f"], ["stop"]):
        print(f"  {command_text([_SCRIPT, *verb, '--name', name, *where])}")
    return 0


def _size(options):
    gpus = options.gpus_per_node
    each = f" with {gpus} GPU{'s' * (gpus > 1)}{' each' * (options.nodes > 1)}" if gpus else ""
    return f"{options.nodes} pod{'s' * (options.nodes > 1)}{each}{' on Spot nodes' if options.spot else ''}"


def _ended(name, where):
    """Returns how a job of that name has ended, in words; False if it runs, None if there is none."""
    text = _kubectl("get", "job", name, *where, "--ignore-not-found", "-o", "json")
    if not text.strip():
        return None
    words = {"Complete": "finished", "Failed": "failed"}
    for condition in json.loads(text).get("status", {}).get("conditions") or []:
        if condition["type"] in words and condition["status"] == "True":
            return words[condition["type"]]
    return False


def _look_after(verb, arguments):
    """Runs `status`, `logs` or `stop`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"{_SCRIPT} {verb}", description=_VERBS[verb], allow_abbrev=False)
    add = parser.add_argument
    add("--name", help="of the job")
    add("--run_dir", metavar="DIR", help="the run directory, instead of a name made of it; status looks there, too")
    add("--namespace", metavar="NAME", help="default: that of kubectl's context")
    if verb == "logs":
        add("pod", nargs="?", type=not_negative, default=0, help="number of the pod; default: 0")
        add("-f", "--follow", action="store_true", help="go on until the pod ends")
    options = parser.parse_args(arguments)
    if options.name is None and options.run_dir is None:
        parser.error("--name NAME is needed, or the --run_dir DIR of the run")
    try:
        name = check_name(options.name or _default_name(options.run_dir), "--name")
        where = ["--namespace", check_name(options.namespace, "--namespace")] if options.namespace else []
    except ValueError as error:
        parser.error(str(error))
    if verb == "stop":
        print(_kubectl("delete", "job", name, *where, "--cascade=foreground", "--ignore-not-found"), end="")
        print(_kubectl("delete", "service", name, *where, "--ignore-not-found"), end="")
        return 0
    if verb == "status":
        print(_kubectl("get", "job,pods", *where, f"--selector={_INSTANCE}={name}", "--output=wide"), end="")
        for line in status_lines(read_status(options.run_dir), []) if options.run_dir else []:
            print(line)
        return 0
    selector = f"--selector={_INSTANCE}={name},{_INDEX}={options.pod}"
    pods = _kubectl("get", "pods", *where, selector, "--sort-by=.metadata.creationTimestamp", "--output=name").split()
    if not pods:
        say(f"job {name} has no pod {options.pod}")
        return WRONG_INPUT
    return _show("logs", *where, *(["--follow"] if options.follow else []), "--tail=1000", pods[-1])


if __name__ == "__main__":
    sys.exit(main())
