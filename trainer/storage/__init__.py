"""Storage: files, local or `gs://`. The only room that knows how a path is stored.

`files` reads and writes any path through TensorFlow's file systems; `google_cloud` does what needs Google's own client:
verified transfers in parallel, and changes on condition.
"""

from trainer.storage.checksums import checksum
from trainer.storage.files import (
    atomic_writer,
    copy_file,
    exists,
    file_checksum,
    flush_to_disk,
    is_folder,
    is_remote,
    join,
    listing,
    local_copies,
    make_folder,
    read_bytes,
    read_json,
    read_text,
    remove,
    rename,
    size,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "atomic_writer",
    "checksum",
    "copy_file",
    "exists",
    "file_checksum",
    "flush_to_disk",
    "is_folder",
    "is_remote",
    "join",
    "listing",
    "local_copies",
    "make_folder",
    "read_bytes",
    "read_json",
    "read_text",
    "remove",
    "rename",
    "size",
    "write_bytes",
    "write_json",
    "write_text",
]
