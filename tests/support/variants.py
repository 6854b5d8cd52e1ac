"""A sample of parametrised tests, where all of them would take hours: each function in some of its variants."""

from __future__ import annotations

from collections.abc import Sequence


def sample(names: Sequence[str], one_in: int) -> list[str]:
    """Of each function's variants (`name[variant]`) one in so many, and one at least, in the order of `names`.

    It begins at another variant for each function. `one_in` should be odd: parameters mostly have two or four values,
    which an even step would always meet in the same one.
    """
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    kept = {
        name
        for number, variants in enumerate(functions.values())
        for name in variants[number % min(one_in, len(variants)) :: one_in]
    }
    return [name for name in names if name in kept]
