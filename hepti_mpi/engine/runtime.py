"""What the installed ONNX Runtime does right, by its version, and that it tells nobody what it does: whoever imports it imports this.
Knows no operation, session or weight."""

import re

import onnxruntime


def version(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


onnxruntime.disable_telemetry_events()  # its wheels from 1.32 on have an address on the internet to tell what is run and on what

FOUND = version(onnxruntime.__version__)
# Attention of ONNX: before, what is not finite in one request spoils all of a batch, and QuantizeLinear has no kernel of the same opset
ATTENDS = FOUND >= (1, 24)
# files of packed weights: before, a session that has float32 ones from such a file ends its process with a segmentation fault
KEEPS_PACKED = FOUND >= (1, 32)
