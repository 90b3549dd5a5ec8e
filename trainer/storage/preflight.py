"""Before any device is started: is what a run needs of Google Cloud Storage there, and may we use it?"""

import json
import os
import urllib.error
import urllib.request

from trainer.errors import StorageFailed
from trainer.storage import google_cloud

_READ = ("storage.objects.get", "storage.objects.list")
_WRITE = ("storage.objects.create", "storage.objects.delete")
# What TensorFlow's client can make a token of; Google's Python client knows more kinds.
_KNOWN_CREDENTIALS = ("authorized_user", "service_account")
# Which regions lie in a multi-region; https://cloud.google.com/storage/docs/locations
_CONTINENTS = {"US": ("us-",), "EU": ("europe-",), "ASIA": ("asia-",)}


def check_storage(reads, writes, report, zone=None):
    """Checks credentials, buckets, permissions and locations.

    Args:
        reads: paths that will be read; those not in Google Cloud Storage are passed over.
        writes: paths that will be written, and read.
        report: callable that shows one line to a person.
        zone: where the computation happens, such as `us-central1-b`; None asks Google's metadata server, if there is one.

    Raises:
        StorageFailed: naming what is missing and what to run to mend it.
        InputError: if a path names no bucket.
    """
    needed = {}
    for paths, permissions in ((reads, _READ), (writes, _READ + _WRITE)):
        for path in filter(google_cloud.is_google_cloud, paths):
            bucket, _ = google_cloud.split(path)
            needed.setdefault(bucket, set()).update(permissions)
    if not needed:
        return
    _check_credentials()
    zone = zone or machine_zone()
    for bucket, permissions in sorted(needed.items()):
        _check_bucket(bucket, permissions, report, zone)


def _check_credentials():
    """Refuses a kind of credentials that Google's client takes, but TensorFlow's would take for none."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if not path or os.environ.get("GOOGLE_AUTH_TOKEN_FOR_TESTING"):
        return
    try:
        with open(path, encoding="utf-8") as file:
            kind = json.load(file).get("type")
    except (OSError, ValueError, AttributeError) as error:
        raise StorageFailed(
            f"GOOGLE_APPLICATION_CREDENTIALS names {path}, which is no file of credentials ({error}): correct it, or unset "
            "it and run `gcloud auth application-default login`"
        ) from error
    if kind not in _KNOWN_CREDENTIALS:
        raise StorageFailed(
            f"{path} holds credentials of the kind {kind!r}, which TensorFlow's client of Google Cloud Storage does not "
            "understand: give the key of a service account, or run `gcloud auth application-default login` and unset "
            "GOOGLE_APPLICATION_CREDENTIALS"
        )


def _check_bucket(bucket, permissions, report, zone):
    path = f"{google_cloud.SCHEME}{bucket}"
    modules = google_cloud.modules()
    with google_cloud.explained(path):
        handle = google_cloud.client().bucket(bucket)
        try:
            granted = set(handle.test_iam_permissions(sorted(permissions)))
        except modules.exceptions.NotFound:
            raise StorageFailed(
                f"there is no bucket {path}: correct the name, or make it with `gcloud storage buckets create {path} "
                f"--location={_region(zone) if zone else 'REGION'}`"
            ) from None
    if missing := sorted(permissions - granted):
        role = "roles/storage.objectUser" if set(missing) & set(_WRITE) else "roles/storage.objectViewer"
        raise StorageFailed(
            f"the account may not use {path} as this run needs; it lacks {', '.join(missing)}. Run `gcloud storage buckets "
            f"add-iam-policy-binding {path} --member=... --role={role}`"
        )
    location = _location(handle, modules)
    access = "read and write" if permissions & set(_WRITE) else "read"
    report(f"{path}: {access}" + (f", location {location}" if location else ""))
    if location and zone and not lies_in(zone, location):
        report(
            f"warning: {path} lies in {location}, this machine in {zone}: reading is slower, and traffic between the two "
            f"is charged. A bucket in {_region(zone)} is better: `gcloud storage buckets create gs://... "
            f"--location={_region(zone)}`, then `python -m tools.sync`"
        )


def _location(handle, modules):
    """Returns the location of a bucket, or None if the account may use its objects, but not look at the bucket."""
    try:
        handle.reload()
    except modules.exceptions.GoogleAPIError:
        return None
    return handle.location


def _region(zone):
    return zone.rpartition("-")[0]


def lies_in(zone, location):
    """Returns whether a zone lies in the location of a bucket, as far as traffic between them is not charged.

    Args:
        zone: such as `us-central1-b`.
        location: a region (`US-CENTRAL1`), or a multi-region (`US`, `EU`, `ASIA`); of a dual-region, which is called
            otherwise (`NAM4`), it is not known, and taken for granted.
    """
    if location in _CONTINENTS:
        return zone.startswith(_CONTINENTS[location])
    return "-" not in location or _region(zone) == location.lower()


def machine_zone(timeout=1.0):
    """Returns the zone of this machine of Google's, or None anywhere else.

    Args:
        timeout: seconds to wait for the metadata server.
    """
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/zone", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
            return answer.read(1000).decode("ascii").rpartition("/")[2] or None
    except (OSError, ValueError, urllib.error.URLError):
        return None
