"""GGUF files for tests, written as llama.cpp's own writer does."""

import struct

import numpy as np

KINDS = {bool: 7, str: 8, float: 6, int: 4}


def value(one):
    if isinstance(one, (list, tuple)):
        kind = KINDS[type(one[0])]
        return struct.pack("<IIQ", 9, kind, len(one)) + b"".join(value(item)[4:] for item in one)
    kind = KINDS[type(one)]
    plain = text(one) if kind == 8 else struct.pack({7: "<?", 6: "<f", 4: "<I"}[kind], one)
    return struct.pack("<I", kind) + plain


def text(one):
    return struct.pack("<Q", len(one.encode())) + one.encode()


def gguf(metadata, tensors, version=3, align=32):
    """Return the bytes of a file; tensors: name -> (number of the type, shape, bytes), or a float32 array."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value(one) for key, one in metadata.items())
    data, infos = b"", b""
    for name, one in tensors.items():
        kind, shape, content = one if isinstance(one, tuple) else (0, one.shape, np.ascontiguousarray(one, "<f4").tobytes())
        infos += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        infos += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % align)
    head += infos
    return head + bytes(-len(head) % align) + data
