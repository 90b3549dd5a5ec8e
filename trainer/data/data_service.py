"""tf.data services: other machines that read, verify and decode rows, in the order of the lanes.

TensorFlow's service promises no order where several workers share a data set, and begins anew where a worker does. So each
service here has one worker and a part of its own: service w of W serves the examples i with `(i div H) mod W = w` of host
i mod H, exactly as if it were a host. Elements carry numbers, and one that comes out of turn ends the run, which resumes.
"""

import tensorflow as tf

from trainer.data.stored_rows import check_in_graph
from trainer.errors import InputError


def check_services(services, lanes, rows_per_element, num_hosts):
    """Raises InputError unless lanes and rows divide over the services of each host."""
    for address in services:
        if not str(address).startswith("grpc://"):
            raise InputError(f"the tf.data service {address!r} is no address: they look like grpc://host:5050")
    if len(set(services)) < len(services):
        raise InputError("a tf.data service is named twice: each has one worker, which serves one part")
    for name, value, parts in (
        ("lanes", lanes, len(services) * num_hosts),
        ("the rows of an element", rows_per_element, len(services)),
    ):
        if value % parts:
            raise InputError(f"{len(services)} tf.data services do not divide {name} = {value}: use fewer of them")


def read_through_services(services, rows_of, host, num_hosts, rows_per_element):
    """Returns the rows of one host, read by services.

    Args:
        services: their addresses, `grpc://host:port`.
        rows_of: callable `(host, num_hosts, rows_per_element)` that returns the dataset of a host.
        host, num_hosts: number of this host and of all.
        rows_per_element: rows in an element.

    Returns:
        `tf.data.Dataset` of dicts, as `rows_of` would give for this host.
    """
    count = len(services)

    def part(number, address):
        dataset = rows_of(host + num_hosts * number, num_hosts * count, rows_per_element // count).enumerate()
        mode = tf.data.experimental.service.ShardingPolicy.OFF
        return dataset.apply(tf.data.experimental.service.distribute(processing_mode=mode, service=address))

    def join(place, *parts):
        in_turn = tf.reduce_all(tf.stack([number for number, _ in parts]) == place)
        message = [
            "a tf.data service sent an element out of turn: it was started again while the run went on, or has more than "
            "one worker. Start one worker for each (`python -m tools.data_service`), and then the run, which resumes."
        ]
        with tf.control_dependencies([check_in_graph(in_turn, message)]):
            columns = [tf.nest.map_structure(tf.identity, columns) for _, columns in parts]
        return {name: _interleave([each[name] for each in columns]) for name in columns[0]}

    parts = tuple(part(number, address) for number, address in enumerate(services))
    return tf.data.Dataset.zip(parts).enumerate().map(lambda place, parts: join(place, *parts))


def _interleave(parts):
    """Returns `[parts * rows, ...]`: the first row of each part, then the second of each, ..."""
    stacked = tf.stack(parts, axis=1)
    return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], axis=0))
