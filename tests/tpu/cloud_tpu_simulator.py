"""Google's Cloud TPU API on this machine, for the real gcloud: nodes have VMs that ssh reaches, and can be taken away.

    with cloud_tpu_simulator(folder) as simulator:
        subprocess.run(["gcloud", "compute", "tpus", "queued-resources", "create", ...],
                       env=os.environ | simulator.environment)
        simulator.wait_for("my-node", "READY")
        simulator.preempt("my-node", notice_seconds=1)
        simulator.resources()                            # {".../queuedResources/my-request": "SUSPENDING", ...}

`cloud_tpu_service.py` holds states and rules, `tpu_vm.py` the VMs. No project, account or network is needed.
"""

import contextlib
import dataclasses
import http.server
import itertools
import json
import os
import re
import secrets
import shlex
import shutil
import threading
import time
import urllib.parse

from tpu import tpu_vm
from tpu.cloud_tpu_service import ApiError, CloudTpu, num_vms

PROJECT = "a-project"
_RESOURCE = re.compile(r"projects/[^/]+/locations/[^/]+/(nodes|queuedResources|operations)/[^/:]+")
_PARENT = re.compile(r"(projects/[^/]+/locations/[^/]+)/(\w+)")
_REASONS = {403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}


@dataclasses.dataclass
class Request:
    """What gcloud asked for, and the status of the answer."""

    method: str
    path: str
    parameters: dict
    body: dict
    status: int = 0


@dataclasses.dataclass
class _Failure:
    times: float
    status: int
    method: str | None
    path: str
    message: str

    def strikes(self, request):
        """Returns whether this request fails, and counts it."""
        strikes = self.times > 0 and self.method in (None, request.method) and bool(re.search(self.path, request.path))
        self.times -= strikes
        return strikes


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self):
        url = urllib.parse.urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(
            self.command,
            urllib.parse.unquote(url.path),
            dict(urllib.parse.parse_qsl(url.query)),
            json.loads(content) if content else {},
        )
        request.status, answer = self.server.simulator._answer(request)
        body = json.dumps(answer).encode()
        self.send_response(request.status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = serve

    def log_message(self, *args):
        """Keeps quiet: `Simulator.requests` is the log."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Simulator:
    """The service and what a test can do with it. Nodes and queued resources are named in full or by their last part.

    Args:
        folder: where VMs and gcloud's configuration go.
        vms: whether nodes have VMs. Without them ssh is refused, and no sshd is needed.
        vm_environment: dict of environment variables of all VMs. They have no other Python than the system's unless
            PATH says so.

    Attributes:
        environment: dict of environment variables with which gcloud, and its ssh and scp, come here.
        requests: list of `Request`.
        service: `CloudTpu`, with what can be set: `durations`, `zones`, `stockouts`, `quota`, ...
    """

    def __init__(self, folder, vms=True, vm_environment=None):
        self.folder = os.path.abspath(folder)
        self.requests = []
        self.service = CloudTpu(self._start_vms if vms else lambda node: [])
        self._vm_environment = vm_environment or {}
        self._all_vms, self._lock = [], threading.Lock()
        self._failures = []
        # Others on this machine may simulate, too.
        self._network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        self._hosts = itertools.count(1)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.simulator = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.environment = self._prepare_gcloud()

    def end(self):
        """Ends the service and all VMs; returns when their processes are gone."""
        self._server.shutdown()
        self._server.server_close()
        self.service.end()
        with self._lock:
            for vm in self._all_vms:
                vm.kill()

    # What a test sees.

    def resources(self):
        """Returns a dict of the state of every node and queued resource that is there, by its full name."""
        with self.service.lock:
            return {name: resource.state for name, resource in self.service.resources.items()}

    def state(self, name):
        """Returns the state of a resource, None if it does not exist."""
        try:
            return self.service.find(name).state
        except ApiError:
            return None

    def wait_for(self, name, state, timeout_seconds=60):
        """Waits until a resource is in a state, None for gone; raises TimeoutError."""
        deadline = time.monotonic() + timeout_seconds
        while (found := self.state(name)) != state:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is {found} and not {state} after {timeout_seconds} seconds")
            time.sleep(0.02)

    def history(self, name):
        """Returns the states of all resources with this last part of a name, also of those that are gone, in order."""
        with self.service.lock:
            return [state for last_part, state in self.service.history if last_part == name]

    def paid_seconds(self):
        """Returns for how long nodes have cost, each from READY to its end."""
        return self.service.paid_seconds()

    def vms(self, node):
        """Returns the `TpuVm`s of a node, by worker."""
        return list(self.service.find(f"nodes/{node}").vms)

    # What a test does.

    def preempt(self, node, notice_seconds=0.0, sigterm=False):
        """Takes a node away: it is PREEMPTED, and its queued resource SUSPENDING and SUSPENDED.

        Args:
            node: name of the node.
            notice_seconds: how long its metadata server says so before its VMs end.
            sigterm: whether its processes get SIGTERM when the notice begins.
        """
        self._take_away(node, "PREEMPTED", notice_seconds, lambda vm: vm.announce_preemption(sigterm))

    def terminate(self, node, notice_seconds=0.0):
        """Takes a node away for maintenance: it is TERMINATED."""
        announce = lambda vm: vm.announce_maintenance("TERMINATE_ON_HOST_MAINTENANCE")
        self._take_away(node, "TERMINATED", notice_seconds, announce)

    def lose(self, node, worker=None):
        """Ends the VM of a worker, of all if None, while the service says that the node is READY."""
        for vm in self._some_vms(node, worker):
            vm.kill()

    def freeze(self, node, worker=None):
        """As `lose`, but connections stay open and nobody answers, as with a broken network."""
        for vm in self._some_vms(node, worker):
            vm.freeze()

    def set_state(self, name, state):
        """Says that a resource is in this state from now on, and nothing else: no transition follows."""
        self.service.set_state(name, state)

    def fail(self, queued_resource, message="Insufficient capacity"):
        """Has a queued resource fail."""
        self.service.fail(queued_resource, message)

    def fail_next(self, times=1, status=503, method=None, path="", message="The service is currently unavailable."):
        """Has the next requests fail.

        Args:
            times: how many, `math.inf` for all.
            status: of HTTP: 403, 429, 500, 503.
            method: such as "POST", None for any.
            path: regular expression that the path contains ("/nodes", "queuedResources/my-request$").
            message: text of the error.
        """
        self._failures.append(_Failure(times, status, method, path, message))

    def stop_failing(self):
        """Ends what `fail_next` began."""
        self._failures.clear()

    # How it works.

    def _some_vms(self, node, worker):
        vms = self.vms(node)
        return vms if worker is None else [vms[worker]]

    def _take_away(self, name, state, notice_seconds, announce):
        node = self.service.find(f"nodes/{name}")
        for vm in node.vms:
            announce(vm)
        if notice_seconds:
            self.service.after(notice_seconds, lambda: self.service.take_away(node, state))
        else:
            self.service.take_away(node, state)

    def _start_vms(self, node):
        project, zone, name = node["name"].split("/")[1::2]
        count = num_vms(node["acceleratorType"])
        with self._lock:
            addresses = [f"{self._network}.{next(self._hosts)}" for _ in range(count)]
        vms = []
        for worker, address in enumerate(addresses):
            tpu_env = {
                "ACCELERATOR_TYPE": node["acceleratorType"],
                "NODE_ID": name,
                "WORKER_ID": str(worker),
                "ZONE": zone,
            }
            attributes = node["metadata"] | {
                "tpu-env": "".join(f"{key}: '{value}'\n" for key, value in tpu_env.items()),
                "accelerator-type": node["acceleratorType"],
                "agent-worker-number": str(worker),
                "instance-id": name,
                "worker-network-endpoints": ",".join(f"unknown:unknown:{address}" for address in addresses),
            }
            vm = tpu_vm.TpuVm(
                os.path.join(self.folder, "vms", f"{name}-{address.rpartition('.')[2]}-w-{worker}"),
                address,
                environment=self._vm_environment,
                startup_script=node["metadata"].get("startup-script"),
                attributes=attributes,
                zone=zone,
                project=project,
            )
            vms.append(vm)
            with self._lock:
                self._all_vms.append(vm)
                self._write_ssh_config()
        return vms

    def _prepare_gcloud(self):
        for name in ("bin", "gcloud", "home", "vms"):
            os.makedirs(os.path.join(self.folder, name), exist_ok=True)
        config = os.path.join(self.folder, "ssh_config")
        for name in ("ssh", "scp"):
            path = os.path.join(self.folder, "bin", name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\nexec {shutil.which(name) or name} -F {shlex.quote(config)} "$@"\n')
            os.chmod(path, 0o755)
        self._write_ssh_config()
        address = f"http://127.0.0.1:{self._server.server_port}/"
        return {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": address,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{address}compute/v1/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CONFIG": os.path.join(self.folder, "gcloud"),
            "CLOUDSDK_CORE_PROJECT": PROJECT,
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
            "HOME": os.path.join(self.folder, "home"),  # keys and known hosts of its ssh go to ~/.ssh
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "SSH_AUTH_SOCK": "",  # gcloud refuses to copy to several VMs where an agent runs that does not hold its key
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def _write_ssh_config(self):
        """Has ssh find the ports, where gcloud only knows of 22."""
        path = os.path.join(self.folder, "ssh_config")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.writelines(f"Host {vm.address}\n  Port {vm.ssh_port}\n" for vm in self._all_vms)
        os.replace(f"{path}.new", path)

    def _answer(self, request):
        """Returns status and JSON."""
        self.requests.append(request)
        with self.service.lock:
            for failure in self._failures:
                if failure.strikes(request):
                    reason = _REASONS.get(failure.status, "UNKNOWN")
                    error = {"code": failure.status, "message": failure.message, "status": reason}
                    return failure.status, {"error": error}
            try:
                answer = self._route(request)
                # As text, since what it says may change when the lock is free.
                return 200, json.loads(json.dumps(answer))
            except ApiError as error:
                return error.status, error.json

    def _route(self, request):
        service, method, parameters = self.service, request.method, request.parameters
        if compute := re.fullmatch(r"/compute/(?:v1|alpha|beta)/projects/([^/]+)", request.path):
            return {"kind": "compute#project", "name": compute[1], "commonInstanceMetadata": {"items": []}}
        path = re.sub(r"^/(v1|v2|v2alpha1)/", "", request.path)
        if match := _RESOURCE.fullmatch(path):
            if method == "GET":
                return service.operation(path) if match[1] == "operations" else service.get(path)
            if method == "PATCH":
                return service.update_node(path, request.body, parameters["updateMask"])
            if method == "DELETE" and match[1] == "nodes":
                return service.delete_node(path)
            if method == "DELETE" and match[1] == "queuedResources":
                return service.delete_queued_resource(path, parameters.get("force", "").lower() == "true")
        if path.endswith(":getGuestAttributes"):
            workers = request.body.get("workerIds", [])
            return {"guestAttributes": service.guest_attributes(path.rpartition(":")[0], workers)}
        if match := _PARENT.fullmatch(path):
            parent, kind = match.groups()
            if method == "POST" and kind == "nodes":
                return service.create_node(parent, parameters["nodeId"], request.body)
            if method == "POST" and kind == "queuedResources":
                return service.create_queued_resource(parent, parameters["queuedResourceId"], request.body)
            if kind in ("nodes", "queuedResources"):
                return {kind: service.list(parent, kind)}
            if kind == "acceleratorTypes":
                return {kind: service.accelerator_types(parent)}
            if kind == "runtimeVersions":
                return {kind: service.versions(parent)}
        if match := re.fullmatch(r"projects/([^/]+)/locations", path):
            return {"locations": service.locations(match[1])}
        raise ApiError("NOT_FOUND", f"The simulator does not know {method} {request.path}")


@contextlib.contextmanager
def cloud_tpu_simulator(folder, vms=True, vm_environment=None):
    """Runs the service while the context lasts; its VMs also end with the process that called this.

    Args:
        folder: where VMs and gcloud's configuration go.
        vms: whether nodes have VMs. Without them ssh is refused, and no sshd is needed.
        vm_environment: dict of environment variables of all VMs, such as a PATH on which there is a Python.

    Yields:
        `Simulator`.
    """
    simulator = Simulator(folder, vms, vm_environment)
    try:
        yield simulator
    finally:
        simulator.end()
