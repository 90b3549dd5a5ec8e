"""What Google's Cloud TPU API keeps and does: nodes, queued resources, operations, and how their states follow.

The API is described at https://cloud.google.com/tpu/docs/reference/rest/v2 and, for the states of queued resources, at
https://cloud.google.com/tpu/docs/queued-resources. Texts of errors are those that users quote, where any were found.
"""

import copy
import dataclasses
import datetime
import heapq
import itertools
import math
import threading
import time

ACCELERATOR_SIZES = {
    "v2": (8, 32, 128),
    "v3": (8, 32, 64),
    "v4": (8, 16, 32),
    "v5litepod": (1, 4, 8, 16, 32, 64),
    "v5p": (8, 16, 32),
    "v6e": (1, 4, 8, 16, 32),
}
ZONES = {
    "us-central1-a": ("v2", "v3", "v5litepod", "v5p"),
    "us-central2-b": ("v4",),
    "us-east5-a": ("v5litepod", "v5p", "v6e"),
    "us-west4-a": ("v5litepod",),
    "europe-west4-a": ("v2", "v3", "v6e"),
    "europe-west4-b": ("v5litepod", "v5p"),
}
RUNTIME_VERSIONS = (
    "tpu-ubuntu2204-base",
    "v2-alpha-tpuv5",
    "v2-alpha-tpuv5-lite",
    "v2-alpha-tpuv6e",
    *(
        f"tpu-vm-tf-{version}{pod}-pjrt"
        for version in ("2.15.0", "2.15.1", "2.16.1", "2.17.0", "2.17.1", "2.18.0")
        for pod in ("", "-pod")
    ),
)
_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
}
_RESOURCE_EXHAUSTED = 8  # google.rpc.Code
_STATES_WITH_DATA = ("CREATING", "PROVISIONING", "ACTIVE", "SUSPENDING", "SUSPENDED", "DELETING")
_DELETABLE = ("ACCEPTED", "FAILED", "SUSPENDED")  # without force, says DeleteQueuedResourceRequest


def num_vms(accelerator_type):
    """Returns of how many VMs a node of this type ("v5litepod-16") consists."""
    family, _, size = accelerator_type.rpartition("-")
    if family in ("v5litepod", "v6e"):  # a number of chips, in VMs of four where they are more than eight
        return 1 if int(size) <= 8 else int(size) // 4
    return max(1, int(size) // 8)  # a number of cores, two a chip, four chips a VM


class ApiError(Exception):
    """What the service answers instead of a resource.

    Args:
        reason: name of a google.rpc.Code, such as "NOT_FOUND".
        message: text for a person.
        details: list of JSON objects.
    """

    def __init__(self, reason, message, details=()):
        super().__init__(message)
        self.status = _STATUS[reason]
        self.json = {"error": {"code": self.status, "message": message, "status": reason}}
        if details:
            self.json["error"]["details"] = [
                {"@type": f"type.googleapis.com/google.rpc.{kind}", **detail} for kind, detail in details
            ]


@dataclasses.dataclass
class Durations:
    """Seconds that states last; `math.inf` for one that only `set_state` ends. They count for what begins later.

    Attributes:
        creating: CREATING of a queued resource.
        waiting: WAITING_FOR_RESOURCES where there are resources.
        provisioning: PROVISIONING of a queued resource and CREATING of a node, besides the start of its VMs.
        suspending: SUSPENDING of a queued resource.
        deleting: DELETING of either.
        operation: what an operation takes longer than what it does.
    """

    creating: float = 0.2
    waiting: float = 0.2
    provisioning: float = 0.2
    suspending: float = 0.2
    deleting: float = 0.2
    operation: float = 0.0


@dataclasses.dataclass(eq=False)
class Resource:
    """A node or a queued resource.

    Attributes:
        body: JSON of it.
        plan: number of the transition that it awaits; one planned before does not happen any more.
        vms: list of the VMs of a node, from READY on.
        paid_from: when it began to cost, None if it does not.
    """

    body: dict
    plan: int = 0
    vms: list = dataclasses.field(default_factory=list)
    paid_from: float | None = None

    @property
    def name(self):
        return self.body["name"]

    @property
    def is_node(self):
        return "/nodes/" in self.name

    @property
    def zone(self):
        return self.name.split("/")[3]

    @property
    def state(self):
        return self.body["state"] if self.is_node else self.body["state"]["state"]


class Schedule:
    """Calls functions after some time, one after the other, in a thread of its own."""

    def __init__(self):
        self._heap, self._order = [], itertools.count()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def after(self, seconds, function):
        if seconds < math.inf:
            with self._changed:
                heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._order), function))
                self._changed.notify()

    def end(self):
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self):
        while True:
            with self._changed:
                while not self._ended and not (self._heap and self._heap[0][0] <= time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._ended:
                    return
                function = heapq.heappop(self._heap)[2]
            function()


class CloudTpu:
    """The service.

    Args:
        start_vms: function of a node's JSON that starts its VMs and returns them; they have `address`, `host_key`,
            `authorize`, `set_attributes` and `kill`.

    Attributes:
        durations: `Durations`.
        zones: dict of the families of accelerators in each zone.
        runtime_versions: list of those that there are.
        stockouts: set of zones without free resources: what is asked for waits, or fails if it cannot wait.
        quota: dict of the number of chips or cores, as accelerator types count them, that a zone's quota allows.
        keeps_preempted_nodes: whether nodes of a queued resource are still there, PREEMPTED, when it is SUSPENDED.
            The documentation says no.
        resources: dict of `Resource` by name.
        history: list of (last part of a name, state) in the order in which states were entered.
        lock: held while anything here changes.
    """

    def __init__(self, start_vms):
        self.durations = Durations()
        self.zones = dict(ZONES)
        self.runtime_versions = list(RUNTIME_VERSIONS)
        self.stockouts = set()
        self.quota = {}
        self.keeps_preempted_nodes = False
        self.resources = {}
        self.history = []
        self.lock = threading.RLock()
        self._start_vms = start_vms
        self._starting = []
        self._operations = {}
        self._ids = itertools.count(1)
        self._schedule = Schedule()
        self._paid_before = 0.0

    def end(self):
        """Ends all VMs, and that time passes."""
        self._schedule.end()
        for thread in self._starting:
            thread.join()
        with self.lock:
            for resource in self.resources.values():
                self.stop_vms(resource)

    # What the API offers. Names are those of resources: "projects/P/locations/ZONE/nodes/N".

    def get(self, name):
        return self.find(name).body

    def list(self, parent, kind):
        """Returns the resources of a kind ("nodes", "queuedResources") in a zone, or in all ("locations/-")."""
        project, zone = parent.split("/")[1::2]
        if zone != "-":
            self._check_zone(parent)
        return [
            resource.body
            for name, resource in self.resources.items()
            if name.startswith(f"projects/{project}/") and name.split("/")[4] == kind and zone in ("-", resource.zone)
        ]

    def operation(self, name):
        if name not in self._operations:
            raise ApiError("NOT_FOUND", f"Operation '{name}' was not found")
        return self._operations[name]

    def create_queued_resource(self, parent, queued_resource_id, body):
        name = f"{parent}/queuedResources/{queued_resource_id}"
        specs = body.get("tpu", {}).get("nodeSpec", [])
        for spec in specs:
            self._check_node(parent, spec["node"])
            for node_id in _node_ids(spec, queued_resource_id):
                self._check_new(f"{parent}/nodes/{node_id}")
        self._check_new(name)
        self._check_quota(parent, sum(_size(spec["node"]) * len(_node_ids(spec, "")) for spec in specs))
        body = copy.deepcopy(body) | {"name": name, "createTime": _now(), "state": {}}
        queued = self.resources[name] = Resource(body)
        operation = self._begin("create", name)
        policy = body.get("queueingPolicy", {})
        expires = math.inf
        if "validUntilDuration" in policy:
            expires = time.monotonic() + float(policy["validUntilDuration"].removesuffix("s"))
        elif "validUntilTime" in policy or "validInterval" in policy:
            end = policy.get("validUntilTime") or policy["validInterval"]["endTime"]
            moment = datetime.datetime.fromisoformat(end.replace("Z", "+00:00"))
            expires = time.monotonic() + (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds()

        def accept(queued):
            self._finish(operation, response=body)
            self._enter(queued, "WAITING_FOR_RESOURCES")
            self._after(self.durations.waiting, queued, lambda queued: self._provision(queued, expires))

        self._enter(queued, "CREATING")
        self._after(self.durations.creating, queued, accept)
        return operation

    def delete_queued_resource(self, name, force):
        queued = self.find(name)
        self._check_not_deleting(queued)
        nodes = self._nodes(queued)
        if not force and queued.state not in _DELETABLE and (nodes or queued.state in ("CREATING", "PROVISIONING")):
            message = f"QueuedResource '{name}' is in state {queued.state} and has nodes; delete them or set force."
            raise ApiError("FAILED_PRECONDITION", message)
        operation = self._begin("delete", name)
        self._enter(queued, "DELETING")
        for node in nodes:
            self._enter(node, "DELETING")
            self.stop_vms(node)

        def remove(queued):
            for resource in [*nodes, queued]:
                self.resources.pop(resource.name, None)
            self._finish(operation)

        self._after(self.durations.deleting, queued, remove)
        return operation

    def create_node(self, parent, node_id, body):
        name = f"{parent}/nodes/{node_id}"
        self._check_node(parent, body)
        self._check_new(name)
        self._check_quota(parent, _size(body))
        operation = self._begin("create", name)
        node = self._new_node(name, body)

        def start(node):
            if node.zone in self.stockouts:
                del self.resources[name]
                self._finish(operation, error={"code": _RESOURCE_EXHAUSTED, "message": _no_capacity(node.zone)})
            else:
                self._start(node, lambda: self._finish(operation, response=node.body))

        self._after(self.durations.provisioning, node, start)
        return operation

    def delete_node(self, name):
        node = self.find(name)
        self._check_not_deleting(node)
        operation = self._begin("delete", name)
        self._enter(node, "DELETING")
        self.stop_vms(node)
        queued = self.resources.get(node.body.get("queuedResource"))
        if queued and queued.state in ("PROVISIONING", "ACTIVE"):
            self._enter(queued, "SUSPENDING", "USER")

        def remove(node):
            self.resources.pop(name, None)
            self._finish(operation)
            if queued and queued.state == "SUSPENDING":
                self._after(self.durations.suspending, queued, self._suspended)

        self._after(self.durations.deleting, node, remove)
        return operation

    def update_node(self, name, body, mask):
        node = self.find(name)
        operation = self._begin("update", name)
        node.body |= {key: body.get(key, {}) for key in mask.split(",")}
        for vm in node.vms:
            vm.authorize(*_ssh_keys(node.body))
            vm.set_attributes(node.body.get("metadata", {}))
        self._finish(operation, response=node.body)
        return operation

    def guest_attributes(self, name, worker_ids):
        """Returns the host keys of the VMs of a node, of all if none are asked for."""
        keys = [vm.host_key for vm in self.find(name).vms]
        wanted = [int(worker) for worker in worker_ids if worker != ""] or range(len(keys))
        return [
            {"queryPath": "", "queryValue": {"items": [{"namespace": "hostkeys", "key": kind, "value": value}]}}
            for kind, value in (keys[worker].split()[:2] for worker in wanted if worker < len(keys))
        ]

    def accelerator_types(self, parent):
        self._check_zone(parent)
        return [
            {"name": f"{parent}/acceleratorTypes/{family}-{size}", "type": f"{family}-{size}"}
            for family in self.zones[parent.split("/")[3]]
            for size in ACCELERATOR_SIZES[family]
        ]

    def versions(self, parent):
        self._check_zone(parent)
        return [
            {"name": f"{parent}/runtimeVersions/{version}", "version": version} for version in self.runtime_versions
        ]

    def locations(self, project):
        return [{"name": f"projects/{project}/locations/{zone}", "locationId": zone} for zone in self.zones]

    # What happens to resources.

    def find(self, name):
        """Returns the resource with this name, or a name that ends so (`x`, `nodes/x`); `ApiError` if there is none."""
        with self.lock:
            for resource in self.resources.values():
                if resource.name == name or resource.name.endswith(f"/{name}"):
                    return resource
        if name.startswith("projects/"):
            self._check_zone(name)
        raise ApiError("NOT_FOUND", f"Resource '{name}' was not found", [("ResourceInfo", {"resourceName": name})])

    def set_state(self, name, state):
        """Says that a resource is in this state from now on, and nothing else: no transition follows."""
        with self.lock:
            self._enter(self.find(name), state)

    def fail(self, name, message, code=_RESOURCE_EXHAUSTED):
        """Has a queued resource fail, as one that the service cannot serve."""
        with self.lock:
            queued = self.find(name)
            for node in self._nodes(queued):
                self._remove(node)
            self._enter(queued, "FAILED", "SERVICE")
            queued.body["state"]["failedData"] = {"error": {"code": code, "message": message}}

    def take_away(self, node, state):
        """Ends the VMs of a node, which then is PREEMPTED or TERMINATED; its queued resource is suspended."""
        with self.lock:
            if self.resources.get(node.name) is not node or node.state == "DELETING":
                return
            self._enter(node, state)
            self.stop_vms(node)
            queued = self.resources.get(node.body.get("queuedResource"))
            if queued and queued.state in ("PROVISIONING", "ACTIVE"):
                self._enter(queued, "SUSPENDING", "SERVICE")
                self._after(self.durations.suspending, queued, self._suspended)

    def after(self, seconds, function):
        self._schedule.after(seconds, function)

    def stop_vms(self, resource):
        if resource.paid_from is not None:
            self._paid_before += time.monotonic() - resource.paid_from
            resource.paid_from = None
        for vm in resource.vms:
            vm.kill()

    def paid_seconds(self):
        """Returns for how long nodes have cost, each from READY to its end."""
        with self.lock:
            running = (resource.paid_from for resource in self.resources.values())
            return self._paid_before + sum(time.monotonic() - begin for begin in running if begin is not None)

    def _provision(self, queued, expires):
        if time.monotonic() >= expires:
            self.fail(queued.name, "The request was not fulfilled before its valid until time", code=4)
        elif queued.zone in self.stockouts:
            self._after(0.05, queued, lambda queued: self._provision(queued, expires))
        else:
            self._enter(queued, "PROVISIONING")
            nodes = []
            for spec in queued.body["tpu"]["nodeSpec"]:
                for node_id in _node_ids(spec, queued.name.rpartition("/")[2]):
                    body = spec["node"] | {"queuedResource": queued.name}
                    if "spot" in queued.body:
                        body["schedulingConfig"] = {"spot": True}
                    nodes.append(self._new_node(f"{spec['parent']}/nodes/{node_id}", body))

            def activate():
                if all(node.state == "READY" for node in nodes) and queued.state == "PROVISIONING":
                    self._enter(queued, "ACTIVE")

            for node in nodes:
                self._after(self.durations.provisioning, node, lambda node: self._start(node, activate))

    def _new_node(self, name, body):
        project, zone = name.split("/")[1:4:2]
        number = next(self._ids)
        body = {
            "health": "HEALTHY",
            "cidrBlock": f"10.{number % 256}.0.0/29",
            "serviceAccount": {"email": f"{project}@developer.gserviceaccount.com"},
            "schedulingConfig": {},
            "shieldedInstanceConfig": {},
            "networkEndpoints": [],
            "networkConfig": {"enableExternalIps": True},
            "labels": {},
            "metadata": {},
            **{key: copy.deepcopy(value) for key, value in body.items() if value},
            "name": name,
            "id": str(1_000_000 + number),
            "apiVersion": "V2",
            "createTime": _now(),
        }
        body["networkConfig"]["network"] = f"projects/{project}/global/networks/default"
        body["networkConfig"]["subnetwork"] = f"projects/{project}/regions/{zone[:-2]}/subnetworks/default"
        node = self.resources[name] = Resource(body)
        self._enter(node, "CREATING")
        return node

    def _start(self, node, then):
        """Starts the VMs of a node, in a thread since it takes a while; it is READY then, and `then` is called."""

        def start():
            vms = self._start_vms(node.body)
            with self.lock:
                node.vms = vms
                if self.resources.get(node.name) is not node or node.state != "CREATING":
                    self.stop_vms(node)
                    return
                external = node.body["networkConfig"].get("enableExternalIps", False)
                for vm in vms:
                    endpoint = {"ipAddress": vm.address, "port": 8470}
                    if external:
                        endpoint["accessConfig"] = {"externalIp": vm.address}
                    node.body["networkEndpoints"].append(endpoint)
                    vm.authorize(*_ssh_keys(node.body))
                node.paid_from = time.monotonic()
                self._enter(node, "READY")
                then()

        thread = threading.Thread(target=start, daemon=True)
        self._starting.append(thread)
        thread.start()

    def _suspended(self, queued):
        for node in self._nodes(queued):
            if not (self.keeps_preempted_nodes and node.state in ("PREEMPTED", "TERMINATED")):
                self._remove(node)
        self._enter(queued, "SUSPENDED", queued.body["state"].get("stateInitiator"))

    def _remove(self, node):
        self.stop_vms(node)
        del self.resources[node.name]

    def _nodes(self, queued):
        return [node for node in self.resources.values() if node.body.get("queuedResource") == queued.name]

    def _enter(self, resource, state, initiator=None):
        resource.plan += 1
        self.history.append((resource.name.rpartition("/")[2], state))
        if resource.is_node:
            resource.body["state"] = state
        else:
            resource.body["state"] = {"state": state} | ({"stateInitiator": initiator} if initiator else {})
            if state in _STATES_WITH_DATA:
                resource.body["state"][f"{state.lower()}Data"] = {}

    def _after(self, seconds, resource, function):
        """Calls function(resource) after some time, unless something else became of it."""
        plan = resource.plan

        def call():
            with self.lock:
                if resource.plan == plan and self.resources.get(resource.name) is resource:
                    function(resource)

        self._schedule.after(seconds, call)

    # Operations.

    def _begin(self, verb, target):
        parent = target.rsplit("/", 2)[0]
        name = f"{parent}/operations/operation-{next(self._ids)}"
        operation = self._operations[name] = {
            "name": name,
            "metadata": {
                "@type": "type.googleapis.com/google.cloud.tpu.v2.OperationMetadata",
                "createTime": _now(),
                "target": target,
                "verb": verb,
                "apiVersion": "v2",
            },
            "done": False,
        }
        return operation

    def _finish(self, operation, response=None, error=None):
        def finish():
            with self.lock:
                operation["metadata"]["endTime"] = _now()
                if error:
                    operation["error"] = error
                else:
                    kind = "protobuf.Empty" if response is None else f"cloud.tpu.v2.{_kind(response['name'])}"
                    operation["response"] = {"@type": f"type.googleapis.com/google.{kind}", **(response or {})}
                operation["done"] = True

        self._schedule.after(self.durations.operation, finish)

    # Refusals.

    def _check_zone(self, name):
        project, zone = name.split("/")[1:4:2]
        if zone not in self.zones:
            message = f"Permission denied on 'locations/{zone}' (or it may not exist)."
            metadata = {"consumer": f"projects/{project}", "location": zone, "service": "tpu.googleapis.com"}
            info = {"reason": "LOCATION_POLICY_VIOLATED", "domain": "googleapis.com", "metadata": metadata}
            raise ApiError("PERMISSION_DENIED", message, [("ErrorInfo", info)])

    def _check_new(self, name):
        if name in self.resources:
            raise ApiError(
                "ALREADY_EXISTS", f"Resource '{name}' already exists", [("ResourceInfo", {"resourceName": name})]
            )

    def _check_not_deleting(self, resource):
        if resource.state == "DELETING":
            raise ApiError("FAILED_PRECONDITION", f"Resource '{resource.name}' is being deleted")

    def _check_node(self, parent, node):
        self._check_zone(parent)
        zone = parent.split("/")[3]
        kind = node.get("acceleratorType")
        if not any(offered["type"] == kind for offered in self.accelerator_types(parent)):
            message = (
                "Cloud TPU received a bad request. The requested accelerator configuration for accelerator type, "
                f'"{kind}", could not be found in the zonal accelerator configurations for "{zone}".; '
                f"the accelerator {kind} was not found in zone {zone} [EID: 0x5be9ca996f9773a4]"
            )
            raise ApiError("INVALID_ARGUMENT", message)
        if node.get("runtimeVersion") not in self.runtime_versions:
            message = (
                f"Cloud TPU received a bad request. The runtime version {node.get('runtimeVersion')} was not found."
            )
            raise ApiError("INVALID_ARGUMENT", message)

    def _check_quota(self, parent, wanted):
        """Counts what is asked for and not yet deleted, also if it has failed or is suspended."""
        zone = parent.split("/")[3]
        limit = self.quota.get(zone, math.inf)
        there = [resource for resource in self.resources.values() if resource.zone == zone]
        used = sum(_size(node.body) for node in there if node.is_node and "queuedResource" not in node.body)
        for queued in there:
            if not queued.is_node:
                used += sum(_size(spec["node"]) * len(_node_ids(spec, "")) for spec in queued.body["tpu"]["nodeSpec"])
        if used + wanted > limit:
            quota = "TPUV5sLitepodPerProjectPerZoneForTPUAPI"
            description = f"Quota '{quota}' exhausted. Limit {limit} in zone {zone}"
            failure = {"violations": [{"subject": "project:1037372895180", "description": description}]}
            message = f"Quota limit '{quota}' has been exceeded. Limit: {limit} in zone {zone}."
            raise ApiError("RESOURCE_EXHAUSTED", message, [("QuotaFailure", failure)])


def _no_capacity(zone):
    return (
        f'There is no more capacity in the zone "{zone}"; you can try in another zone where Cloud TPU Nodes are '
        "offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0x1bc8f9d790be9142]"
    )


def _size(node):
    return int(node["acceleratorType"].rpartition("-")[2])


def _node_ids(spec, queued_resource_id):
    slices = spec.get("multisliceParams") or spec.get("multiNodeParams")
    if not slices:
        return [spec["nodeId"]]
    prefix = slices.get("nodeIdPrefix", queued_resource_id)
    return [f"{prefix}-{number}" for number in range(slices["nodeCount"])]


def _ssh_keys(node):
    """Returns the public keys in a node's metadata, where they stand after "user:"."""
    lines = node.get("metadata", {}).get("ssh-keys", "").splitlines()
    return [line.partition(":")[2] for line in lines if line]


def _kind(name):
    return "Node" if "/nodes/" in name else "QueuedResource"


def _now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
