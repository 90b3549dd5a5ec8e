"""What to do about a request and its machine: a function of the states that Cloud TPU tells, and of nothing else.

States of queued resources and nodes: cloud.google.com/tpu/docs/queued-resources, google.cloud.tpu_v2alpha1. A state that is
not known here, now or in a year, is waited for.
"""

import enum


class Action(enum.Enum):
    """What the launcher does next."""

    CREATE = "create"  # there is nothing: ask for a machine
    WAIT = "wait"  # it is on its way
    WAIT_FOR_REPAIR = "wait for repair"  # it may come back by itself: for a limited time
    USE = "use"  # it is ready
    RECREATE = "recreate"  # it will never be ready again and counts against the quota: delete, ask anew
    WAIT_UNTIL_GONE = "wait until gone"  # its deletion goes on


_COMING = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING"}
_OVER = {"FAILED", "SUSPENDED"}
_NODE_LOST = {"PREEMPTED", "TERMINATED", "UNKNOWN", "STOPPED", "STOPPING", "HIDDEN", "HIDING"}
_NODE_REPAIRED = {"REPAIRING", "RESTARTING", "REIMAGING", "STARTING", "UNHIDING"}


def decide(request, node, is_lost=False):
    """Returns the `Action` for what was seen.

    Args:
        request: state of the queued resource; None if there is none.
        node: state of its machine; None if there is none.
        is_lost: whether the machine has not been reached, or was not healthy, for longer than the launcher bears.
    """
    if request is None:
        # A machine without its request, or one that somebody else made: it is in the way of ours.
        return Action.CREATE if node is None else Action.WAIT_UNTIL_GONE if node == "DELETING" else Action.RECREATE
    if request == "DELETING":
        return Action.WAIT_UNTIL_GONE
    if request in _OVER:
        return Action.RECREATE
    if request != "ACTIVE":
        return Action.WAIT  # one of _COMING, or a state that is new
    if node is None or node in _NODE_LOST:
        return Action.RECREATE
    if node == "READY":
        return Action.RECREATE if is_lost else Action.USE
    if node in _NODE_REPAIRED:
        return Action.RECREATE if is_lost else Action.WAIT_FOR_REPAIR
    return Action.WAIT


def is_known(request, node):
    """Returns whether both states are ones that this module knows."""
    requests = _COMING | _OVER | {None, "ACTIVE", "DELETING"}
    nodes = _NODE_LOST | _NODE_REPAIRED | {None, "CREATING", "READY", "DELETING"}
    return request in requests and node in nodes
