"""What was made of late, kept as long as it is not too much. Knows how many steps something has, not what it is."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key: those that were asked for last and have at most so many steps together, the last one whatever it has."""

    def __init__(self, most: int) -> None:
        self.most, self.steps = most, 0
        self.values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self.lock = Lock()  # several threads plan

    def get(self, key: Hashable, make: Callable[[], Value], steps: Callable[[Value], int]) -> Value:
        """Return the value of a key, which is made where it is not kept; `steps`: how many it has."""
        with self.lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key][0]
        value = make()
        with self.lock:
            self.steps += steps(value) - self.values.pop(key, (value, 0))[1]
            self.values[key] = value, steps(value)
            while self.steps > self.most and len(self.values) > 1:
                self.steps -= self.values.popitem(last=False)[1][1]
        return value
