"""What ranks run that try one command line after the other, since to start takes longer than to refuse: `in_turn.py FILE`.

FILE: a JSON list of command lines. Of each, every rank writes what it says and the code that it would have ended with beside FILE.
"""

import json
import os
import sys
from pathlib import Path

from hepti_mpi.__main__ import _command
from hepti_mpi.comm.launcher import launched_rank


def main(path: Path) -> None:
    rank = launched_rank()
    for number, words in enumerate(json.loads(path.read_text())):
        sys.argv = ["hepti_mpi", *words]
        for stream, name in ((1, "out"), (2, "err")):
            file = os.open(path.with_suffix(f".{number}.{rank}.{name}"), os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream)
            os.close(file)
        code, _ = _command(rank)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        path.with_suffix(f".{number}.{rank}.code").write_text(str(code))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
