"""CRC-32C (Castagnoli), the checksum that Google Cloud Storage and TFRecord use, as eight hexadecimal digits."""

import google_crc32c

_CHUNK_BYTES = 8 << 20


def checksum(content):
    """Returns the CRC-32C of bytes."""
    return f"{google_crc32c.value(content):08x}"


def stream_checksum(file):
    """Returns the CRC-32C of what is left to read of a file that is open for binary reading, read in pieces."""
    value = 0
    while chunk := file.read(_CHUNK_BYTES):
        value = google_crc32c.extend(value, chunk)
    return f"{value:08x}"
