"""Reads and decodes rows for runs on other machines: a tf.data service with the one worker that keeps their order.

    python -m tools.data_service --port 5050 --host reader-1          # on the machine that reads
    python -m trainer ... --gin_param 'pretraining_data.services=["grpc://reader-1:5050"]'

The data must have the same path there (gs://, or a shared disk). Only machines that you trust may reach the ports: whoever
does can have this process read any file that it can read.
"""

import argparse
import signal
import socket
import threading

import tensorflow as tf

from tools import command_line


def parser():
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.data_service", description=__doc__, formatter_class=command_line.HelpFormatter
    )
    result.add_argument("--port", type=int, default=5050, help="port of the service; its worker takes the next one")
    result.add_argument("--host", default=socket.gethostname(), help="name or address by which runs reach this machine")
    return result


def start(host, port):
    """Starts the service.

    Args:
        host: name or address by which runs reach this machine.
        port: of the service, the worker taking the next one; 0 for any two that are free.

    Returns:
        (address for runs, the servers, which must be kept).
    """
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=port))
    chosen = dispatcher.target.rpartition(":")[2]
    worker = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=f"localhost:{chosen}",
            worker_address=f"{host}:%port%",  # TensorFlow puts the worker's in
            port=port + 1 if port else 0,
        )
    )
    return f"grpc://{host}:{chosen}", (dispatcher, worker)


def main(arguments):
    """Runs the command until it is interrupted."""
    options = parser().parse_args(arguments)
    address, _servers = start(options.host, options.port)
    print(f"serving at {address}; Ctrl-C ends it", flush=True)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    return 0


if __name__ == "__main__":
    command_line.run(main)
