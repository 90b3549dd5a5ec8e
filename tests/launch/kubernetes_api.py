"""The API of Kubernetes on loopback, as far as kubectl needs it for jobs, services and pods; nothing is run.

What is sent is checked by the schemas of Kubernetes, as a real server does. A job has its pods at once, which run until the
test says otherwise.
"""

import contextlib
import http.server
import json
import re
import threading
import urllib.parse

KINDS = {"jobs": ("batch/v1", "Job"), "services": ("v1", "Service"), "pods": ("v1", "Pod")}
_PATH = re.compile(r"/(?:api|apis/batch)/v1/namespaces/([^/]+)/(jobs|services|pods)(?:/([^/]+))?(/log)?")


def _resources(version, names):
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": [
            {
                "name": name,
                "singularName": name[:-1],
                "namespaced": True,
                "kind": KINDS[name][1],
                "verbs": verbs,
                "shortNames": [],
            }
            for name in names
        ],
    }


def _schema(version, name):
    """Returns as much of OpenAPI as tells kubectl that this server validates what it gets."""
    group = version.rpartition("/")[0]
    path = f"/{'apis' if group else 'api'}/{version}/namespaces/{{namespace}}/{name}/{{name}}"
    kind = {"group": group, "version": "v1", "kind": KINDS[name][1]}
    patch = {"parameters": [{"name": "fieldValidation", "in": "query"}], "x-kubernetes-group-version-kind": kind}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": {path: {"patch": patch}}}


FIXED = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "batch",
                "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
            }
        ],
    },
    "/api/v1": _resources("v1", ["services", "pods"]),
    "/apis/batch/v1": _resources("batch/v1", ["jobs"]),
    "/openapi/v3": {
        "paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"},
            "apis/batch/v1": {"serverRelativeURL": "/openapi/v3/apis/batch/v1"},
        }
    },
    "/openapi/v3/api/v1": _schema("v1", "services"),
    "/openapi/v3/apis/batch/v1": _schema("batch/v1", "jobs"),
}


class Api:
    """The server's content.

    Args:
        check: called with an object that is to be made; raises an exception, whose message is the answer.

    Attributes:
        objects: {(namespace, kind in the plural, name): object}.
        logs: {name of a pod: text}.
        requests: list of (method, path with its query).
    """

    def __init__(self, check):
        self.check = check
        self.objects, self.logs, self.requests = {}, {}, []
        self._made = 0

    def of(self, kind):
        """Returns the objects of a kind."""
        return [content for (_, plural, _), content in self.objects.items() if plural == kind]

    def put(self, namespace, kind, content):
        """Adds an object as if it had been made."""
        self._made += 1
        content["metadata"] |= {
            "namespace": namespace,
            "uid": f"uid-{self._made}",
            "resourceVersion": str(self._made),
            "creationTimestamp": f"2026-01-01T00:{self._made // 60:02}:{self._made % 60:02}Z",
        }
        self.objects[namespace, kind, content["metadata"]["name"]] = content
        return content

    def add_pod(self, namespace, job, index):
        """Adds the pod of an index of a job."""
        labels = {
            **job["spec"]["template"]["metadata"]["labels"],
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        name = f"{job['metadata']['name']}-{index}-{self._made:05}"
        self.logs[name] = f"this is {name}\n"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": job["spec"]["template"]["spec"],
            "status": {"phase": "Running", "containerStatuses": [{"name": "trainer", "ready": True}]},
        }
        return self.put(namespace, "pods", pod)

    def make(self, namespace, kind, content):
        """Makes an object, and a job's pods; returns the object."""
        self.check(content)
        self.put(namespace, kind, content)
        if kind == "jobs":
            for index in range(content["spec"]["completions"]):
                self.add_pod(namespace, content, index)
        return content

    def delete(self, namespace, kind, name):
        """Deletes an object, and with a job its pods."""
        content = self.objects.pop((namespace, kind, name))
        if kind == "jobs":
            labels = content["spec"]["template"]["metadata"]["labels"].items()
            for key, pod in list(self.objects.items()):
                if key[:2] == (namespace, "pods") and labels <= pod["metadata"]["labels"].items():
                    del self.objects[key]
        return content


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def _answer(self, content, status=200):
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _status(self, code, reason, message):
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self._answer({**status, "reason": reason, "message": message}, code)

    def _handle(self):
        api = self.server.api
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        api.requests.append((self.command, self.path))
        if url.path in FIXED:
            self._answer(FIXED[url.path])
            return
        match = _PATH.fullmatch(url.path)
        if not match:
            self._status(404, "NotFound", f"the server could not find {url.path}")
            return
        namespace, kind, name, log = match.groups()
        if self.command == "POST":
            try:
                self._answer(api.make(namespace, kind, json.loads(body)), 201)
            except Exception as error:
                self._status(422, "Invalid", str(error))
        elif name and (namespace, kind, name) not in api.objects:
            self._status(404, "NotFound", f'{kind} "{name}" not found')
        elif log:
            self._answer(api.logs[name])
        elif self.command == "DELETE":
            self._answer(api.delete(namespace, kind, name))
        elif self.command == "GET" and name:
            self._answer(api.objects[namespace, kind, name])
        elif self.command == "GET":
            self._answer(self._list(namespace, kind, query))
        else:
            self._status(405, "MethodNotAllowed", self.command)

    do_GET = do_POST = do_DELETE = do_PATCH = _handle

    def _list(self, namespace, kind, query):
        wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part).items()
        items = [
            content
            for (where, plural, _), content in self.server.api.objects.items()
            if (where, plural) == (namespace, kind) and wanted <= content["metadata"].get("labels", {}).items()
        ]
        version, single = KINDS[kind]
        return {"kind": f"{single}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items}


@contextlib.contextmanager
def kubernetes_api(folder, check):
    """Yields (`Api`, path of a configuration for kubectl) while the server runs.

    Args:
        folder: for the configuration.
        check: as for `Api`.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.api = Api(check)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": address}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "loopback", "context": {"cluster": "test", "user": "nobody"}}],
            "current-context": "loopback",
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        try:
            yield server.api, path
        finally:
            server.shutdown()
            thread.join()
