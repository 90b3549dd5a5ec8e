"""Why examples come too slowly, judged by how they are stored and read."""

from trainer.amounts import byte_count

_BUSY = 0.8
_SMALL_BLOCK_BYTES = 256 << 10


def input_advice(plan, num_parallel_reads, cached, processor_share, num_hosts):
    """Returns the likely cause of a slow input and the setting to change.

    Args:
        plan: the `LanePlan`.
        num_parallel_reads: the reads at a time of one host.
        cached: whether shards of a bucket are being copied to a local disk.
        processor_share: share of the processors' time that this process uses.
        num_hosts: hosts that share the lanes.
    """
    if any(share.compressed for share in plan.shares):
        return (
            "gzipped shards are decompressed again for every block. Prepare the data without --compress, or as many more "
            "shards as are smaller"
        )
    if processor_share >= _BUSY:
        return (
            f"the processors are busy ({processor_share:.0%}), so rows are not decoded in time. Use a machine with more "
            "cores, or leave fewer other jobs on this one"
        )
    if not plan.rows.remote:
        return (
            "the disk is slow. Put the data on a faster one, or set pretraining_data.num_parallel_reads above "
            f"{num_parallel_reads}"
        )
    if cached:
        return "shards are still being copied to the cache; it should pass when they are there"
    lanes = plan.lanes // num_hosts
    if lanes < num_parallel_reads:
        return (
            f"a host reads only {lanes} lanes, one request at a time each. Set pretraining_data.lanes above {plan.lanes} in "
            "a new run (it changes the order of the data), or pretraining_data.cache_dir to a folder on a local disk"
        )
    block_bytes = max(share.block_rows for share in plan.shares) * plan.rows.row_bytes
    if block_bytes < _SMALL_BLOCK_BYTES:
        return (
            f"a request brings only {byte_count(block_bytes)}. Set pretraining_data.block_rows above "
            f"{max(share.block_rows for share in plan.shares)} in a new run (it changes the order of the data), or "
            "pretraining_data.cache_dir to a folder on a local disk"
        )
    return (
        "the bucket answers slowly. Set pretraining_data.cache_dir to a folder on a local disk, or "
        f"pretraining_data.num_parallel_reads above {num_parallel_reads}, or use a bucket in this machine's region"
    )
