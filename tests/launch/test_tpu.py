"""Cloud TPU without Google: what may be asked for, what is done in which state, what gcloud is given and what it says."""

import io
import os
import subprocess

import pytest

from launch.tpu import __main__ as tpu
from launch.tpu.accelerators import plan_machine
from launch.tpu.gcloud import Gcloud, GcloudError, classify
from launch.tpu.remote import command
from launch.tpu.states import Action, decide, is_known

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")

# What Google's documentation of 2025 lists, and what may come.
REQUESTS = [None, "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "FAILED", "SUSPENDING"]
REQUESTS += ["SUSPENDED", "DELETING", "SOMETHING_NEW"]
NODES = [
    None,
    "CREATING",
    "READY",
    "RESTARTING",
    "REIMAGING",
    "DELETING",
    "REPAIRING",
    "STOPPED",
    "STOPPING",
    "STARTING",
]
NODES += ["PREEMPTED", "TERMINATED", "HIDING", "HIDDEN", "UNHIDING", "UNKNOWN", "SOMETHING_NEW"]


def expected_action(request, node, is_lost):
    """The decision table, written down a second time, row by row."""
    if request is None:
        return {None: "create", "DELETING": "wait until gone"}.get(node, "recreate")
    if request in ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING", "SOMETHING_NEW"):
        return "wait"
    if request in ("FAILED", "SUSPENDED"):
        return "recreate"
    if request == "DELETING":
        return "wait until gone"
    if node in (None, "PREEMPTED", "TERMINATED", "UNKNOWN", "STOPPED", "STOPPING", "HIDING", "HIDDEN"):
        return "recreate"
    if node == "READY":
        return "recreate" if is_lost else "use"
    if node in ("REPAIRING", "RESTARTING", "REIMAGING", "STARTING", "UNHIDING"):
        return "recreate" if is_lost else "wait for repair"
    return "wait"


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("request_state", REQUESTS)
def test_every_pair_of_states_has_its_action(request_state, node, is_lost):
    assert decide(request_state, node, is_lost).value == expected_action(request_state, node, is_lost)


def test_states_that_are_new_are_waited_for_and_known_as_such():
    assert decide("ACTIVE", "SOMETHING_NEW") == decide("SOMETHING_NEW", "READY") == Action.WAIT
    assert not is_known("SOMETHING_NEW", None) and not is_known("ACTIVE", "SOMETHING_NEW")
    assert all(is_known(request, node) for request in REQUESTS[:-1] for node in NODES[:-1])


@pytest.mark.parametrize(
    ("accelerator", "chips", "vms", "image", "tensorflow"),
    [
        ("v2-8", 4, 1, "tpu-ubuntu2204-base", "2.18.0"),
        ("v3-32", 16, 4, "tpu-vm-tf-2.18.0-pod-pjrt", "2.18.0"),
        ("v4-8", 4, 1, "tpu-ubuntu2204-base", "2.18.0"),
        ("v4-16", 8, 2, "tpu-vm-tf-2.18.0-pod-pjrt", "2.18.0"),
        ("v5litepod-1", 1, 1, "v2-alpha-tpuv5-lite", "2.18.0"),
        ("v5litepod-8", 8, 1, "v2-alpha-tpuv5-lite", "2.18.0"),
        ("v5litepod-16", 16, 4, "tpu-vm-tf-2.18.0-pod-pjrt-v5e-and-v6", "2.18.0"),
        ("v5p-8", 4, 1, "v2-alpha-tpuv5", "2.18.0"),
        ("v5p-16", 8, 2, "tpu-vm-tf-2.18.0-pod-pjrt", "2.18.0"),
    ],
)
def test_machines(accelerator, chips, vms, image, tensorflow):
    machine = plan_machine(accelerator)
    assert (machine.chips, machine.vms, machine.image, machine.tensorflow) == (chips, vms, image, tensorflow)
    assert machine.is_pod == (vms > 1) and ("-pod" in machine.image) == (vms > 1) and not machine.warnings
    assert machine.dollars_per_hour["spot"] < machine.dollars_per_hour["on_demand"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"accelerator": "v6e-8"}, "TensorFlow on v6e"),
        ({"accelerator": "tpu7x-8"}, "TensorFlow on tpu7x"),
        ({"accelerator": "v4-16", "image": "tpu-vm-tf-2.18.0-pjrt"}, "need an image with -pod"),
        ({"accelerator": "v4-8", "image": "tpu-vm-tf-2.18.0-pod-pjrt"}, "is for several"),
        ({"accelerator": "v4-16", "tensorflow": "2.19.1"}, "must be the same"),
        ({"accelerator": "v4-8", "tensorflow": "2.17.0"}, "2.18 or later"),
    ],
)
def test_what_is_known_not_to_work_is_refused_and_can_be_tried(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        plan_machine(**arguments)
    assert any(reason in warning for warning in plan_machine(**arguments, allow_untested=True).warnings)


@pytest.mark.parametrize(
    "accelerator", ["v5e-8", "v9-8", "v4", "v4-12", "v4-6", "v5litepod-3", "v5p-4", "; rm -rf /", "v4-0"]
)
def test_what_does_not_exist_is_refused_for_good(accelerator):
    with pytest.raises(ValueError, match=r"v5litepod|multiples"):
        plan_machine(accelerator, allow_untested=True)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ERROR: (gcloud...) NOT_FOUND: Resource 'projects/p/...' was not found", "not_found"),
        ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI'", "quota"),
        ("ERROR: ALREADY_EXISTS: queuedResource already exists", "exists"),
        ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.get' denied", "permission"),
        ("ERROR: (gcloud.x) You do not currently have an active account selected. gcloud auth login", "permission"),
        ("ERROR: UNAVAILABLE: The service is currently unavailable.", "transient"),
        ("ERROR: HttpError 503 backend", "transient"),
        ("ERROR: INVALID_ARGUMENT: runtime version x", "other"),
    ],
)
def test_errors_of_gcloud_are_told_apart(text, kind):
    assert classify(text) == kind


class Recorded:
    """Stands in for running commands: notes the arguments, gives answers in turn."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def __call__(self, arguments, seconds):
        self.calls.append(arguments)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        code, out, err = answer
        return subprocess.CompletedProcess(arguments, code, out, err)


def test_transient_errors_are_tried_again_and_others_are_not(monkeypatch):
    monkeypatch.setattr("launch.tpu.gcloud.time.sleep", lambda _: None)
    busy, lost = (1, "", "UNAVAILABLE: try again"), subprocess.TimeoutExpired("gcloud", 1)
    run = Recorded(busy, lost, (0, '{"name": "x"}', ""))
    assert Gcloud("p", run).describe_node("x", "us-west1-c") == {"name": "x"}
    assert run.calls[0] == [
        *["gcloud", "compute", "tpus", "tpu-vm", "describe", "x", "--zone=us-west1-c", "--format=json"],
        *["--project=p", "--quiet"],
    ]
    with pytest.raises(GcloudError) as caught:
        Gcloud(None, Recorded((1, "", "INVALID_ARGUMENT: no"))).call("compute")
    assert caught.value.kind == "other"
    with pytest.raises(GcloudError, match="try again"):
        Gcloud(None, Recorded(*[busy] * 3), attempts=3).call("compute")
    with pytest.raises(GcloudError, match="not here"):
        Gcloud(None, Recorded(FileNotFoundError())).call("compute")
    assert Gcloud(None, Recorded((1, "", "NOT_FOUND"))).describe_request("x", "us-west1-c") is None


def test_remote_commands_hold_nothing_that_a_person_wrote():
    assert command("bert-base", "log 17") == "python3 bert-trainer-bert-base/agent.py log 17"
    for verb in ("log 1; rm -rf /", "status && x", "log $(x)"):
        with pytest.raises(ValueError, match="agent knows no"):
            command("bert-base", verb)


def options(*extra, accelerator="v5litepod-8", run_dir="gs://bucket/runs/base"):
    return [
        *["--accelerator", accelerator, "--zone", "us-west1-c", "--zone", "us-east5-b", "--gin", "pretrain.gin"],
        *["--gin_param", 'data="gs://bucket/pre pared; rm -rf \'"', "--run_dir", run_dir, "--dry_run", *extra],
    ]


@pytest.mark.parametrize(
    ("golden", "extra"),
    [
        ("tpu_spot", {}),
        ("tpu_on_demand", {"extra": ["--capacity", "on_demand", "--max_hours", "10", "--max_cost", "50"]}),
        ("tpu_reserved_pod", {"extra": ["--capacity", "reserved", "--keep"], "accelerator": "v4-16"}),
        ("tpu_untested", {"extra": ["--allow_untested", "--project", "p"], "accelerator": "v6e-8"}),
    ],
)
def test_dry_run_is_as_reviewed(golden, extra, capsys):
    extra = dict(extra)
    assert tpu.main(options(*extra.pop("extra", []), **extra)) == 0
    with open(os.path.join(GOLDEN, f"{golden}.txt"), encoding="utf-8") as file:
        assert capsys.readouterr().out == file.read()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--zone", "us-west1"], "is not a zone"),
        (["--name", "Bert_1"], "small letters"),
        (["--name", "x; reboot"], "small letters"),
        (["--run_dir", "runs/base"], "go with it"),
        (["--env", "no value"], "NAME=VALUE"),
        (["--wheel", "/no/such.whl"], "no such file"),
        (["--max_hours", "-1"], "more than 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(arguments, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        tpu.main([*options(), *arguments])
    assert caught.value.code == 2 and reason in capsys.readouterr().err


def test_what_cannot_be_answered_is_not_asked_for(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    arguments = [argument for argument in options() if argument != "--dry_run"]
    assert tpu.main(arguments) == 2
    assert "give --yes" in capsys.readouterr().err
