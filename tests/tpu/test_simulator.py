"""The simulator of Cloud TPU serves the real gcloud: states, refusals, VMs behind ssh, and what is lost with them."""

import contextlib
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from tpu import tpu_vm
from tpu.cloud_tpu_simulator import cloud_tpu_simulator

NO_VMS = tpu_vm.missing()
pytestmark = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
needs_vms = pytest.mark.skipif(NO_VMS is not None, reason=str(NO_VMS))

ZONE = "us-east5-a"
ONE_VM = ["--accelerator-type=v5litepod-8", "--runtime-version=tpu-vm-tf-2.17.0-pjrt"]
TWO_VMS = ["--accelerator-type=v5p-16", "--runtime-version=tpu-vm-tf-2.17.0-pod-pjrt"]
MARK = "3141592"  # seconds that a process of these tests sleeps, by which it is known


def gcloud_command(*arguments, zone=ZONE):
    return ["gcloud", "compute", "tpus", *arguments, f"--zone={zone}", "--quiet"]


def gcloud(simulator, *arguments, zone=ZONE):
    """Runs gcloud; returns the completed process, with text."""
    return subprocess.run(
        gcloud_command(*arguments, zone=zone),
        env=os.environ | simulator.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def describe(simulator, *what):
    result = gcloud(simulator, *what[:-1], "describe", what[-1], "--format=json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def create(simulator, queued_resource, node, *arguments):
    """Asks for a node, without waiting for it."""
    name = [queued_resource, f"--node-id={node}"]
    result = gcloud(simulator, "queued-resources", "create", *name, *(arguments or ONE_VM), "--async", "--format=json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def ssh(simulator, node, command, worker="all"):
    return gcloud(simulator, "tpu-vm", "ssh", node, f"--worker={worker}", f"--command={command}")


def wait_until(condition, timeout_seconds=60):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def simulator(tmp_path):
    """The API alone."""
    with cloud_tpu_simulator(tmp_path, vms=False) as running:
        yield running


@pytest.fixture(scope="module")
def two_vms(tmp_path_factory):
    """The API with a node of two VMs, "node" of "request", whose startup script has run."""
    folder = tmp_path_factory.mktemp("tpu")
    script = folder / "startup.sh"
    script.write_text('echo "$HOME" > started.new\nmv started.new started\n')
    with cloud_tpu_simulator(folder, vm_environment={"GREETING": "Guten Tag"}) as running:
        create(running, "request", "node", *TWO_VMS, f"--metadata-from-file=startup-script={script}")
        running.wait_for("request", "ACTIVE")
        wait_until(lambda: all(os.path.exists(f"{vm.home}/started") for vm in running.vms("node")))
        yield running


@pytest.fixture
def vm(tmp_path):
    """A VM without API, whose metadata server knows one attribute."""
    machine = tpu_vm.TpuVm(tmp_path / "vm", "127.77.66.55", attributes={"color": "green"})
    yield machine
    machine.kill()


def start_on(vm, tmp_path, command):
    """Runs a command on a VM with ssh alone; returns the completed process."""
    key = tmp_path / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        vm.authorize((tmp_path / "key.pub").read_text().strip())
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes", "LogLevel=ERROR"]
    where = ["-i", str(key), "-p", str(vm.ssh_port), vm.address]
    return subprocess.run(
        ["ssh", "-F", "none", *(f"-o{option}" for option in options), *where, command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def metadata(vm, path):
    request = urllib.request.Request(
        f"http://{vm.metadata_host}/computeMetadata/v1/{path}", headers={"Metadata-Flavor": "Google"}
    )
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).read().decode()


def refuses_connections(address, port):
    with socket.socket() as connection:
        return connection.connect_ex((address, int(port))) != 0


# The API.


def test_a_queued_resource_goes_through_its_states_and_is_gone_when_deleted(simulator):
    operation = create(simulator, "request", "node", *ONE_VM, "--spot", "--labels=run=first")
    assert operation["metadata"]["verb"] == "create"
    simulator.wait_for("request", "ACTIVE")
    listed = json.loads(gcloud(simulator, "queued-resources", "list", "--format=json").stdout)
    assert [(item["name"].rpartition("/")[2], item["state"]["state"]) for item in listed] == [("request", "ACTIVE")]
    node = describe(simulator, "tpu-vm", "node")
    assert node["state"] == "READY" and node["labels"] == {"run": "first"} and node["schedulingConfig"]["spot"]
    assert node["queuedResource"] == listed[0]["name"] == f"projects/a-project/locations/{ZONE}/queuedResources/request"

    refused = gcloud(simulator, "queued-resources", "delete", "request", "--async")
    assert refused.returncode == 1 and "FAILED_PRECONDITION" in refused.stderr
    assert simulator.state("request") == "ACTIVE"
    assert gcloud(simulator, "queued-resources", "delete", "request", "--force").returncode == 0
    assert simulator.resources() == {}
    missing = gcloud(simulator, "queued-resources", "describe", "request")
    assert missing.returncode == 1 and "NOT_FOUND: Resource 'projects/" in missing.stderr
    states = ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "DELETING"]
    assert simulator.history("request") == states and simulator.history("node") == ["CREATING", "READY", "DELETING"]
    paid = simulator.paid_seconds()
    assert paid > 0 and simulator.paid_seconds() == paid


@pytest.mark.slow  # gcloud takes a second or two for each command
def test_a_preempted_node_suspends_its_queued_resource_which_still_counts_for_the_quota(simulator):
    simulator.service.quota[ZONE] = 8
    create(simulator, "request", "node")
    simulator.wait_for("request", "ACTIVE")
    simulator.service.keeps_preempted_nodes = True
    simulator.preempt("node")
    simulator.wait_for("request", "SUSPENDED")
    assert describe(simulator, "queued-resources", "request")["state"]["stateInitiator"] == "SERVICE"
    assert describe(simulator, "tpu-vm", "node")["state"] == "PREEMPTED"
    refused = gcloud(simulator, "queued-resources", "create", "another", "--node-id=other", *ONE_VM)
    assert refused.returncode == 1 and "RESOURCE_EXHAUSTED" in refused.stderr and "Limit: 8" in refused.stderr
    assert gcloud(simulator, "queued-resources", "delete", "request").returncode == 0
    create(simulator, "another", "other")


@pytest.mark.slow  # gcloud takes a second or two for each command
def test_without_resources_a_request_waits_until_it_expires_and_a_node_fails(simulator):
    simulator.service.stockouts.add(ZONE)
    create(simulator, "patient", "one")
    create(simulator, "impatient", "two", *ONE_VM, "--valid-until-duration=1s")
    simulator.wait_for("impatient", "FAILED")
    assert "failedData" in describe(simulator, "queued-resources", "impatient")["state"]
    assert simulator.state("patient") == "WAITING_FOR_RESOURCES"
    version = ["--accelerator-type=v5litepod-8", "--version=tpu-vm-tf-2.17.0-pjrt"]
    refused = gcloud(simulator, "tpu-vm", "create", "three", *version)
    assert refused.returncode == 1 and "no more capacity in the zone" in refused.stderr
    simulator.service.stockouts.clear()
    simulator.wait_for("patient", "ACTIVE")
    assert simulator.state("three") is None and simulator.history("two") == []


@pytest.mark.slow  # gcloud takes a second or two for each command
def test_gcloud_tries_again_when_the_service_is_unavailable_but_not_when_it_refuses(simulator):
    simulator.fail_next(status=503, method="POST", path="/queuedResources$")
    create(simulator, "request", "node")
    assert [request.status for request in simulator.requests] == [503, 200]
    simulator.fail_next(status=403, message="Permission 'tpu.nodes.list' denied")
    refused = gcloud(simulator, "tpu-vm", "list")
    assert refused.returncode == 1 and "PERMISSION_DENIED: Permission 'tpu.nodes.list' denied" in refused.stderr
    unknown = gcloud(simulator, "queued-resources", "describe", "request", zone="us-nowhere1-a")
    assert unknown.returncode == 1 and "Permission denied on 'locations/us-nowhere1-a'" in unknown.stderr


@pytest.mark.slow  # gcloud takes a second or two for each command
def test_gcloud_shows_states_that_it_does_not_know(simulator):
    create(simulator, "request", "node")
    simulator.wait_for("request", "ACTIVE")
    simulator.set_state("request", "HIBERNATING")
    assert describe(simulator, "queued-resources", "request")["state"] == {"state": "HIBERNATING"}


# VMs.


@needs_vms
def test_commands_run_in_the_home_of_each_vm_and_files_are_copied_there(two_vms, tmp_path):
    homes = {vm.home for vm in two_vms.vms("node")}
    assert len(homes) == 2
    result = ssh(two_vms, "node", 'cat started; pwd; echo "$GREETING"')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(lines.count(home) == 2 for home in homes) and lines.count("Guten Tag") == 2

    source = tmp_path / "source"
    source.write_text("some text")
    copied = gcloud(two_vms, "tpu-vm", "scp", str(source), "node:destination", "--worker=all")
    assert copied.returncode == 0, copied.stderr
    for home in homes:
        with open(f"{home}/destination", encoding="utf-8") as file:
            assert file.read() == "some text"
    back = gcloud(two_vms, "tpu-vm", "scp", "node:~/destination", str(tmp_path / "back"), "--worker=1")
    assert back.returncode == 0 and (tmp_path / "back").read_text() == "some text"
    assert ssh(two_vms, "node", "exit 7", worker=1).returncode == 7


@needs_vms
@pytest.mark.slow  # as above
def test_a_lost_vm_refuses_ssh_while_the_service_says_ready(tmp_path):
    with cloud_tpu_simulator(tmp_path) as simulator:
        create(simulator, "request", "node")
        simulator.wait_for("request", "ACTIVE")
        assert ssh(simulator, "node", "true").returncode == 0
        simulator.lose("node")
        # gcloud tries ten times in three quarters of a minute; seeing it try again is enough.
        command = gcloud_command("tpu-vm", "ssh", "node", "--command=true")
        with subprocess.Popen(
            command, env=os.environ | simulator.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            said = ""
            while "Retrying: SSH command error" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            os.killpg(process.pid, 9)
        assert "Connection refused" in said
        assert describe(simulator, "tpu-vm", "node")["state"] == "READY"


@needs_vms
@pytest.mark.slow  # as above
def test_preemption_is_announced_and_then_ends_whatever_runs_on_the_vm(tmp_path):
    with cloud_tpu_simulator(tmp_path) as simulator:
        create(simulator, "request", "node", *ONE_VM, "--spot")
        simulator.wait_for("request", "ACTIVE")
        asks = "curl --silent --header Metadata-Flavor:Google http://$GCE_METADATA_HOST/computeMetadata/v1/instance"
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        watcher = f"{asks}/preempted > before; {asks}/preempted?wait_for_change=true > after; sleep {MARK}"
        assert ssh(simulator, "node", f"nohup setsid sh -c {shlex.quote(watcher)} > /dev/null 2>&1 &").returncode == 0
        (vm,) = simulator.vms("node")
        wait_until(lambda: os.path.exists(f"{vm.home}/after"))
        running = vm.processes()
        simulator.service.durations.suspending = math.inf
        simulator.preempt("node", notice_seconds=1)
        simulator.wait_for("node", "PREEMPTED")
        assert not vm.alive and not any(os.path.exists(f"/proc/{pid}") for pid in running)
        for name, text in (("before", "FALSE"), ("after", "TRUE")):
            with open(f"{vm.home}/{name}", encoding="utf-8") as file:
                assert file.read() == text
        refused = ssh(simulator, "node", "true")
        assert refused.returncode == 1 and 'terminal state "PREEMPTED"' in refused.stderr


@needs_vms
def test_processes_cannot_get_away_from_their_vm(vm, tmp_path):
    assert start_on(vm, tmp_path, f"env -i setsid nohup sleep {MARK} > /dev/null 2>&1 &").returncode == 0
    wait_until(lambda: any(_command(pid) == f"sleep {MARK}" for pid in vm.processes()))
    vm.freeze()
    running = vm.processes()
    vm.kill()
    assert len(running) >= 2 and not any(os.path.exists(f"/proc/{pid}") for pid in running)
    assert refuses_connections(vm.address, vm.ssh_port)


@needs_vms
def test_processes_are_told_when_a_preempted_vm_shuts_down(vm, tmp_path):
    script = "trap 'touch told; exit' TERM; touch ready; while true; do sleep 0.05; done"
    assert start_on(vm, tmp_path, f"nohup bash -c {shlex.quote(script)} > /dev/null 2>&1 &").returncode == 0
    wait_until(lambda: os.path.exists(f"{vm.home}/ready"))
    vm.announce_preemption(sigterm=True)
    wait_until(lambda: os.path.exists(f"{vm.home}/told"))
    assert start_on(vm, tmp_path, "pwd").stdout == f"{vm.home}\n"  # still there


@needs_vms
def test_the_metadata_server_answers_whoever_asks_in_googles_way(vm):
    assert metadata(vm, "instance/preempted") == "FALSE" and metadata(vm, "instance/maintenance-event") == "NONE"
    assert metadata(vm, "instance/attributes/") == "color\n" and metadata(vm, "instance/attributes/color") == "green"
    vm.announce_preemption()
    vm.announce_maintenance("TERMINATE_ON_HOST_MAINTENANCE")
    wait_until(lambda: metadata(vm, "instance/maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE")
    assert metadata(vm, "instance/preempted") == "TRUE"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        metadata(vm, "instance/nothing")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{vm.metadata_host}/", timeout=60)


@needs_vms
def test_nothing_is_left_when_the_simulator_ends(tmp_path):
    with contextlib.ExitStack() as stack:
        simulator = stack.enter_context(cloud_tpu_simulator(tmp_path))
        create(simulator, "request", "node", *TWO_VMS)
        simulator.wait_for("request", "ACTIVE")
        vms = simulator.vms("node")
        running = [pid for vm in vms for pid in vm.processes()]
        create(simulator, "late", "later")
        wait_until(lambda: "PROVISIONING" in simulator.history("late"))
    assert len(running) >= 2 and not any(os.path.exists(f"/proc/{pid}") for pid in running)
    ports = [(vm.address, vm.ssh_port) for vm in vms] + [tuple(vm.metadata_host.split(":")) for vm in vms]
    ports.append(("127.0.0.1", simulator.environment["CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU"].strip("/").split(":")[2]))
    assert all(refuses_connections(*port) for port in ports)
    folder = os.fsencode(tmp_path)
    assert not [pid for pid in filter(str.isdigit, os.listdir("/proc")) if folder in _command_bytes(pid)]


def _command_bytes(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()
    return b""


def _command(pid):
    return _command_bytes(pid).replace(b"\0", b" ").strip().decode()
