"""The inspect command: what a store holds. Needs one process; no MPI."""

from pathlib import Path

import click

from hepti_mpi.commands.options import FILE, words_options
from hepti_mpi.commands.paths import no_store, store_path
from hepti_mpi.commands.screen import SCREEN


@click.command()
@click.argument("store", type=FILE, required=False)
@words_options()
def inspect(store: Path | None) -> None:
    """Print what a store, or the one in weights/, holds: family, shapes, parameters, and bytes per strategy and rank count.

    \b
    Example:
      python -m hepti_mpi inspect weights/all-MiniLM-L6-v2.h5
    """
    from hepti_mpi.errors import StoreError
    from hepti_mpi.reporting.inspection import inspection_document, inspection_lines
    from hepti_mpi.weights.store import Store

    store = store or store_path(None)
    what = no_store(store)
    if what is not None:
        raise StoreError(what)
    with Store(store) as opened:
        SCREEN.show(inspection_lines(opened, SCREEN.width))
        SCREEN.document(inspection_document(opened))
