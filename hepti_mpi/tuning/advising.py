"""The planning process of a job: it searches for a better plan while requests go on. Knows questions and answers; decides nothing."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hepti_mpi.cluster.profile import ClusterProfile
from hepti_mpi.errors import HeptiError
from hepti_mpi.models.spec import ModelSpec
from hepti_mpi.planning import methods, search
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.pricer import Pricer
from hepti_mpi.program.build import make_program
from hepti_mpi.program.plan import Plan

NICE = 10


@dataclass(frozen=True)
class Question:
    """What the planning process is asked: what is best for this profile now that `plan` is in use?"""

    method: str
    spec: ModelSpec
    source_hash: str
    profile: ClusterProfile
    demand: Demand
    plan: Plan


@dataclass(frozen=True)
class Advice:
    """What it answers: `plan` takes `seconds`. `last`: no more answers to this question come."""

    plan: Plan
    seconds: float
    last: bool


def advise(question: Question) -> list[Callable[[], Advice]]:
    """Return what finds plans for a question: one soon, near the plan in use, and one after searching all."""
    spec, profile, demand = question.spec, question.profile, question.demand

    def near() -> Advice:
        plan = search.again(spec, question.source_hash, profile, demand, question.plan).plan
        price = Pricer(spec, profile, demand.rows, demand.attended).price(make_program(spec, plan), plan)  # by all of its layers
        return Advice(plan, price.seconds, last=False)

    def best() -> Advice:
        found = methods.decide(question.method, spec, question.source_hash, profile, demand).chosen
        return Advice(found.plan, found.price.seconds, last=True)

    return [near, best] if question.method in methods.OURS else [best]


def _answer_questions(connection: Connection) -> None:
    """The planning process: answer until the other end is closed."""
    os.nice(NICE)
    try:
        while True:
            for find in advise(connection.recv()):
                try:
                    connection.send(find())
                except HeptiError:  # nothing fits: the plan in use stays
                    connection.send(None)
                    break
    except (EOFError, OSError, KeyboardInterrupt):  # the job has ended
        return


class Adviser:
    """The planning process, started with the first question. It ends with this one, also when that is killed."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.process: Any = None
        self.busy = False

    def ask(self, question: Question) -> None:
        """Ask; what was asked before and not answered yet is of no interest any more."""
        if self.busy:
            self.close()
            self.connection = None
        if self.connection is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=_answer_questions, args=(other,), name="planning", daemon=True)
            self.process.start()
            other.close()
        try:
            self.connection.send(question)
            self.busy = True
        except OSError:  # it was killed: the next question starts another
            self.close()
            self.connection = None

    def advice(self) -> Advice | None:
        """Return what has been answered meanwhile, None where nothing has."""
        if not self.busy or self.connection is None or not self.connection.poll():
            return None
        try:
            advice: Advice | None = self.connection.recv()
        except (EOFError, OSError):  # it was killed: go on with the plan in use
            self.close()
            advice, self.connection = None, None
        self.busy = advice is not None and not advice.last
        return advice

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.process.kill()
            self.process.join()
