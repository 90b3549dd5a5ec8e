"""Google Compute Engine's word that a machine will go away: the metadata server says so some time before.

Spot machines are told 30 seconds before (`instance/preempted`), maintenance that ends or restarts a machine up to an hour
before (`instance/maintenance-event`). Sources: cloud.google.com/compute/docs/instances/create-use-spot and
cloud.google.com/compute/docs/metadata/getting-live-migration-notice.
"""

import os
import urllib.request

_HOST_VARIABLE = "GCE_METADATA_HOST"  # as Google's own libraries name it
_HOST = "metadata.google.internal"
_TIMEOUT_SECONDS = 5.0
_QUIET_EVENTS = ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")  # a machine that moves house goes on after a blink


def preemption_watchers(environment=os.environ, product_file="/sys/class/dmi/id/product_name"):
    """Returns what `Interruption` should ask: `[watcher]` on a machine of Google's, `[]` elsewhere.

    Args:
        environment: the environment variables; GCE_METADATA_HOST names another server, NO_GCE_CHECK=true asks none.
        product_file: where Linux says what machine this is.
    """
    is_told = _HOST_VARIABLE in environment
    is_unwanted = environment.get("NO_GCE_CHECK", "").lower() == "true"
    if not is_told and (is_unwanted or not _is_google(product_file)):
        return []
    host = environment.get(_HOST_VARIABLE) or _HOST

    def metadata_server():
        if _ask(host, "preempted").upper() == "TRUE":
            return "this machine is being preempted"
        event = _ask(host, "maintenance-event")
        if event and event.upper() not in _QUIET_EVENTS:
            return f"this machine goes away for maintenance ({event})"
        return None

    return [metadata_server]


def _is_google(product_file):
    try:
        with open(product_file, encoding="utf-8") as file:
            return "Google" in file.read()
    except OSError:
        return False


def _ask(host, name):
    """Returns what the metadata server says under a name of the instance; raises OSError if it does not answer."""
    url = f"http://{host}/computeMetadata/v1/instance/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # Never through a proxy: the server is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        return answer.read(1000).decode(errors="replace").strip()
