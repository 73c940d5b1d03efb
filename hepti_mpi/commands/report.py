"""The report command: a page and pictures of what bench recorded. Needs one process; no MPI."""

from pathlib import Path

import click

from hepti_mpi.commands.options import FILE, words_options
from hepti_mpi.commands.screen import SCREEN


@click.command()
@click.argument("records", type=FILE)
@click.option("--output", type=FILE, required=True, help="Folder for the page and the pictures.")
@words_options(has_document=False)
def report(records: Path, output: Path) -> None:
    """Show what the bench command recorded, as a page and as pictures: latency, one request across ranks, predicted against measured.

    \b
    Example:
      python -m hepti_mpi report records.jsonl --output pictures
    """
    from hepti_mpi.errors import InputError
    from hepti_mpi.reporting.benches import AGAIN, read_benches
    from hepti_mpi.reporting.page import write_page
    from hepti_mpi.weights.places import other_document
    from hepti_mpi.wording import counted

    if other := other_document(records, "what bench --output recorded", AGAIN, own="bench"):
        raise InputError(other)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; name a folder, in which all is written")
    write_page(output / "report.html", records.name, read_benches(records))
    SCREEN.show(str(output / "report.html"))
    try:
        from hepti_mpi.reporting import plots
    except InputError as error:  # the page needs no more than this package does
        SCREEN.say(str(error))
        return
    pictures = [path for path in plots.write_report(records, output) if path.suffix == ".png"]
    SCREEN.show(f"beside it {counted(len(pictures), 'pictures')}, and requests as traces for ui.perfetto.dev")
