"""Brings what a bitmap says has changed (or, without one, all) from an export into a file: URI FILE [BITMAP]."""

import sys

import nbd

PIECE = 1 << 20
DIRTY = 1

uri, path = sys.argv[1:3]
context = f"qemu:dirty-bitmap:{sys.argv[3]}" if len(sys.argv) > 3 else None
handle = nbd.NBD()
if context:
    handle.add_meta_context(context)
handle.connect_uri(uri)
size = handle.get_size()
pulled = 0


def extents(offset, length):
    found = []

    def collect(name, _offset, entries, _error):
        if name == context:
            found.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, collect)
    return found


with open(path, "r+b" if context else "w+b") as target:
    target.truncate(size)
    at = 0
    while at < size:
        length = min(PIECE, size - at)
        for part, flags in extents(at, length) if context else [(length, DIRTY)]:
            part = min(part, length)
            if flags & DIRTY:
                target.seek(at)
                target.write(handle.pread(part, at))
                pulled += part
            at += part
            length -= part
            if length == 0:
                break
handle.shutdown()
print(pulled)
