"""All commands: parse, call, print. Only this room prints answers and tables, picks paths and reads options; it computes nothing. What the
ranks tell their supervisor is comm/channel.py's.

MPI, ONNX Runtime and HDF5 are imported inside the commands, so that --help is instant and a usage error costs nothing.
"""

import click

from hepti_mpi import __version__
from hepti_mpi.commands.helping import Commands, Group

ALIKE = ("answer", "bench", "chat", "doctor", "inspect", "plan", "profile", "push", "report", "run", "serve", "supervise")
PLACES = {**{name: f"hepti_mpi.commands.{name}:{name}" for name in ALIKE}, "slice": "hepti_mpi.commands.slice:slice_command"}


@click.group(cls=Group, commands=Commands(PLACES), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hepti_mpi")
@click.pass_context
def main(context: click.Context) -> None:
    """Run one transformer inference across several unequal machines.

    \b
    Example, from a model folder to answers on the boards of a hostfile:
      python -m hepti_mpi slice MODEL_FOLDER weights/model.h5
      mpirun -hostfile hostfiles/pi4.txt python -m hepti_mpi run
    """
    if context.invoked_subcommand in ("slice", "inspect", "plan", "report", "push", "serve", "supervise"):
        from hepti_mpi.comm.launcher import launched_rank

        if launched_rank():
            context.exit()  # these need one process: under mpirun the first does it
