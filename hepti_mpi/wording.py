"""How many or how much of something, in words. Pure: knows plurals and digits, and nothing of what is counted."""


def counted(count: int, what: str) -> str:
    """Return a count with its noun, which is given in the plural.

    >>> counted(2, "ranks"), counted(1, "batches"), counted(1, "entries"), counted(1, "values"), counted(1, "processes")
    ('2 ranks', '1 batch', '1 entry', '1 value', '1 process')
    """
    if count == 1:
        ends = {"ies": "y", "ches": "ch", "xes": "x", "sses": "ss"}
        end = next((end for end in ends if what.endswith(end)), "s")
        what = what.removesuffix(end) + ends.get(end, "")
    return f"{count} {what}"


def beside(value: float, limit: float) -> str:
    """Return a number in two digits, or in as many as tell that it is above the `limit` that is named beside it.

    >>> beside(0.00504, 0.005), beside(0.00496, 0.005), beside(0.0213, 0.005)
    ('0.00504', '0.005', '0.021')
    """
    texts = (f"{value:.{digits}g}" for digits in range(2, 18))
    return next((text for text in texts if (float(text) > limit) == (value > limit)), str(value))
