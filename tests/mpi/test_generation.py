"""Text that grows on real ranks, against transformers' logits and greedy tokens: uneven and empty shares, chunks, many at once."""

import functools
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clusters import cluster
from decoders import CASES, GOLDEN, LENGTHS, LONG, LONG_LENGTHS, values, write_folder
from decoders import expected as expected_of
from made_plans import plan_of
from test_answers import made_in

from hepti_mpi.comm.mail import Mail
from hepti_mpi.engine import caching, fetching, orders, pages, words
from hepti_mpi.engine import decoder as decoders
from hepti_mpi.engine import texts as loading
from hepti_mpi.engine.stages import Staged
from hepti_mpi.errors import CapacityError
from hepti_mpi.models.checkpoints.hf import read_model
from hepti_mpi.models.tasks.sampling import Sampling
from hepti_mpi.planning import decoding
from hepti_mpi.planning import texts as choices
from hepti_mpi.planning.demand import Demand
from hepti_mpi.planning.writing import Writer
from hepti_mpi.program.placement import Placement, Stage, Team, from_json, whole
from hepti_mpi.program.plan import Plan
from hepti_mpi.serving import writers
from hepti_mpi.serving.generation import Generator
from hepti_mpi.serving.passing import Passing
from hepti_mpi.serving.stepping import InStages, Ranks
from hepti_mpi.serving.teams import partners
from hepti_mpi.tuning import shortening, texts
from hepti_mpi.weights import writing
from hepti_mpi.weights.outer import OuterWeights

expected, settle = functools.cache(expected_of), functools.cache(pages.settle)
words_session = functools.cache(caching.words_session)
made: dict[tuple[object, ...], caching.CachedSegment] = {}
SHARES = {
    "uneven": lambda n: ((5, 1, 1, 1) + (2,) * n)[:n],
    "with nothing": lambda n: ((1, 0, 3) + (0, 2) * n)[:n],
    "all on the last": lambda n: (0,) * (n - 1) + (1,),
}


def segment_once(compute, store, part, mode, threads, cache="float32", segment=caching.cached_segment):
    """Return the session of a step, made for the first division that had these operations on these slices: caches are no part of it."""
    held = tuple((op, *slices.values()) for op, slices in part.held(compute).items())
    key = (store, compute.ops, compute.reads, compute.writes, part.bounds["heads"], held, mode, threads, cache)
    if key not in made:
        made[key] = segment(compute, store, part, mode, threads, cache)
    return made[key]


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Huge pages change no answer (tests/test_pages.py): the first model of a process lies in some. Equal sessions are one."""
    monkeypatch.setattr(pages, "settle", settle)
    monkeypatch.setattr(caching, "cached_segment", segment_once)
    monkeypatch.setattr(words, "words_session", words_session)


@pytest.fixture(scope="module")
def store_of(machine, folder):
    """What opens the store of a case, made once."""
    opened = {}

    def store_of(case, format_name="f32", golden=GOLDEN):
        if (case, format_name, golden) not in opened:
            place = Path(golden.stem, f"{case}-{format_name}")
            path = made_in(folder) / f"{place}.h5"
            if machine.world.rank == 0 and not path.exists():
                writing.write(path, read_model(write_folder(case, folder / place, golden)).in_format(*format_name.split("+")))
            machine.world.barrier()
            opened[case, format_name, golden] = fetching.open_store(machine, path)
        return opened[case, format_name, golden]

    yield store_of
    for store in opened.values():
        store.close()


def divided(machine, store, shares):
    return divided_by(store, machine.world.size, shares)


def divided_by(store, ranks, shares=None):
    return plan_of(store, ("heads", "columns"), shares or tuple(range(1, ranks + 1)), total=1)


def loaded(machine, store, shares, slots, cache="float32"):
    return loading.load(machine, store, whole(divided(machine, store, shares)), slots, 64, cache)


def check_writes(ranks, case, between=lambda: None):
    """Check logits of prompts in chunks, and what is written behind them, by rank 0; `between`: is called behind each prompt."""
    _, ids, logits, tokens = expected(case)
    prompts = [row[row >= 0].tolist() for row in ids]
    for prompt, wanted in zip(prompts, logits):
        cut = len(prompt) // 3  # in two chunks
        parts = [ranks.logits(1, part, first) for part, first in ((prompt[:cut], 0), (prompt[cut:], cut)) if part]
        found = np.concatenate(parts)[-len(wanted) :]
        np.testing.assert_allclose(found, wanted[-len(found) :], atol=1e-4 * np.abs(logits).max())
        between()
    for sampling in (Sampling(max_tokens=8, ignore_end=True), Sampling(max_tokens=8, ignore_end=True, logprobs=3),
                     Sampling(max_tokens=8, ignore_end=True, presence_penalty=1e-9)):  # fmt: skip
        generator = Generator(ranks, ())
        answers = [generator.submit(prompt, sampling) for prompt in prompts]
        while generator.busy:
            generator.step()
        assert [answer.tokens for answer in answers] == tokens.tolist()


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_as_transformers(machine, store_of, case, shares):
    store = store_of(case)
    decoder = loaded(machine, store, SHARES[shares](machine.world.size), len(LENGTHS))
    if machine.world.rank:
        decoder.follow()
    else:
        check_writes(Ranks(decoder, OuterWeights(store)), case)
        decoder.end()
    machine.world.barrier()


@pytest.mark.parametrize("kind", ["heads", "stages"])
@pytest.mark.parametrize("case", CASES)
def test_a_cache_in_float16(machine, store_of, case, kind):
    """As transformers to what float16 rounds, in half the memory, also where rows of a slot become another one's."""
    store, (_, ids, logits, _), found = store_of(case), expected(case), []
    layers, size = store.spec.layers, machine.world.size
    divided_so = whole(divided(machine, store, SHARES["uneven"](size)))
    placement = staged(store, *stages_of("uneven", size, layers)) if kind == "stages" else divided_so
    for cache in ("float32", "float16"):
        decoder = loading.load(machine, store, placement, 2, 64, cache)
        found.append(sum(machine.world.gather_all(decoder.state.bytes if decoder.is_active else 0)))
        kept = [*decoder.state.keys, *decoder.state.values] if decoder.is_active else []
        assert sum(one.nbytes for one in kept) == (decoder.state.bytes if decoder.is_active else 0)
        if machine.world.rank:
            decoder.follow()
            continue
        ranks, most = Ranks(decoder, OuterWeights(store)), {"float32": 1e-4, "float16": 5e-3}[cache] * np.abs(logits).max()
        for prompt, wanted in zip((row[row >= 0].tolist() for row in ids), logits):
            cut, copied = len(prompt) // 3, len(prompt) - 1
            parts = [ranks.logits(0, part, first) for part, first in ((prompt[:cut], 0), (prompt[cut:], cut)) if part]
            got = np.concatenate(parts)[-len(wanted) :]
            np.testing.assert_allclose(got, wanted[-len(got) :], atol=most)
            if copied:
                ranks.copy(0, 1, 0, copied)
                (again,) = ranks.logits(1, prompt[copied:], copied)
                np.testing.assert_allclose(again, got[-1], atol=most)
        decoder.end()
    assert found[0] == 2 * found[1]
    machine.world.barrier()


@pytest.mark.parametrize("format_name", ["f32", "q8", "q4"])
@pytest.mark.parametrize("large", ["k_proj", "v_proj"])
def test_what_float16_does_not_have_is_no_answer(machine, folder, monkeypatch, format_name, large):
    """Keys or values that are too large for such a cache leave no scores, rather than wrong ones."""
    path = folder / f"{large}-{format_name}.h5"
    monkeypatch.setattr("decoders.values", lambda name, shape: values(name, shape) * np.float32(1e5 if large in name else 1))
    if machine.world.rank == 0:
        writing.write(path, read_model(write_folder("llama", folder / large / format_name)).in_format(format_name))
    machine.world.barrier()
    with fetching.open_store(machine, path) as store:
        for cache in ("float32", "float16"):
            decoder = loaded(machine, store, SHARES["uneven"](machine.world.size), 2, cache)
            if machine.world.rank:
                decoder.follow()
                continue
            ranks = Ranks(decoder, OuterWeights(store))
            assert np.isfinite(ranks.logits(0, [5, 6, 7], 0)).all() == (cache == "float32")
            assert np.isfinite(ranks.logits(0, [8], 3)).any() == (cache == "float32")
            decoder.end()
    machine.world.barrier()


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt_neox", "qwen3"])
def test_sums_in_float16(machine, store_of, case, tiles):
    """They round, in the layers that have them; the same ranks go on without them and are exact then. All ranks have the same sums."""
    store, world = store_of(case, golden=LONG), machine.world
    some = tuple("float16" if layer % 2 else "float32" for layer in range(store.spec.layers))
    plan = replace(divided(machine, store, SHARES["uneven"](world.size)), wire="float16", prompt_tiles=tiles if world.size > 1 else 1)
    decoder, found = loading.load(machine, store, whole(plan), 2, max(LONG_LENGTHS) + 8), []
    _, ids, logits, tokens = expected(case, LONG)
    prompts = [row[row >= 0].tolist() for row in ids]
    for wire in ("float16", some, "float32", "float16"):
        decoder.send_as(wire)
        if world.rank:
            decoder.follow()
            continue
        ranks = Ranks(decoder, OuterWeights(store))
        got = [ranks.all_logits(prompt) for prompt in prompts]
        ones = [ranks.logits(0, [token], len(prompt))[0] for prompt in prompts for token in (7, 8)]
        found.append(np.concatenate([*got, np.stack(ones)]))
        if wire == "float32":
            for wanted, one in zip(logits, got):
                np.testing.assert_allclose(one[-len(wanted) :], wanted[-len(one) :], atol=1e-4 * np.abs(logits).max())
        decoder.end()
    if found:
        every, some, exact, again = found
        off = [float(np.abs(one - exact).max() / np.abs(exact).max()) for one in (every, some, again)]
        assert max(off) < 1e-2 and off[0] == off[2]
        assert world.size == 1 or min(off) > 1e-6
    world.barrier()


@pytest.mark.parametrize("part", [2.0, 0.5, 1e-9])
def test_a_short_wire_changes_no_more_than_is_tolerated(machine, store_of, part):
    """As much of what it changes as `part` says: all of it in all layers, some of it in some, or nothing, by a plan without."""
    world, store, said = machine.world, store_of("qwen3", golden=LONG), []
    plan = replace(divided(machine, store, SHARES["uneven"](world.size)), wire="float16")
    profile, demand = cluster([20.0] * world.size, mbit=10), Demand(1, 64, 64, 64, wires=("float32", "float16"), prompt=64, answer=64)
    decision = decoding.decide("hepti", store.spec, store.source_hash, profile, demand) if world.rank == 0 else None
    chosen = choices.Chosen(whole(plan), 1.0, 1.0, decision, None) if decision else None
    load = functools.partial(loading.load, machine, store, slots=1, positions=48)

    def found(tolerance):
        goal = shortening.Goal(store, profile, "hepti", demand, tolerance, load, said.append)
        return shortening.loaded(machine, goal, whole(plan), chosen)

    *_, whole_error = found(1e9)
    assert not said and (whole_error > 0) == (world.size > 1)
    placement, known, decoder, error = found(part * whole_error)
    assert error <= part * whole_error and decoder.spent == dict.fromkeys(decoder.spent, 0.0)
    wires = placement.together.wires
    if world.size > 1 and part == 0.5:
        assert 0 < wires.count("float16") < len(wires) and error > 0 and placement.together.heads == plan.heads
        assert placement.together.predicted_seconds > 0 and (known is None or known.placement == placement)
        assert said == [f"float16 on the wire changes probabilities of words by {whole_error:.2g}, more than --tolerance "
                        f"{part * whole_error:g}: float16 in {wires.count('float16')} of {len(wires)} layers is used"]  # fmt: skip
    elif world.size > 1:
        assert set(wires) == {"float16" if part > 1 else "float32"} and len(said) == (part < 1)
    if world.rank:
        decoder.follow()
        world.barrier()
        return
    _, ids, logits, _ = expected("qwen3")  # others than it was tried with
    for row, wanted in zip(ids, logits):
        got = Ranks(decoder, OuterWeights(store)).all_logits(row[row >= 0].tolist())[-len(wanted) :]
        np.testing.assert_allclose(got, wanted[-len(got) :], atol=10 * error + 1e-4 * np.abs(logits).max())
    decoder.end()
    world.barrier()


@pytest.mark.parametrize("kind", ["heads", "stages"])
@pytest.mark.parametrize("format_name", ["q8", "q4"])
@pytest.mark.parametrize("case", ["llama", "gemma2", "qwen3", "gpt2"])
def test_what_is_not_finite_reaches_all_that_follows(machine, store_of, case, format_name, kind):
    """Whatever the weights are rounded to: a text behind a row that overflowed has no scores, and another one beside it has its own."""
    store, size = store_of(case, format_name), machine.world.size
    divided_so = whole(divided(machine, store, SHARES["uneven"](size)))
    placement = staged(store, *stages_of("uneven", size, store.spec.layers)) if kind == "stages" else divided_so
    decoder = loading.load(machine, store, placement, 2, 64)
    if machine.world.rank:
        decoder.follow()
        return
    order, random = orders.Order(0, 2, 6, (0, 0), 0, every=True), np.random.default_rng(1)
    for value in (np.inf, np.nan):
        rows = random.standard_normal((order.rows, store.spec.hidden), np.float32)
        rows[2, 5] = value
        found = [np.isfinite(scores.logits).all() for scores in decoder.step(order, rows)]
        assert not any(found[2:6]) and all(found[6:])  # of the rows before it in the step, the kernel may multiply it by 0
        more = random.standard_normal((2, store.spec.hidden), np.float32)
        one, other = decoder.step(orders.Order(0, 2, 1, (6, 6), 0), more)
        assert not np.isfinite(one.logits).any() and np.isfinite(other.logits).all()
    decoder.end()


def staged(store, counts, ranks=None):
    """Return the placement of one team whose stages have `counts` layers, on `ranks`, by default those from 0 on."""
    stages, first = [], 0
    for rank, count in zip(ranks or range(len(counts)), counts):
        if count:
            stages.append(Stage((rank,), Plan.lone(store.spec, store.source_hash, numbers=range(first, first + count))))
            first += count
    return Placement((Team(tuple(stages)),))


def stages_of(kind, size, layers):
    """Return how many layers each rank has, and which ranks these are; at least two of them where there are two."""
    if kind == "uneven":  # all ranks, the first ones with one each
        some = min(size, layers)
        return [1] * (some - 1) + [layers - some + 1], list(range(some))
    if kind == "with nothing":  # rank 0 and others have none
        ranks = list(range(1, size, 1 if size < 4 else 2))[:layers]
        ranks = ranks if len(ranks) > 1 else list(range(min(size, 2)))
        return [layers - len(ranks) + 1] + [1] * (len(ranks) - 1), ranks
    ranks = list(reversed(range(size)))[:layers]  # rank 0 is the last, or has none
    return [1] * (len(ranks) - 1) + [layers - len(ranks) + 1], ranks


@pytest.mark.parametrize("kind", ["uneven", "with nothing", "backwards"])
@pytest.mark.parametrize("case", CASES)
def test_stages_write_as_transformers(machine, store_of, case, kind):
    store = store_of(case)
    placement = staged(store, *stages_of(kind, machine.world.size, store.spec.layers))
    decoder = loading.load(machine, store, placement, len(LENGTHS), 64)
    if machine.world.rank:
        decoder.follow()
        machine.world.barrier()
        return
    check_writes(Ranks(decoder, OuterWeights(store)), case, decoder.rest)
    decoder.end()
    machine.world.barrier()


@pytest.mark.parametrize("case", ["qwen3", "gpt_neox"])
def test_layers_in_several_segments(machine, store_of, case, monkeypatch):
    """As many as their bytes ask for, where one rank has them all."""
    store, (_, ids, logits, _) = store_of(case), expected(case)
    found = []
    for most in (1, 1 << 30):
        monkeypatch.setattr("hepti_mpi.program.build.SEGMENT_BYTES", most)
        shares = (1,) + (0,) * (machine.world.size - 1)
        nothing = (0,) * machine.world.size
        plan = replace(divided(machine, store, shares), layers=(("local", "rows"),) * store.spec.layers, heads=nothing, columns=nothing)
        decoder = loading.load(machine, store, whole(plan), len(LENGTHS), 64)
        if machine.world.rank:
            decoder.follow()
            continue
        found.append(len(decoder.segments))
        ranks = Ranks(decoder, OuterWeights(store))
        for prompt, wanted in zip((row[row >= 0].tolist() for row in ids), logits):
            got = ranks.logits(1, prompt, 0)[-len(wanted) :]
            np.testing.assert_allclose(got, wanted[-len(got) :], atol=1e-4 * np.abs(logits).max())
        decoder.end()
    assert not found or found[0] >= found[1] + store.spec.layers - 1
    machine.world.barrier()


@pytest.mark.parametrize("case, format_name, most", [
    ("qwen3", "f16", 0.005), ("qwen3", "q8-blocks", 0.1), ("qwen3", "q8", 0.3), ("qwen3", "q4", 1.0), ("qwen3", "q4-wide", 1.0),
    ("qwen3", "f32+q8", 0.3), ("qwen3", "q8+q4", 1.0), ("qwen3", "q4-wide+f16", 1.0),  # of the layers, of the words
    ("llama_groups", "q8-blocks", 0.1), ("llama_groups", "q8", 0.3), ("llama_groups", "q4", 1.0),
])  # fmt: skip
def test_weights_in_fewer_bits(machine, store_of, case, format_name, most):
    """However they are divided, logits are off by what the format costs a lone rank and no more."""
    store, (_, ids, logits, _) = store_of(case, format_name), expected(case)
    errors = []
    for name in reversed(SHARES):
        decoder = loaded(machine, store, SHARES[name](machine.world.size), len(LENGTHS))
        if machine.world.rank:
            decoder.follow()
            continue
        ranks = Ranks(decoder, OuterWeights(store))
        found = [ranks.logits(1, row[row >= 0].tolist(), 0)[-1] for row in ids]
        right = [wanted[-1] for wanted in logits]
        errors.append(np.sqrt(np.square(np.subtract(found, right)).mean() / np.square(right).mean()))
        decoder.end()
    assert all(error <= max(1.2 * errors[0], 1e-5) for error in errors) and max(errors, default=0) < most, errors
    machine.world.barrier()


def larger_than_memory(store, ranks):
    """Return the placements of a text model that one rank cannot hold, by heads and columns and in stages, and of one that all ranks
    together cannot."""
    profile = cluster([20.0] * ranks, latency=1.0)  # so slow that nobody shares who need not

    def decided(**changes):
        demand = Demand(1, 48, 40, 40, kept=len(LENGTHS) * 48, prompt=40, answer=8, mode="packed")
        return decoding.decide("hepti", store.spec, store.source_hash, profile, replace(demand, **changes)).chosen

    alone, mapped, found, stages = decided(), decided(mode="mapped"), [], []
    assert len(alone.plan.active) == 1
    if ranks > 1:
        limit = int(max(alone.memory)) - 1
        found.append(decided(limits=(limit,) * ranks))
        assert len(found[0].plan.active) > 1 and max(found[0].memory) <= limit
        demand = Demand(1, 48, 40, 40, kept=len(LENGTHS) * 48, prompt=40, answer=8, limits=(limit,) * ranks)
        chosen = choices.decide("hepti", store.spec, store.source_hash, profile, demand)
        assert chosen.in_stages and max(chosen.staged.memory) <= limit
        stages.append(chosen.placement)
    scant = (int(max(mapped.memory)) + 1,) * ranks
    with pytest.raises(CapacityError, match="--weights-mode mapped"):
        decided(limits=scant)
    found.append(decided(limits=scant, mode="mapped"))
    assert set(found[-1].plan.weights_mode) == {"mapped"}
    return [*(whole(one.plan) for one in found), *stages]


def test_a_model_larger_than_a_rank_may_hold(machine, store_of):
    """Its layers are divided though one rank alone were sooner; what all together cannot hold stays in the file, as the refusal says."""
    world, store, (_, ids, _, tokens) = machine.world, store_of("llama"), expected("llama")
    found = [one.to_json() for one in larger_than_memory(store, world.size)] if world.rank == 0 else None
    for placement in map(from_json, world.from_root(found)):
        decoder = loading.load(machine, store, placement, len(LENGTHS), 48)
        if world.rank:
            decoder.follow()
            continue
        generator = Generator(Ranks(decoder, OuterWeights(store)), ())
        answers = [generator.submit(row[row >= 0].tolist(), Sampling(max_tokens=8, ignore_end=True)) for row in ids]
        while generator.busy:
            generator.step()
        assert [answer.tokens for answer in answers] == tokens.tolist()
        decoder.end()
    world.barrier()


def test_guesses_change_nothing(machine, store_of, monkeypatch):
    """What is guessed is checked in one step, and what was guessed wrong leaves no trace."""
    monkeypatch.setattr("hepti_mpi.serving.lookup.COSTS", 1e9)
    store, (_, ids, _, _) = store_of("mistral"), expected("mistral")
    decoder = loaded(machine, store, SHARES["uneven"](machine.world.size), 2)
    if machine.world.rank:
        decoder.follow()
    else:
        ranks, made = Ranks(decoder, OuterWeights(store)), {}
        for guesses in (False, True):
            generator = Generator(ranks, ())
            generator.guesses, guessed = guesses, 0
            answer = generator.submit([*ids[0][:9].tolist()] * 3, Sampling(max_tokens=30, ignore_end=True))
            while generator.busy:
                generator.step()
                guessed = generator.running[0].lookup.guessed if generator.running else guessed
            made[guesses] = answer.tokens
            assert bool(guessed) == guesses
        assert made[True] == made[False]
        decoder.end()
    machine.world.barrier()


def test_a_bench_of_texts_measures_all_methods_on_the_same(machine, store_of):
    store, size = store_of("llama"), machine.world.size
    chosen = {name: (whole(divided(machine, store, shares(size))), None) for name, shares in SHARES.items()}
    chosen["in stages"] = staged(store, *stages_of("with nothing", size, store.spec.layers)), None
    demand = Demand(1, 20, 17, 17, kept=23, prompt=17, answer=6)
    ways = [(store, *way) for way in chosen.values()]
    found = dict(zip(chosen, texts.measured(machine, ways, demand, 2, lambda rounds: None), strict=True))
    assert list(found) == [*SHARES, "in stages"]
    for name, one in found.items():
        counts = (2, 12, 7) if machine.world.rank == 0 else (0, 0, 0)
        assert (len(one.firsts), len(one.tokens), len(one.best)) == counts and one.late == 0, name
    if machine.world.rank == 0:
        bounds = {"float32": 2e-9}, 1e-9
        told = texts.document("llama", "here", demand, found, bounds)["methods"]
        assert all(one["largest_difference"] < 1e-4 and 0 < one["nearness"] < 1 for one in told.values())
        assert told["in stages"].get("layers", [3]) == {1: [3], 2: [2, 1], 3: [0, 2, 1]}.get(size, told["in stages"].get("layers"))
        said = texts.compared(found, {"galaxy": "does not fit"}, bounds)
        assert "uneven" in said and "bound of the first token: " in said
        for name, one in found.items():
            assert told[name]["first_nearness"] == pytest.approx(2e-9 / one.first, rel=1e-3)


def rows_taken(ranks):
    """Return a list to which the rows of each part of a prompt are added that the ranks take in."""
    taken, take = [], ranks._chunk

    def noted(slot, ids, *how):
        taken.append(len(ids))
        return take(slot, ids, *how)

    ranks._chunk = noted
    return taken


@pytest.mark.parametrize("case, format_name", [("gemma3", "f32"), ("qwen3", "q8"), ("llama_groups", "q4")])
def test_what_prompts_begin_with_alike_is_taken_in_once(machine, store_of, case, format_name, monkeypatch):
    """By heads with uneven shares, and in stages: the same bits as of each prompt by itself, windows among them; several answers to one
    prompt, one that nobody wants any more, and more answers than slots too."""
    monkeypatch.setattr("hepti_mpi.serving.generation.CHUNK", 8)
    store, world, random = store_of(case, format_name), machine.world, np.random.default_rng(1)
    common = random.integers(3, 131, 29).tolist()
    prompts = [common + random.integers(3, 131, more).tolist() for more in (1, 4, 9, 4, 17)] + [common[:20] + [5, 6], [7] * 11]
    prompts += [prompts[1], prompts[1], prompts[4]]
    placements = [whole(divided(machine, store, SHARES[name](world.size))) for name in ("uneven", "with nothing")]
    placements += [staged(store, *stages_of(kind, world.size, store.spec.layers)) for kind in ("with nothing", "backwards")]
    for placement in placements:
        decoder = loading.load(machine, store, placement, 5, 64)
        if world.rank:
            decoder.follow()
            continue
        in_stages = isinstance(decoder, Staged)
        ranks = (InStages if in_stages else Ranks)(decoder, OuterWeights(store))
        taken, found, rows = rows_taken(ranks), [], []
        for together in (False, True):
            making = Passing(ranks, 2, ()) if in_stages else Generator(ranks, ())
            dropped, answers = making.submit([*common, 9], Sampling(max_tokens=9)) if together else None, []
            for prompt in prompts:
                answers.append(making.submit(prompt, Sampling(max_tokens=1, ignore_end=True, logprobs=3)))
                while making.busy and not together:
                    making.step()
                    making.kept = [type(one)([], 0, 0, 0) for one in making.kept]  # each prompt anew
            while making.busy:
                making.step()
                if dropped is not None and sum(taken) - rows[0] > 3 * 8:
                    making.cancel(dropped)
            found.append([answer.chosen for answer in answers])
            rows.append(sum(taken))
        assert found[0] == found[1] and rows[0] == sum(map(len, prompts))
        assert rows[1] - rows[0] <= rows[0] - 24 * 4, "of those that had to wait for a slot some find nobody who has it"
        decoder.end()
    world.barrier()


@pytest.mark.parametrize("case", ["llama3", "gemma2", "gpt2"])
def test_several_steps_pass_through_stages(machine, store_of, case, monkeypatch):
    """Long prompts in parts that follow each other, answers in groups, one that nobody wants: the same tokens as one after another."""
    monkeypatch.setattr("hepti_mpi.serving.generation.CHUNK", 8)
    store, (_, ids, _, tokens), size = store_of(case), expected(case), machine.world.size
    for kind in ("uneven", "with nothing", "backwards"):
        decoder = loading.load(machine, store, staged(store, *stages_of(kind, size, store.spec.layers)), 5, 64)
        if machine.world.rank:
            decoder.follow()
            continue
        if size == 1:
            assert not isinstance(decoder, Staged)
            return
        making, most = Passing(InStages(decoder, OuterWeights(store)), 2, ()), 0
        prompts = [row[row >= 0].tolist() for row in ids]
        answers = [making.submit(prompt, Sampling(max_tokens=8, ignore_end=True)) for _ in range(4) for prompt in prompts]
        dropped = making.submit(prompts[0], Sampling(max_tokens=20, ignore_end=True))
        while making.busy:
            making.step()
            most = max(most, len(making.under_way))
            if dropped.tokens:
                making.cancel(dropped)
            decoder.rest()
        assert [answer.tokens for answer in answers] == 4 * tokens.tolist()
        assert most == decoder.depth >= 2 and not making.under_way
        decoder.end()
    machine.world.barrier()


@pytest.mark.parametrize("case, kind", [
    *itertools.product(CASES, ["uneven", "with nothing", "stages"]),
    *itertools.product(["llama", "gemma2", "gpt2", "gpt_neox", "qwen3"], ["tiles"]),  # windows, own positions, one sum a layer
])  # fmt: skip
def test_prompts_of_up_to_300_tokens(machine, store_of, case, kind, monkeypatch):
    """As transformers' logits and tokens, of prompts that end around the end of a piece, alone and all at once on fewer slots."""
    store, size = store_of(case, golden=LONG), machine.world.size
    if kind == "tiles":  # hardly more than a step has: what is given up is made again
        monkeypatch.setattr(decoders, "GEOMETRIES", 5)
    if kind == "stages":
        placement = staged(store, *stages_of("uneven", size, store.spec.layers))
    else:
        kinds = {"tiles": "with nothing" if size > 2 else "uneven"}
        plan = divided(machine, store, SHARES[kinds.get(kind, kind)](size))
        placement = whole(replace(plan, prompt_tiles=1 if kind != "tiles" or size == 1 else 2 + size % 3))
    decoder = loading.load(machine, store, placement, 3, max(LONG_LENGTHS) + 8)
    if machine.world.rank:
        decoder.follow()
    else:
        in_stages = isinstance(decoder, Staged)
        ranks = (InStages if in_stages else Ranks)(decoder, OuterWeights(store))
        making = Passing(ranks, 3, ()) if in_stages else Generator(ranks, ())
        _, ids, logits, tokens = expected(case, LONG)
        prompts = [row[row >= 0].tolist() for row in ids]
        for prompt, wanted in zip(prompts, logits):
            found = ranks.all_logits(prompt)[-len(wanted) :]
            np.testing.assert_allclose(found, wanted[-len(found) :], atol=1e-4 * np.abs(logits).max())
        answers = [making.submit(prompt, Sampling(max_tokens=tokens.shape[1], ignore_end=True)) for prompt in prompts]
        while making.busy:
            making.step()
        assert [answer.tokens for answer in answers] == tokens.tolist()
        decoder.end()
    machine.world.barrier()


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt_neox"])
def test_prompts_of_any_length_through_stages(machine, store_of, case):
    """The logits behind each token of them, and tokens then, as of one rank."""
    store, world, found = store_of(case), machine.world, []
    one = divided(machine, store, (1,) + (0,) * (world.size - 1))
    for placement in (whole(one), staged(store, *stages_of("uneven", world.size, store.spec.layers))):
        decoder = loading.load(machine, store, placement, 2, 320)
        if world.rank:
            decoder.follow()
            continue
        in_stages = isinstance(decoder, Staged)
        ranks = (InStages if in_stages else Ranks)(decoder, OuterWeights(store))
        making = Passing(ranks, 2, ()) if in_stages else Generator(ranks, ())
        prompts = [np.random.default_rng(length).integers(3, 131, length).tolist() for length in (1, 2, 127, 128, 129, 300)]
        logits = [ranks.all_logits(prompt) for prompt in prompts]
        answers = [making.submit(prompt, Sampling(max_tokens=4, ignore_end=True)) for prompt in prompts]
        while making.busy:
            making.step()
        found.append((logits, [answer.tokens for answer in answers]))
        decoder.end()
    if world.rank == 0:
        (first, tokens), (second, others) = found
        for right, own in zip(first, second):
            np.testing.assert_allclose(own, right, atol=1e-4 * np.abs(right).max())
        assert tokens == others
    world.barrier()


def test_a_team_in_stages_writes_beside_another(machine, store_of):
    """The first rank of it makes its answers, and rank 0, another team, hears of them."""
    world, store, (_, ids, _, tokens) = machine.world, store_of("gemma3"), expected("gemma3")
    if world.size < 3:
        return
    (inner,) = staged(store, [3, 1], [2, 1]).teams
    placement = Placement((Team((Stage((0,), divided_by(store, 1)),)), inner))
    decoder = loading.load(machine, store, placement, 2, 64)
    mail = Mail(world, partners(placement, world.rank, world.size))

    def generator():
        return Generator(Ranks(decoder, OuterWeights(store)), ())

    if world.rank:
        if decoder is not None and decoder.rank:
            decoder.follow()
        else:
            writers.follow(mail, generator if decoder else None, decoder.rest if decoder else lambda: None)
            if decoder is not None:
                decoder.end()
    else:
        planned = [Writer(team, 0.01, (0.001,) * 2, 8) for team in placement.teams]
        making = writers.TeamGenerator(generator(), mail, planned, 64, (), letters)
        prompts = [row[row >= 0].tolist() for row in ids]
        answers = [making.submit(prompt, Sampling(max_tokens=8, ignore_end=True)) for _ in range(3) for prompt in prompts]
        while making.busy:
            making.step()
        assert [one.tokens for one in answers] == 3 * tokens.tolist()
        assert all(one["texts"] for one in making.facts)
        decoder.end()
        for rank in mail.partners:
            mail.send(rank, "work", {"do": "end"})
    mail.close()
    world.barrier()


def in_teams(size):
    """Teams of a job: one rank, two, and one that rests."""
    if size < 3:
        return [(rank,) for rank in range(size)]
    return [(2,), (0, 1), *([(4, 3)] if size > 4 else []), *([(6,)] if size > 6 else [])]


@pytest.mark.parametrize("turned", [False, True], ids=["rank 0 writes", "rank 0 does not"])
def test_teams_write_what_all_ranks_do(machine, store_of, turned):
    """Each text by one team, as rank 0 tells them apart, a text that ends early and one that nobody wants among them."""
    world, store, (_, ids, _, tokens) = machine.world, store_of("llama"), expected("llama")
    teams = [tuple((rank + turned) % world.size for rank in ranks) for ranks in in_teams(world.size)]
    teams = [ranks for ranks in teams if not (turned and 0 in ranks)] or [(0,)]
    stages = [Stage(ranks, replace(divided_by(store, len(ranks)), hosts=("here",) * len(ranks))) for ranks in teams]
    placement = Placement(tuple(Team((stage,)) for stage in stages))
    slots, decoder = 2, loading.load(machine, store, placement, 2, 64)
    mail = Mail(world, partners(placement, world.rank, world.size))
    rest = decoder.rest if decoder else lambda: None

    def generator():
        return Generator(Ranks(decoder, OuterWeights(store)), ())

    if world.rank:
        if decoder is not None and decoder.rank:
            decoder.follow()
        else:
            writers.follow(mail, generator if decoder else None, rest)
            if decoder is not None:
                decoder.end()
    else:
        planned = [Writer(team, 0.01, (0.001,) * slots, 8) for team in placement.teams]
        making = writers.TeamGenerator(generator() if decoder else None, mail, planned, 64, (), letters)
        prompts = [row[row >= 0].tolist() for row in ids]
        right = [letters(row) for row in tokens.tolist()]
        asked = Sampling(max_tokens=8, ignore_end=True)
        answers = [making.submit(prompt, asked) for _ in range(3) for prompt in prompts]
        stopped = making.submit(prompts[0], replace(asked, stop=(right[0][3:5],)))
        dropped = making.submit(prompts[0], replace(asked, max_tokens=40))
        events = []
        while making.busy:
            events += making.step()
            if dropped.tokens:
                making.cancel(dropped)
        assert [one.tokens for one in answers] == 3 * tokens.tolist() and {one.finish_reason for one in answers} == {"length"}
        assert (stopped.text, stopped.finish_reason) == (right[0][: right[0].index(right[0][3:5])], "stop")
        whole_one = len(dropped.prompt) + len(dropped.tokens) == 64  # where rank 0 did not come to it before
        assert dropped.finish_reason == "cancelled" or whole_one
        for one in answers:
            assert "".join(event.text for event in events if event.answer is one) == one.text == letters(one.tokens)
        assert sum(one["texts"] for one in making.facts) == len(answers) + 2
        if decoder is not None:
            decoder.end()
        for rank in mail.partners:
            mail.send(rank, "work", {"do": "end"})
    mail.close()
    world.barrier()


def letters(ids, more=False):
    return "".join(chr(97 + one % 26) for one in ids)


@pytest.mark.parametrize("polite", [False, True])
@pytest.mark.parametrize("width", [7, decoders.ROWS * 100])
def test_every_rank_has_the_same_sum(world, polite, width):
    comm, result = world.subset(range(world.size)), np.empty((1, width), np.float32)
    comm.polite = polite
    for turn in range(3):
        terms = [np.random.default_rng((turn, rank)).standard_normal((1, width), np.float32) for rank in range(world.size)]
        comm.allreduce(terms[world.rank], result)
        np.testing.assert_allclose(result, np.sum(terms, axis=0), atol=1e-5)
        assert len(set(world.gather_all(result.tobytes().hex()))) == 1
