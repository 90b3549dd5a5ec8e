"""A TPU VM on this machine: a home folder, an sshd on a loopback address, a metadata server and the processes inside.

    vm = TpuVm(folder, "127.1.2.3", environment={"PATH": ...}, startup_script="...", attributes={"tpu-env": ...})
    vm.authorize("ssh-ed25519 AAAA...")
    ...                                # ssh -p vm.ssh_port 127.1.2.3 runs commands in vm.home, scp copies there
    vm.announce_preemption()           # its metadata server says so
    vm.kill()                          # every process that ever started there ends

The VM is a process of its own, which does as `init` does: whatever starts there, through ssh or by the startup script,
stays below it also when it detaches itself (PR_SET_CHILD_SUBREAPER). The VM ends with the process that made it, in
whatever way that ends. It is no sandbox: what runs there runs as the current user and sees this machine's files and
processes.

    python tpu_vm.py     settings come as a line of JSON on standard input, then commands; its end ends the VM
"""

import contextlib
import ctypes
import hashlib
import http.server
import json
import os
import pwd
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_SSHD_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitUserRC no
PrintMotd no
PrintLastLog no
UseDNS no
MaxStartups 100
SetEnv "HOME={home}"
Subsystem sftp {sftp_server}
ForceCommand {folder}/session
"""

# sshd goes to the home that the system knows for this user; a session goes on to the VM's.
_SESSION = """\
#!/bin/bash
{exports}
cd "$HOME" || exit 1
case "$SSH_ORIGINAL_COMMAND" in
  "") exec bash -l ;;
  *) exec bash -c "$SSH_ORIGINAL_COMMAND" ;;
esac
"""


def missing():
    """Returns why there can be no TPU VMs on this machine, None if there can."""
    if not sys.platform.startswith("linux"):
        return "TPU VMs are simulated on Linux only"
    for program in ("sshd", "ssh", "ssh-keygen", "bash"):
        if _find(program) is None:
            return f"{program} is not installed (Debian: openssh-server)"
    return None if _sftp_server() else "there is no sftp-server (Debian: openssh-sftp-server)"


class TpuVm:
    """A running VM.

    Args:
        folder: where its files go; made anew.
        address: loopback address of its own, 127.x.y.z.
        environment: dict of environment variables of its processes, besides HOME, TMPDIR, USER and GCE_METADATA_HOST.
        startup_script: text of a bash script that runs when the VM starts, with its output in `folder/startup.log`.
        attributes: dict of what the metadata server gives under `instance/attributes/`.
        zone, project: for the metadata server.

    Attributes:
        address, ssh_port: where its sshd listens.
        home: the folder in which commands begin.
        host_key: its public key, as a line.
        metadata_host: "address:port" of the metadata server, which its processes find in GCE_METADATA_HOST.
        alive: whether it runs.
    """

    def __init__(self, folder, address, *, environment=None, startup_script=None, attributes=None, zone="", project=""):
        self.folder = os.path.abspath(folder)
        self.address = address
        self.home = os.path.join(self.folder, "home")
        for name in ("home", "tmp"):
            os.makedirs(os.path.join(self.folder, name))
        key = os.path.join(self.folder, "host_key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], check=True)
        with open(f"{key}.pub", encoding="utf-8") as file:
            self.host_key = file.read().strip()
        self.authorize()
        settings = {
            "folder": self.folder,
            "address": address,
            "home": self.home,
            "environment": environment or {},
            "startup_script": startup_script,
            "attributes": attributes or {},
            "zone": zone,
            "project": project,
        }
        with open(os.path.join(self.folder, "vm.log"), "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        self._lock = threading.Lock()
        self._tell(json.dumps(settings))
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            with open(log.name, encoding="utf-8") as file:
                raise RuntimeError(f"the TPU VM did not start:\n{file.read()}")
        ports = json.loads(line)
        self.ssh_port = ports["ssh"]
        self.metadata_host = f"{address}:{ports['metadata']}"

    @property
    def alive(self):
        return self._process.poll() is None

    def authorize(self, *public_keys):
        """Lets in whoever holds one of these keys (lines as in `authorized_keys`), and nobody else."""
        path = os.path.join(self.folder, "authorized_keys")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.writelines(f"{key}\n" for key in public_keys)
        os.replace(f"{path}.new", path)

    def processes(self):
        """Returns the ids of the processes on the VM, but not of the one that is the VM."""
        return _descendants(self._process.pid) if self.alive else []

    def announce_preemption(self, sigterm=False):
        """Has the metadata server say that the VM will be preempted.

        Args:
            sigterm: whether all its processes but sshd get SIGTERM, as when a system shuts down.
        """
        self._tell("preempt sigterm" if sigterm else "preempt")

    def announce_maintenance(self, event):
        """Has the metadata server say `event` ("TERMINATE_ON_HOST_MAINTENANCE", "NONE") for `maintenance-event`."""
        self._tell(f"maintenance {event}")

    def set_attributes(self, attributes):
        """Changes what the metadata server gives under `instance/attributes/`."""
        self._tell("attributes " + json.dumps(attributes))

    def freeze(self):
        """Stops all processes where they are: connections stay open, and nobody answers."""
        self._tell("freeze")

    def kill(self):
        """Ends every process on the VM, and the VM; returns when they are gone."""
        with contextlib.suppress(OSError):  # it has gone already
            self._process.stdin.close()
        self._process.terminate()  # a fork of this process may hold the other end of its standard input open
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _tell(self, line):
        with self._lock, contextlib.suppress(OSError, ValueError):  # dead machines do not listen
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


# What follows runs as the VM.


class _Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server: a text for a path, and `?wait_for_change=true`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        parameters = dict(urllib.parse.parse_qsl(url.query))
        if self.headers.get("Metadata-Flavor") != "Google":
            self._send(403, "Missing Metadata-Flavor:Google header.")
            return
        name = url.path.removeprefix("/computeMetadata/v1/")
        with self.server.changed:
            text = self.server.text(name)
            if text is not None and parameters.get("wait_for_change") == "true":
                seen = parameters.get("last_etag", _etag(text))
                timeout = float(parameters["timeout_sec"]) if "timeout_sec" in parameters else None
                self.server.changed.wait_for(lambda: _etag(self.server.text(name)) != seen, timeout)
                text = self.server.text(name)
        if text is None:
            self._send(404, "Not found")
        else:
            self._send(200, text)

    def _send(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/text")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", _etag(text))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Keeps quiet."""


class _MetadataServer(http.server.ThreadingHTTPServer):
    """Serves a dict of texts by path below `/computeMetadata/v1/`."""

    daemon_threads = True

    def __init__(self, address, texts):
        super().__init__((address, 0), _Metadata)
        self.texts = texts
        self.changed = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def text(self, name):
        if name in self.texts:
            return self.texts[name]
        names = {path[len(name) :].split("/")[0] for path in self.texts if path.startswith(name)}
        return "\n".join(sorted(names)) + "\n" if names and (not name or name.endswith("/")) else None

    def change(self, texts):
        with self.changed:
            self.texts |= texts
            self.changed.notify_all()


def _etag(text):
    return hashlib.sha256((text or "").encode()).hexdigest()[:16]


def _find(program):
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _sftp_server():
    return next((path for path in _SFTP_SERVERS if os.path.exists(path)), None)


def _parents():
    """Returns a dict of the parent of every process of this machine that is not a zombie."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    parents[int(name)] = int(parent)
    return parents


def _descendants(pid):
    parents = _parents()
    found, last = [], {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found.extend(last)
    return found


def _signal_all(number, but=()):
    for pid in _descendants(os.getpid()):
        if pid not in but:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _reap():
    """Takes leave of children that ended; returns whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _end_all():
    """Kills whatever is below this process; orphans come to it, so that in the end nothing can be left."""
    while _reap():
        _signal_all(signal.SIGKILL)
        time.sleep(0.005)


def _start_sshd(settings, environment):
    """Starts sshd and waits until it listens; returns process and port."""
    folder, address = settings["folder"], settings["address"]
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    session = os.path.join(folder, "session")
    with open(session, "w", encoding="utf-8") as file:
        exports = (f"export {name}={shlex.quote(value)}" for name, value in environment.items())
        file.write(_SESSION.format(exports="\n".join(exports)))
    os.chmod(session, 0o755)
    path = os.path.join(folder, "sshd_config")
    with open(path, "w", encoding="utf-8") as file:
        file.write(_SSHD_CONFIG.format(**settings, port=port, sftp_server=_sftp_server()))
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd of root insists
    sshd = subprocess.Popen([_find("sshd"), "-D", "-e", "-f", path], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    while sshd.poll() is None:
        try:
            socket.create_connection((address, port)).close()
            return sshd, port
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise RuntimeError("sshd ended at once")


def _run(ended):
    """Is the VM until standard input ends or the event `ended` is set."""
    commands = sys.stdin.buffer.raw  # unbuffered, for `select`
    settings = json.loads(commands.readline())
    zone, project = settings["zone"], settings["project"]
    metadata = _MetadataServer(
        settings["address"],
        {
            "instance/preempted": "FALSE",
            "instance/maintenance-event": "NONE",
            "instance/zone": f"projects/{project}/zones/{zone}",
            "instance/hostname": os.path.basename(settings["folder"]),
            "project/project-id": project,
        }
        | {f"instance/attributes/{name}": text for name, text in settings["attributes"].items()},
    )
    user = pwd.getpwuid(os.getuid()).pw_name
    environment = {"PATH": f"/usr/local/bin:/usr/bin:/bin:{_SBIN}", "LANG": "C.UTF-8"} | settings["environment"]
    environment |= {
        "HOME": settings["home"],
        "TMPDIR": os.path.join(settings["folder"], "tmp"),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "GCE_METADATA_HOST": f"{settings['address']}:{metadata.server_port}",
    }
    sshd, port = _start_sshd(settings, environment)
    if settings["startup_script"]:
        path = os.path.join(settings["folder"], "startup_script")
        with open(path, "w", encoding="utf-8") as file:
            file.write(settings["startup_script"])
        with open(os.path.join(settings["folder"], "startup.log"), "wb") as log:
            subprocess.Popen(
                ["bash", path],
                cwd=settings["home"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    print(json.dumps({"ssh": port, "metadata": metadata.server_port}), flush=True)

    while not ended.is_set():
        _reap()
        if not select.select([commands], [], [], 0.1)[0]:
            continue
        command, _, argument = commands.readline().decode().strip().partition(" ")
        if not command:  # the end of standard input
            return
        if command == "preempt":
            metadata.change({"instance/preempted": "TRUE"})
            if argument:
                _signal_all(signal.SIGTERM, but={sshd.pid})
        elif command == "maintenance":
            metadata.change({"instance/maintenance-event": argument})
        elif command == "attributes":
            metadata.change({f"instance/attributes/{name}": text for name, text in json.loads(argument).items()})
        elif command == "freeze":
            _signal_all(signal.SIGSTOP)


def main():
    """Is a VM until standard input ends."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl failed")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        _run(ended)
    finally:
        _end_all()


if __name__ == "__main__":
    main()
