"""Strategies by name, and the arithmetic of the global batch."""

import dataclasses
import functools
import json
import os

import keras
import tensorflow as tf

from trainer.errors import InputError

STRATEGIES = ("auto", "cpu", "one_device", "mirrored", "multi_worker", "tpu")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The devices of a run and how they work together.

    Attributes:
        name: name of the strategy, one of `STRATEGIES` but `auto`.
        strategy: the `tf.distribute.Strategy`.
        process: number of this process.
        num_processes: number of processes that run the program.
        num_hosts: number of hosts that read data, the processes or the hosts of a TPU slice.
        devices: names of this process's devices.
    """

    name: str
    strategy: tf.distribute.Strategy
    process: int
    num_processes: int
    num_hosts: int
    devices: tuple

    @property
    def replicas(self):
        """Number of replicas in all processes."""
        return self.strategy.num_replicas_in_sync

    @property
    def is_chief(self):
        """Whether this process writes what is written once."""
        return self.process == 0

    @property
    def device_kind(self):
        """`CPU`, `GPU` or `TPU`."""
        return device_kind(self.strategy)

    def describe(self):
        """Returns the first line a run prints."""
        names = ", ".join(device.split("device:")[-1] for device in self.devices)
        processes = f", process {self.process} of {self.num_processes}" if self.num_processes > 1 else ""
        return f"strategy {self.name}, {self.replicas} replica{'s' * (self.replicas != 1)} on {names}{processes}"

    def any(self, flag):
        """Returns whether `flag` is true in any process; all processes must ask, and all get the same answer."""
        if self.num_processes == 1:
            return bool(flag)
        return bool(self._sum_over_replicas(tf.constant(int(flag))) > 0)

    def from_chief(self, number):
        """Returns the chief's integer in every process; all processes must ask."""
        if self.num_processes == 1:
            return number
        own = number if self.is_chief else 0
        return int(self._sum_over_replicas(tf.constant(own))) // (self.replicas // self.num_processes)

    @functools.cached_property
    def _sum_over_replicas(self):
        def replica(number):
            # The sum goes to the number's device; an argument of a function has none, a result has this replica's.
            number = tf.identity(number)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, number)

        def everywhere(number):
            return self.strategy.experimental_local_results(self.strategy.run(replica, args=(number,)))[0]

        return tf.function(everywhere)


def _resolve_auto():
    """Chooses a strategy by what is there."""
    if len(_cluster_workers()) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    gpus = tf.config.list_physical_devices("GPU")
    return "mirrored" if len(gpus) > 1 else "one_device" if gpus else "cpu"


def _cluster_workers():
    """Returns the addresses of the workers in TF_CONFIG; empty without one."""
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return []
    try:
        cluster = json.loads(text).get("cluster", {})
        return list(cluster.get("chief", [])) + list(cluster.get("worker", []))
    except (ValueError, AttributeError) as error:
        raise InputError(f"the environment variable TF_CONFIG is not valid JSON of a cluster: {error}") from error


def create_cluster(strategy="auto", devices="all"):
    """Makes a strategy; must run before any other TensorFlow operation.

    Args:
        strategy: `auto`; `cpu` (logical CPU devices of one process); `one_device`; `mirrored` (GPUs of one process);
            `multi_worker` (several processes, from TF_CONFIG or Slurm's environment); `tpu`.
        devices: number of devices, or `all`. For `cpu` the number of logical devices, `all` being one.

    Returns:
        `Cluster`.

    Raises:
        InputError: if there is no such strategy or there are too few devices.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"there is no strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if devices != "all" and not (isinstance(devices, int) and devices >= 1):
        raise InputError(f"devices must be 'all' or a number of at least 1, got {devices!r}")
    name = _resolve_auto() if strategy == "auto" else strategy
    return {
        "cpu": _cpu,
        "one_device": _one_device,
        "mirrored": _mirrored,
        "multi_worker": _multi_worker,
        "tpu": _tpu,
    }[name](devices)


def _cpu(devices):
    count = 1 if devices == "all" else devices
    physical = tf.config.list_physical_devices("CPU")[0]
    wanted = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        tf.config.set_logical_device_configuration(physical, wanted)
    except RuntimeError:
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise
    names = tuple(device.name for device in tf.config.list_logical_devices("CPU"))[:count]
    if count == 1:
        return Cluster("cpu", tf.distribute.OneDeviceStrategy(names[0]), 0, 1, 1, names)
    return Cluster("cpu", mirrored_on_cpu(names), 0, 1, 1, names)


def mirrored_on_cpu(names):
    """Returns a MirroredStrategy over logical CPU devices, which sums on one of them, always in the same order."""
    return tf.distribute.MirroredStrategy(list(names), cross_device_ops=tf.distribute.ReductionToOneDevice())


def _one_device(devices):
    if devices not in ("all", 1):
        raise InputError(f"strategy 'one_device' has one device, got devices = {devices}; use 'mirrored' for several")
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return Cluster("one_device", tf.distribute.OneDeviceStrategy(found[0].name), 0, 1, 1, (found[0].name,))


def _mirrored(devices):
    found = [device.name for device in tf.config.list_logical_devices("GPU")]
    count = len(found) if devices == "all" else devices
    if not found or count > len(found):
        raise InputError(
            f"strategy 'mirrored' wants {'a GPU' if devices == 'all' else f'{devices} GPUs'} and TensorFlow sees "
            f"{len(found) or 'none'}. Use strategy 'cpu' (devices is then the number of logical devices), or check "
            "the driver with nvidia-smi and CUDA_VISIBLE_DEVICES."
        )
    names = tuple(found[:count])
    return Cluster("mirrored", tf.distribute.MirroredStrategy(list(names)), 0, 1, 1, names)


def _multi_worker(devices):
    if not _cluster_workers() and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
    elif _cluster_workers():
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    else:
        raise InputError(
            "strategy 'multi_worker' needs a cluster: start it with launch/local.sh, or set TF_CONFIG. To look at such a "
            "run in one process add --gin_param 'strategy=\"auto\"'"
        )
    if devices != "all":
        gpus = tf.config.list_physical_devices("GPU")
        if devices > max(1, len(gpus)):
            raise InputError(f"devices = {devices}, but this process sees {len(gpus)} GPUs")
        if gpus:
            tf.config.set_visible_devices(gpus[:devices], "GPU")
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    resolver = strategy.cluster_resolver
    spec = resolver.cluster_spec()
    num_processes = sum(spec.num_tasks(job) for job in spec.jobs if job in ("chief", "worker"))
    has_chief = "chief" in spec.jobs
    process = resolver.task_id + (1 if has_chief and resolver.task_type == "worker" else 0)
    local = tuple(strategy.extended.worker_devices)
    return Cluster("multi_worker", strategy, process, num_processes, num_processes, local)


def _tpu(devices):
    if devices != "all":
        raise InputError(f"strategy 'tpu' uses the whole slice, got devices = {devices}")
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name not in ("", "local"):
            tf.config.experimental_connect_to_cluster(resolver)
        topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise InputError(
            f"no TPU could be started (TPU_NAME is {name!r}): {error}. TensorFlow runs on TPU v2 to v5p with the package "
            "tensorflow-tpu; v6e and newer have no TensorFlow support."
        ) from error
    # v5p needs the assignment spelt out, and it does no harm elsewhere.
    replicas = len(tf.config.list_logical_devices("TPU"))
    assignment = tf.tpu.experimental.DeviceAssignment.build(topology, num_replicas=replicas)
    strategy = tf.distribute.TPUStrategy(resolver, experimental_device_assignment=assignment)
    hosts = max(1, strategy.extended.num_hosts)
    return Cluster("tpu", strategy, 0, 1, hosts, tuple(strategy.extended.worker_devices))


@dataclasses.dataclass(frozen=True)
class BatchArithmetic:
    """How a global batch is made up: `global_batch == replicas * accumulation * microbatch`.

    Attributes:
        global_batch: examples in an optimizer step.
        replicas: number of replicas in all processes.
        accumulation: microbatches of a replica in a step.
        microbatch: examples that go through the model at once.
    """

    global_batch: int
    replicas: int
    accumulation: int
    microbatch: int

    @property
    def rows_per_replica(self):
        """Examples of one replica in a step."""
        return self.accumulation * self.microbatch

    def __str__(self):
        return (
            f"global {self.global_batch} = {self.replicas} replica{'s' * (self.replicas != 1)} x "
            f"{self.accumulation} accumulation x {self.microbatch} microbatch"
        )


def _nearest_multiples(number, divisor):
    """Returns the nearest multiples of `divisor` below and above `number`, as text."""
    below = number // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{below + divisor}"


def divide_batch(global_batch, replicas, microbatch, largest_microbatch):
    """Splits the global batch.

    Args:
        global_batch: examples in an optimizer step.
        replicas: number of replicas.
        microbatch: examples that go through the model at once, or `auto`.
        largest_microbatch: what `auto` may take at most, for want of memory.

    Returns:
        `BatchArithmetic`. `auto` takes the largest power of two that divides a replica's part, or all of that part if
        it fits.

    Raises:
        InputError: if something does not divide, with the nearest numbers that do.
    """
    if not isinstance(global_batch, int) or global_batch < 1:
        raise InputError(f"global_batch must be a whole number of at least 1, got {global_batch!r}")
    if global_batch % replicas:
        raise InputError(
            f"global_batch {global_batch} does not divide among {replicas} replicas: "
            f"take {_nearest_multiples(global_batch, replicas)}"
        )
    rows = global_batch // replicas
    if microbatch == "auto":
        if rows <= largest_microbatch:
            microbatch = rows
        else:
            microbatch = 1
            while rows % (2 * microbatch) == 0 and 2 * microbatch <= largest_microbatch:
                microbatch *= 2
    elif not isinstance(microbatch, int) or microbatch < 1:
        raise InputError(f"microbatch must be 'auto' or a whole number of at least 1, got {microbatch!r}")
    if rows % microbatch:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        below = max(n for n in divisors if n < microbatch) if microbatch > 1 else 1
        above = [n for n in divisors if n > microbatch]
        raise InputError(
            f"microbatch {microbatch} does not divide the {rows} examples of a replica (global_batch {global_batch} on "
            f"{replicas} replicas): take {below}{f' or {above[0]}' if above else ''}, or global_batch "
            f"{_nearest_multiples(global_batch, replicas * microbatch)}"
        )
    return BatchArithmetic(global_batch, replicas, rows // microbatch, microbatch)


def device_kind(strategy):
    """Returns what a strategy's replicas run on: `CPU`, `GPU` or `TPU`."""
    return tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type


def replica_local(variable):
    """Returns this replica's own copy of a variable, to read and assign inside a compiled program.

    All replicas compute the same update from the same reduced gradients, so each assigns its own copy and nothing
    travels. On TPU the strategy's variables do this by themselves.

    Args:
        variable: Keras variable or `tf.Variable`, mirrored or not.
    """
    if isinstance(variable, keras.Variable):
        variable = variable.value
    strategy = tf.distribute.get_strategy()
    context = tf.distribute.get_replica_context()
    if context is None or isinstance(strategy, tf.distribute.TPUStrategy):
        return variable
    copies = strategy.experimental_local_results(variable)
    if len(copies) == 1:
        return copies[0]
    # Processes number their replicas one after another, each having the same number of them.
    return copies[tf.get_static_value(context.replica_id_in_sync_group) % len(copies)]
