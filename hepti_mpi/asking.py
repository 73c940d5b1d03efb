"""What a run is asked and where the answers go: a journal while it runs, then the output or the screen. Rank 0's only.

Knows requests, journals and outputs; does not know ranks or plans.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hepti_mpi.console import put_out

if TYPE_CHECKING:
    from hepti_mpi.runtime.progress import State
    from hepti_mpi.shards.store import Store


class Asked:
    """`every` request of the input, and those that are `left` to be answered."""

    def __init__(self, store: "Store", source: str | None, output: Path | None, resume: bool, repeat: int, state: "State | None") -> None:
        """Read the input and open the journal. `state`: of a supervised run, whose supervisor keeps the journal.

        Raises: InputError when the input cannot be read or the output could not be written.
        """
        from hepti_mpi.comm.launcher import standard_input
        from hepti_mpi.models.inputs import Reading
        from hepti_mpi.models.preprocess import read_requests
        from hepti_mpi.reporting import outputs
        from hepti_mpi.reporting.journal import Journal, input_hash, journal_path
        from hepti_mpi.runtime import progress

        self.store, self.output, self.arrays = store, output, output is not None and output.suffix == ".npz"
        if output is not None and state is None:
            outputs.check_path(output)
        self.every = read_requests(store.spec, store.files, source, standard_input() if source == "-" else None, Reading(strict=True))
        self.journal: Any = None
        head = {"model": store.spec.name, "source_hash": store.source_hash, "input_hash": input_hash(self.every)}
        if state is not None:
            progress.tell("begin", requests=len(self.every), head=head)
            self.journal = progress.Reported(state)
        elif output is not None and repeat == 1:
            self.journal = Journal(journal_path(output), head, len(self.every), resume)
        finished = self.journal.finished if self.journal is not None else {}
        self.places = [place for place in range(len(self.every)) if place not in finished]
        self.left = [self.every[place] for place in self.places]

    def note(self, part: Sequence[int], results: Sequence[dict[str, Any]], seconds: float) -> None:
        """Keep the results of some of the requests that are left, which took `seconds`."""
        if self.journal is not None:
            self.journal.add([self.places[place] for place in part], self._finished([self.left[place] for place in part], results), seconds)

    def write(self, results: Sequence[dict[str, Any]] = ()) -> None:
        """Write the output, or print the answers; `results`: of all that was left, where no journal was kept."""
        from hepti_mpi.runtime.progress import Reported

        if isinstance(self.journal, Reported):
            return
        if self.journal is None:
            finished = self._finished(self.left, results)
        else:
            finished = [self.journal.finished[place] for place in range(len(self.every))]
        put_out(self.output, finished)
        if self.journal is not None:
            self.journal.remove()

    def _finished(self, requests: Sequence[Any], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from hepti_mpi.models.heads import answers
        from hepti_mpi.reporting.outputs import finished_answer, finished_arrays

        if self.arrays:
            return [finished_arrays(request, result) for request, result in zip(requests, results)]
        return [finished_answer(record) for record in answers(self.store.spec, self.store.files, requests, results)]
