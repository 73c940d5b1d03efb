"""The command that keeps a model warm and answers over HTTP; it starts its own ranks, and starts them again."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hepti_mpi.commands import teams
from hepti_mpi.commands.options import (
    FILE,
    answering_options,
    check_alone,
    machine_options,
    planning_method,
    planning_options,
    said_cache,
    weights_option,
    words_options,
)
from hepti_mpi.commands.paths import store_path
from hepti_mpi.commands.screen import SCREEN
from hepti_mpi.commands.terminal import ERR, hand_on
from hepti_mpi.commands.writing import no_text, room_options
from hepti_mpi.errors import HeptiError, InputError, reason_of

if TYPE_CHECKING:
    from hepti_mpi.serving.http.server import Server
    from hepti_mpi.supervisor.service import Service

OWN = ("hostfile", "weights", "host", "port", "api_key_file", "cors_origin", "mpirun")  # that are not handed on to the ranks
SHORTEST_KEY = 8
ORIGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s@?#]+")


@click.command()
@click.argument("hostfile", type=FILE, required=False)
@weights_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of this machine.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on; 0: any that is free.")
@click.option("--api-key-file", type=FILE, help="File with one key a line, of which each request needs one.")
@click.option("--cors-origin", multiple=True, help="Pages of this origin, such as https://chat.lan, may ask from a browser; *: all pages.")
@click.option("--mpirun", default="mpirun", show_default=True, help="How mpirun is called, with options for it.")
@answering_options
@room_options
@machine_options
@planning_options
@words_options(has_document=False)
@click.pass_context
def serve(given: click.Context, hostfile: Path | None, weights: Path | None, host: str, port: int, **options: Any) -> None:
    """Keep a model warm and answer many users over HTTP, on the hosts of a hostfile or on this machine alone.

    \b
    Examples:
      python -m hepti_mpi serve
      python -m hepti_mpi serve hostfiles/pi4.txt --weights weights/all-MiniLM-L6-v2.h5 --host 0.0.0.0 --api-key-file keys.txt
    """
    from hepti_mpi.comm import interrupts

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # requests are tokenised beside each other, and ranks may need the cores
    check_alone("serve", "[HOSTFILE]")
    planning_method(options)  # what does not go together is refused before anything is started
    teams.check(options, options["objective"], options["adapt"] is True, weights)
    if options["emulate"] is not None or options["shares"] is not None or len(options["memory_limit"] or ()) > 1:
        which = "--emulate, --shares and a --memory-limit per rank"
        raise click.UsageError(f"{which} are for one set of hosts, of which a service may lose some: leave them out")
    try:
        from hepti_mpi.serving.http import app, server
    except ImportError as error:
        how = "install it, in the checkout, with: pip install '.[serve]'"
        raise HeptiError(f"{error.name} is not installed, which serve needs; {how}") from None
    from hepti_mpi.serving.asking import Model
    from hepti_mpi.supervisor.service import Job, Service
    from hepti_mpi.weights.store import Store

    path = store_path(weights)
    if path.is_dir():
        raise click.UsageError(f"{path} holds files cut for one set of ranks, of which a service may lose some: give --weights a store")
    keys, origins = read_keys(options["api_key_file"]), checked_origins(options["cors_origin"])
    with Store(path) as store:
        model = Model(store.spec, store.files, store.source_hash)
    if model.spec.generates and options["adapt"]:
        raise click.UsageError("the plan of a model that writes text is kept: leave out --adapt")
    if not model.spec.generates:
        no_text(said_cache(options), model.spec.name)
    hand_on(ERR)
    server.make_room()
    listener = server.listening(host, port)
    words = ["answer", "--weights", str(path), *handed_on(given)]
    service = Service(Job.on(hostfile, words, options["mpirun"]), model.source_hash, SCREEN.say)

    api = app.Api(app.Parts(model, service.front, keys, service.status, service.details, SCREEN.warn, origins))
    service.listeners.append(api.meters.heard)
    interrupts.leave()
    run(service, server.Server(api.app(), listener), f"http://{_named(listener.getsockname())}", model)


def run(service: "Service", server: "Server", address: str, model: Any) -> None:
    """Serve until somebody wants an end or the job cannot go on. Raises HeptiError for the latter."""
    import threading

    def give_up() -> None:
        service.failed.wait()
        server.end()

    def began() -> None:
        SCREEN.say(f"serving {model.spec.name} ({model.gives}) on {address}; it is loaded meanwhile")
        service.start()
        model.warm_up()

    def ending() -> None:
        service.front.drain()
        if not service.front.idle and service.error is None:
            SCREEN.say("what is asked already is answered first; Ctrl-C again ends at once")

    threading.Thread(target=give_up, name="failure", daemon=True).start()
    try:
        whole = server.run(began, ending, service.front.leave)
    finally:
        service.stop()
    if service.error is not None:
        raise service.error
    SCREEN.say("ended; all that was asked is answered" if whole else "ended; what was still under way is not answered")


def handed_on(context: click.Context) -> list[str]:
    """Return the options that were given for the ranks, as words."""
    words = []
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name) not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
        if isinstance(option, click.Option) and option.expose_value and given and name not in OWN:
            words += spelled(option, context.params[name])
    return words


def spelled(option: click.Option, value: Any) -> list[str]:
    """Return the words that give an option this value."""
    if option.is_flag:
        return [option.opts[0] if value else option.secondary_opts[0]]
    return [option.opts[0], ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]


def read_keys(path: Path | None) -> list[str]:
    """Return the keys of a file, none where there is none: one a line, but for empty lines and those that begin with #.

    Raises InputError for a file that cannot be read, holds no key, or one that is short or could not be sent.
    """
    if path is None:
        return []
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
    keys = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")}
    for number, key in keys.items():
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            make = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            raise InputError(f"{path}, line {number}: a key has at least {SHORTEST_KEY} letters and no blank; make one with: {make}")
    if not keys:
        raise InputError(f"{path} holds no key")
    return list(keys.values())


def checked_origins(origins: Sequence[str]) -> list[str]:
    """Return origins as browsers spell them. Raises UsageError for what is none."""
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise click.UsageError(f"--cors-origin {origin} is no origin: scheme, host and port without a path, such as https://chat.lan:3000")
    return [origin.lower() for origin in origins]


def _named(place: tuple[Any, ...]) -> str:
    host = str(place[0])
    return f"[{host}]:{place[1]}" if ":" in host else f"{host}:{place[1]}"
