"""What a rank's speeds are by the seconds that its kernels took. Pure: knows kinds of work and seconds; no clock, no kernel, no rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepti_mpi.cluster.boards import Work
from hepti_mpi.cluster.profile import GLANCE

MANY = 8  # times the rows of the largest timed step of texts are many
LEAST_PART = 0.5  # of what products take in a chain of their own: less is an error of the other parts


@dataclass(frozen=True)
class Speeds:
    """What a rank measured of itself, as in a NodeProfile."""

    gemm_seconds_per_weight: tuple[float, ...]
    attention_seconds_per_mac: float
    element_seconds: float
    segment_seconds: float
    cast_seconds: float
    activation_seconds: float
    arrange_seconds: float
    glance_seconds_per_weight: float = 0.0
    cached_seconds_per_mac: tuple[float, ...] = ()
    cached_arrange_seconds: tuple[float, ...] = ()
    beside_seconds: tuple[float, ...] = ()
    table_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Timed:
    """What kernels took a rank. `products`: seconds per weight of those of `rows` rows; `attention`: of short requests and of long ones;
    `others`: seconds of `size` elements, activations and casts, and of next to nothing; `whole`: layers, where they were timed, of requests
    of one length, by rising numbers of rows, and last of requests most of which are padded; `cached`: for each of CACHES, where they were,
    attention of one row behind few others in a cache and behind many; `steps`: where they were, `layers` layers of steps of texts, a large
    part of each, of each of STEP_ROWS, and then a small part; `table`: seconds of a byte of a table in steps of each of STEP_ROWS, () where
    they were not."""

    rows: Sequence[int]
    products: Sequence[float]
    attention: "Took"
    others: Sequence[float]
    size: int
    whole: "Took" = ()
    cached: Sequence["Took"] = ()
    steps: "Took" = ()
    layers: int = 0
    table: Sequence[float] = ()


Took = Sequence[tuple[Work, float]]  # what kernels did, and their seconds


def fitted(timed: Timed) -> Speeds:
    """Return the speeds by which kernels take what they took."""
    mac, arrange = _attention(timed.attention)
    *each, nothing = timed.others
    elements, activations, casts = (max(spent - nothing, 1e-9) / timed.size for spent in each)
    glance = timed.products[min(GLANCE, len(timed.products) - 1)]  # as it was timed: what layers take beyond is not in it
    cached = [_attention([(work, max(spent - nothing, 1e-9)) for work, spent in took]) for took in timed.cached]
    behind = tuple(each for each, _ in cached), tuple(begin for _, begin in cached)
    speeds = Speeds(tuple(_rising(timed.products)), mac, elements, nothing, casts, activations, arrange, glance, *behind,
                    table_seconds=tuple(_rising(timed.table)))  # fmt: skip
    if timed.steps:
        speeds = of_texts(speeds, timed)
    if not timed.whole:
        return speeds
    *alike, padded = timed.whole
    laid_out = laying_out(together(speeds, timed.rows, alike), timed.rows, alike, padded)
    return together(replace(speeds, arrange_seconds=laid_out), timed.rows, alike)


def of_texts(speeds: Speeds, timed: Timed) -> Speeds:
    """Return speeds by which layers of steps of texts take the seconds that they took: of what is beyond attention, a large part of each
    layer and a small one tell what products take, by weights, that no cache has, and what a layer takes whatever the part is, the starts
    of some ten small kernels most of all. The curve of products is so many times as high as at those rows; at many, where what is computed
    decides and not what is read, as it was timed."""
    mac, arrange = speeds.cached_seconds_per_mac[0], speeds.cached_arrange_seconds[0]
    curve, at, factors, beside = speeds.gemm_seconds_per_weight, [], [], []
    beyond = [seconds - speeds.segment_seconds - work.attention * mac - work.arranged * arrange for work, seconds in timed.steps]
    every = [sum(float(product[1]) for product in work.products) for work, _ in timed.steps]
    half = len(timed.steps) // 2
    for (work, _), most, least, weights, few in zip(timed.steps, beyond, beyond[half:], every, every[half:]):
        rows = float(work.products[0][0])
        alone = float(np.interp(rows, timed.rows, curve))
        each = (most - least) / (weights - few) if weights > few else alone
        fixed = max(least - few * max(each, alone * LEAST_PART), 0.0)
        at.append(rows)
        factors.append(max((most - fixed) / weights / alone, LEAST_PART))
        beside.append(fixed / timed.layers)
    scale = np.interp(timed.rows, [*at, MANY * at[-1]], [*factors, 1.0])
    curve = tuple(_rising([float(factor) * seconds for factor, seconds in zip(scale, curve)]))
    return replace(speeds, gemm_seconds_per_weight=curve, beside_seconds=tuple(_rising(beside)))


def together(speeds: Speeds, rows: Sequence[int], whole: Took) -> Speeds:
    """Return speeds by which whole layers take the seconds that they took: what is beyond their parts, which were timed one by one, is
    put into the curve of products, by rows. That is the starts of some twenty small kernels a layer, which few rows take as well as many,
    and caches that the parts had to themselves, which many feel as much more as they compute.

    `whole`: work and seconds of batches, by rising numbers of rows.
    """
    at, more = [], []
    for work, seconds in whole:
        products, weights = _products(speeds, rows, work), sum(float(product[1]) for product in work.products)
        beyond = seconds - speeds.segment_seconds - _others(speeds, work)
        at.append(float(work.products[0][0]))
        more.append((beyond - products) / weights)
    alone = np.array(speeds.gemm_seconds_per_weight)
    growing = np.maximum(alone / np.interp(at[-1], rows, alone), 1.0)  # behind the most rows that were timed
    curve = np.maximum(alone + np.interp(rows, at, more) * growing, LEAST_PART * alone)
    return replace(speeds, gemm_seconds_per_weight=tuple(_rising(curve.tolist())))


def laying_out(speeds: Speeds, rows: Sequence[int], alike: Took, padded: tuple[Work, float]) -> float:
    """Return the seconds per element that attention takes to lay requests out, told from a batch of `padded` ones, by `speeds` that are
    right for those of one length (`alike`). Among layers it is more than alone: what is laid out is nowhere near then.
    """
    work, seconds = padded
    (first, _), *_ = alike
    own = first.arranged * float(work.products[0][0]) / float(first.products[0][0])  # were nothing padded
    if work.arranged <= own:  # a model of so few positions that nothing was padded
        return speeds.arrange_seconds
    others = _others(replace(speeds, arrange_seconds=0.0), work)
    beyond = seconds - speeds.segment_seconds - _products(speeds, rows, work) - others
    return max(speeds.arrange_seconds, (beyond - own * speeds.arrange_seconds) / (work.arranged - own))


def _products(speeds: Speeds, rows: Sequence[int], work: Work) -> float:
    """Return the seconds of the products of some layers."""
    count, weights = float(work.products[0][0]), sum(float(product[1]) for product in work.products)
    return float(np.interp(count, rows, speeds.gemm_seconds_per_weight)) * weights


def _others(speeds: Speeds, work: Work) -> float:
    """Return the seconds of what is beside the products of some layers."""
    parts = [(work.attention, speeds.attention_seconds_per_mac), (work.arranged, speeds.arrange_seconds),
             (work.elements, speeds.element_seconds), (work.activations, speeds.activation_seconds)]  # fmt: skip
    return sum(amount * each for amount, each in parts)


def _attention(took: Took) -> tuple[float, float]:
    """Return the seconds per multiply-add and per element of the input, of attention over short requests and long ones."""
    (one, short), (other, long) = took
    (macs, elements), (more, others) = ((work.attention, work.arranged) for work in (one, other))
    part = macs * others - more * elements
    mac = (short * others - long * elements) / part if part else 0.0
    if not 0 < mac * more < long:  # too short to tell apart
        return long / more, 0.0
    return mac, (long - mac * more) / others


def _rising(curve: Sequence[float]) -> list[float]:
    """Return the curve without dips: more rows never take less time."""
    return [max(curve[: place + 1]) for place in range(len(curve))]
