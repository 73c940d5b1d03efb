"""The files of a form (multipart/form-data). Pure: knows bytes and their boundaries.

Source: RFC 7578; a part's headers are of no use here, but for telling files from fields.
"""

import re

from hepti_mpi.serving.http.refusals import Refused

BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
MOST_FILES = 256
LARGEST_HEAD = 4 << 10


def parts(kind: str, body: bytes) -> list[bytes]:
    """Return the content of each file in a form of this content type. Raises Refused for a form that is none."""
    found = BOUNDARY.search(kind)
    if found is None:
        raise Refused(400, "the form has no boundary: let the program that sends it set the content type")
    line = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(line, MOST_FILES + 2)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        many = len(pieces) > MOST_FILES + 2
        raise Refused(413 if many else 400, f"the form has more than {MOST_FILES} parts" if many else "the form ends before its end")
    files = []
    for piece in pieces[1:-1]:
        head, end, content = piece.partition(b"\r\n\r\n")
        if not end or len(head) > LARGEST_HEAD:
            raise Refused(400, "the form has a part without headers")
        if b"filename=" in head.lower() or b"filename*=" in head.lower():
            files.append(content)
    return files
