"""Entry point: parse, run, and on any error end all ranks with one sentence. Knows exit codes, not commands."""

# What is imported here delays the moment from which Ctrl-C says no more than it ought to: the rest is imported below
import os
import signal
import sys
import time

_ended: list[int] = []  # the exit code of a command that went as it should


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 a fault of the program, 2 bad input or usage, 130 interrupted; comm.patience has 3, errors.py 4 and 5.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until somebody listens: an end without a word, not Python's traceback
    import gc

    from hepti_mpi.comm import channel, interrupts, patience
    from hepti_mpi.comm.launcher import is_up, launched_rank, print_past_launcher

    _set_threads()
    _set_streams()
    try:  # what even an error is told with, the second on a terminal
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        _tell_plainly(f"error: {_lacking(error)}")
        sys.exit(2)
    print_past_launcher()
    gc.set_threshold(100_000, 20, 20)  # what 700 modules are made of stays: looking through it again and again is 7 % of a start
    channel.tell_place()  # before anything can fail on this host
    patience.aloud[:] = [_tell]
    rank, code = launched_rank(), interrupts.EXIT_CODE
    try:
        interrupts.listen(_tell_last if rank == 0 else None, _tell_beyond)  # before what takes long to import
        code, went_well = _command(rank)
        if interrupts.arrived():  # within an import, behind which there was next to nothing to do
            interrupts.finish()
        interrupts.told()  # whatever there was to be said
        if went_well:
            _ended.append(code)
        if code and is_up():
            interrupts.rest()
            time.sleep(0.3)  # mpirun ends the other ranks as soon as one ends with an error: let the one that knows speak
    except BaseException:
        if not interrupts.arrived():
            raise
        interrupts.finish()
    sys.exit(code)


def _command(rank: int) -> tuple[int, bool]:
    """Do what the command line says; return the exit code, and whether it went as it should. Raises Interrupted."""
    import click

    from hepti_mpi.comm import channel, interrupts
    from hepti_mpi.comm.launcher import abort_all, host_name, ranks
    from hepti_mpi.commands import main, terminal
    from hepti_mpi.commands.helping import tell_misuse
    from hepti_mpi.errors import HeptiError, RankError

    def error_words() -> str:
        return f"error on {host_name()} (rank {rank})" if ranks() > 1 else "error"

    try:
        _check_folder()
        try:
            done = main.main(standalone_mode=False)  # returns the code that a command ends with, or what a command returns
        except OSError as error:
            terminal.check_printed(error)
            raise
        finally:
            terminal.flush()  # what standard output does not take is no end as it should be
        return done if isinstance(done, int) else 0, True
    except click.ClickException as error:  # every rank has the same words on its command line: one of them tells
        if rank == 0:
            if not channel.tell_trouble("error", error.format_message()):
                tell_misuse(error)
        else:
            interrupts.rest()
            time.sleep(2)  # mpirun ends all when the first ends, so let rank 0 speak
        code = 2
    except HeptiError as error:
        code = 0  # the rank that tells why has the code: mpirun breaks down when many end with one
        if isinstance(error, RankError) and rank == 0 and (left := interrupts.with_left("")):
            _tell(left)
        if not (isinstance(error, RankError) or error.alike and rank):
            _tell_error(f"{error_words()}: {error}", error.agreed or error.alike)
            code = error.exit_code
            if not (error.agreed or error.alike):
                interrupts.rest()  # mpirun may end this rank while it waits to end the others
                abort_all(code)
    except (SystemExit, interrupts.Interrupted):
        raise
    except BaseException as error:  # noqa: BLE001  a rank that leaves alone would hang the others
        if interrupts.arrived():
            raise interrupts.Interrupted from None
        told, code = _unforeseen(error)
        _tell_error(f"{error_words()}: {told}", False)
        if os.environ.get("HEPTI_TRACEBACK"):
            import traceback

            traceback.print_exc()
        interrupts.rest()
        abort_all(code)
    return code, False


def _unforeseen(error: BaseException) -> tuple[str, int]:
    """Return what is told of an error that nobody foresaw, and the exit code."""
    from hepti_mpi.errors import place_of, refused_file

    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("hepti_mpi"):
        return _lacking(error), 2
    if told := refused_file(error):
        return told, 2
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({place_of(error)})", 1


def _check_folder() -> None:
    """Raise HeptiError where the folder that this was started in is gone: all paths would be of nowhere."""
    from hepti_mpi.errors import HeptiError

    try:
        os.getcwd()
    except OSError as error:
        raise HeptiError(f"the folder that this was started in cannot be used ({error.strerror}); go to one that is there") from None


def _lacking(error: ModuleNotFoundError) -> str:
    """Say which interpreter lacks what, and how one is had that does not: mostly a new terminal that was not told of .venv."""
    from pathlib import Path
    from shlex import quote

    checkout = Path(__file__).resolve().parent.parent
    venv, script = checkout / ".venv", checkout / "jobs" / "make-venv.sh"
    if (venv / "bin" / "activate").is_file() and Path(sys.prefix).resolve() != venv.resolve():
        mend = f"use the one in .venv: . {quote(str(venv / 'bin' / 'activate'))}"
    elif script.is_file():
        mend = f"make a .venv that has it, and use that: bash {quote(str(script))} mpi && . {quote(str(venv / 'bin' / 'activate'))}"
    else:
        mend = f"install it with: {quote(sys.executable)} -m pip install {(error.name or '').partition('.')[0]}"
    return f"this Python, {sys.executable}, has no {error.name}, which hepti_mpi needs; {mend}"


def _tell_plainly(sentence: str) -> None:
    """Say a sentence where what shows all others is not installed."""
    from hepti_mpi.comm.launcher import tell_past_launcher
    from hepti_mpi.reporting.tables import folded

    fold = folded if sentence.isascii() else None  # other letters are counted by what may not be installed either
    if not tell_past_launcher(sentence, fold):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns if fold and sys.stderr.isatty() else None
        print(folded(sentence, columns), file=sys.stderr)


def _leave() -> None:
    """End the process of a command that went as it should, when all else has been put away: to take some 600 modules apart and to free what
    the system has back at once anyhow takes a tenth of a short job."""
    if _ended:
        from hepti_mpi.comm.launcher import leave_all

        leave_all()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(_ended[0])


def _set_threads() -> None:
    """Tell NumPy, and ONNX Runtime, what they read when they are imported."""
    # which notes in the user's home who that is, for those that it would tell what is run, and complains where it cannot
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1"))
    # its products (embedding, head) must not start more threads than a rank has cores
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
    # and those threads must not spin after a product, which they do for some 25 ms: the layers that come next want the cores. 2 ** 4 ticks
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def _set_streams() -> None:
    """Spell out what a terminal's letters cannot say, and keep what is typed that is no letter, for a sentence about it. Lead streams that
    the caller closed nowhere: the next file that is opened would be taken for one of them."""
    import io

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the first number that is free
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _tell_error(sentence: str, others_know: bool) -> None:
    """Say of an error that ends this rank what can be gone on with, or have that said by the rank that knows, which is ended by this one's
    end, unless the others end by themselves."""
    from hepti_mpi.comm import channel, interrupts

    if channel.state_path() or others_know or not interrupts.handed_on(sentence):
        _tell(interrupts.with_left(sentence))
        interrupts.told(True)


def _tell(sentence: str) -> None:
    from hepti_mpi.comm import channel
    from hepti_mpi.commands.screen import SCREEN

    if not channel.tell_trouble("error", sentence.removeprefix("error: ").removeprefix("error ")):
        SCREEN.warn(sentence)


def _tell_last(sentence: str) -> None:
    from hepti_mpi.comm.launcher import tell_past_launcher
    from hepti_mpi.reporting.tables import folded  # which imports nothing that takes long

    if "hepti_mpi.commands.meter" not in sys.modules and tell_past_launcher(sentence, folded):
        return  # nothing is drawn yet, and what is imported now by another thread would be waited for
    from hepti_mpi.commands.meter import end_meters
    from hepti_mpi.commands.screen import SCREEN
    from hepti_mpi.commands.terminal import ERR, goes_on

    end_meters()
    if not tell_past_launcher("\n" * goes_on(ERR) + SCREEN.folded(sentence)):
        _tell(sentence)


def _tell_beyond(sentence: str) -> None:
    """Say a sentence for a process that is no more."""
    from hepti_mpi.comm.launcher import tell_past_launcher
    from hepti_mpi.reporting.tables import folded

    tell_past_launcher(sentence, folded)


if __name__ == "__main__":
    import atexit

    atexit.register(_leave)  # the first to be registered is the last that is called
    main()
