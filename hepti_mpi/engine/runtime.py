"""What the installed ONNX Runtime does right, by its version. Knows no operation, session or weight, and does not import it where it is
listed among the installed packages: ranks that rest need none."""

import re
import sys


def _installed() -> str:
    if "onnxruntime" in sys.modules:
        return str(sys.modules["onnxruntime"].__version__)
    from importlib.metadata import PackageNotFoundError  # which takes a third of that import's time
    from importlib.metadata import version as listed

    try:
        return listed("onnxruntime")
    except PackageNotFoundError:  # built under another name
        import onnxruntime

        return str(onnxruntime.__version__)


def version(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, to be compared."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


FOUND = version(_installed())
# Attention of ONNX: before, what is not finite in one request spoils all of a batch, and QuantizeLinear has no kernel of the same opset
ATTENDS = FOUND >= (1, 24)
# files of packed weights: before, a session that has float32 ones from such a file ends its process with a segmentation fault
KEEPS_PACKED = FOUND >= (1, 32)
