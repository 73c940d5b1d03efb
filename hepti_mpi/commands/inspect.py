"""The inspect command: what a store holds. Needs one process; no MPI."""

from pathlib import Path

import click

from hepti_mpi.commands.options import FILE, one_of, words_options
from hepti_mpi.commands.paths import kept_folder, store_path
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.weights.places import no_store


@click.command()
@click.argument("store", type=FILE, required=False)
@click.option("--weights-cache", type=FILE, help="Print instead what this host keeps of weights as kernels read them in this folder.")
@one_of("--clear", words=["old", "all"], help="Remove of it what is of another processor or not used for a day; or all.")
@words_options()
def inspect(store: Path | None, weights_cache: Path | None, clear: str | None) -> None:
    """Print what a store, or the one in weights/, holds: family, shapes, parameters, and bytes per strategy and rank count.

    \b
    Examples:
      python -m hepti_mpi inspect weights/all-MiniLM-L6-v2.h5
      python -m hepti_mpi inspect --weights-cache ~/.cache/hepti --clear old
    """
    if weights_cache is not None:
        if store is not None:
            raise click.UsageError("use just one of STORE and --weights-cache")
        _kept(weights_cache, clear)
        return
    if clear is not None:
        raise click.UsageError("--clear is for --weights-cache FOLDER")
    from hepti_mpi.errors import StoreError
    from hepti_mpi.reporting.inspection import inspection_document, inspection_lines
    from hepti_mpi.weights.store import Store

    store = store or store_path(None)
    what = no_store(store)
    if what is not None:
        raise StoreError(what)
    with Store(store) as opened:
        if SCREEN.json:  # which says the same, and is as long in the making
            SCREEN.document(inspection_document(opened))
        else:
            SCREEN.show(inspection_lines(opened, SCREEN.width))


def _kept(cache: Path, clear: str | None) -> None:
    """Print what is kept in a folder, after what is to be removed is gone."""
    from hepti_mpi.errors import StoreError, reason_of
    from hepti_mpi.reporting.inspection import kept_document, kept_lines
    from hepti_mpi.weights import prepacked

    folder = kept_folder(cache)
    if not cache.expanduser().is_dir():
        raise StoreError(f"{cache} is not a folder; give the one of --weights-cache")
    try:
        gone = prepacked.clear(folder, clear == "all") if clear else []
        found = prepacked.entries(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {reason_of(error)}") from None
    SCREEN.show(kept_lines(folder, found, gone, SCREEN.width))
    SCREEN.document(kept_document(folder, found, gone))
