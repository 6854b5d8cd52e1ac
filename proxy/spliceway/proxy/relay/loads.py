"""How many connections each worker has, in memory that all of them share."""

from __future__ import annotations

#: A worker with so many connections more than its share leaves the next ones to the others.
AHEAD = 8
#: What stands for a worker that accepts nothing: it is starting, or has died.
_ABSENT = 0xFFFF_FFFF


class Loads:
    """A 32-bit count for each worker; all are absent at first. `size` is how many workers there are."""

    def __init__(self, memory: memoryview) -> None:
        """`memory`: 4 bytes for each worker; what is in it stays."""
        self._counts = memory.cast("I")
        self.size = len(self._counts)

    def __repr__(self) -> str:
        return f"<Loads {[None if count == _ABSENT else count for count in self._counts]}>"

    @classmethod
    def of(cls, memory: memoryview) -> Loads:
        """In new memory: nobody is there yet."""
        made = cls(memory)
        for number in range(made.size):
            made.leave(number)
        return made

    def set(self, worker: int, count: int) -> None:
        """This worker accepts, and has so many."""
        self._counts[worker] = count

    def leave(self, worker: int) -> None:
        """This worker accepts no more."""
        self._counts[worker] = _ABSENT

    def total(self) -> int:
        """Connections of all workers that accept."""
        return sum(count for count in self._counts if count != _ABSENT)

    def ahead(self, mine: int) -> bool:
        """Whether a worker with so many has more than its share by far, and others could take the next one."""
        present = [count for count in self._counts if count != _ABSENT]
        return len(present) > 1 and mine > sum(present) / len(present) + AHEAD
