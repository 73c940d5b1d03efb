"""What `import hepti_mpi` gives to programs."""

from hepti_mpi.api.asked import Label, Ranked
from hepti_mpi.api.model import Model
from hepti_mpi.errors import HeptiError

__all__ = ["HeptiError", "Label", "Model", "Ranked"]
