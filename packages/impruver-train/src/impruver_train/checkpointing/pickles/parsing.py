"""What a pickle describes, as plain values: nothing of it is imported, made or run.

The opcodes are those that torch.save and Python's pickler write into a checkpoint. Another one is refused, and so is
what no pickler writes: a name that is computed, a place in the memo beyond its end.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from impruver_train.checkpointing.pickles.opcodes import LENGTHS, NUMBERS, PROTOCOLS, read_opcodes

LARGEST_PICKLE = 1 << 26  # bytes; tensors lie outside
DEEPEST = 100
OLD_NAMES = {"__builtin__": "builtins"}  # protocol 2 keeps Python 2's name of it
PUSHED = {*LENGTHS, *NUMBERS} - {"PROTO", "FRAME", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """What is wrong with a pickle, to be told behind the name of its file."""


class Pairs(list):
    """A mapping: its keys and values, one after the other."""


@dataclass(slots=True, eq=False)
class Global:
    """A class or function by its dotted name."""

    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """What a call of the class or function `name` makes, the state that it is given then, and keys and values."""

    name: str
    args: tuple
    state: Any = None
    items: list | None = None


@dataclass(slots=True, eq=False)
class Storage:
    """The numbers of tensors, which lie outside of the pickle."""

    item_bytes: int
    count: int


@dataclass(slots=True)
class Budget:
    """What the pickles of a checkpoint may still take: steps to read them, bytes of tensors."""

    steps: int
    tensor_bytes: int

    def spend(self, steps: int = 1, tensor_bytes: int = 0) -> None:
        """PickleError where nothing is left."""
        self.steps -= steps
        self.tensor_bytes -= tensor_bytes
        if self.steps < 0 or self.tensor_bytes < 0:
            raise PickleError(f"describes far more {'values' if self.steps < 0 else 'tensors'} than its size explains")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a class or function may be used: `call` and `state` raise an error for a wrong use, None stands for none.

    `items`: whether keys and values may be put into what it makes.
    """

    call: Callable[[tuple, Budget], None] | None = None
    state: Callable[[Any], None] | None = None
    items: bool = False


class Parsed(NamedTuple):
    """The value that a pickle describes, and where the pickle ends."""

    value: Any
    end: int


def parse_pickle(
    data: bytes,
    find_rule: Callable[[str], Rule | None],
    budget: Budget,
    load_storage: Callable[[Any], Storage] | None = None,
    start: int = 0,
    protocol: int = 2,
) -> Parsed:
    """Reads the pickle that begins at `start`; PickleError for what has no rule, and for a broken one.

    `load_storage`: from a persistent id to the numbers that it stands for. `protocol`: the highest that may be used.
    """
    try:
        value, used, end = _run(data, start, find_rule, budget, load_storage)
    except PickleError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, struct.error):
        raise PickleError("is broken or cut off") from None
    if used > protocol:
        raise PickleError(f"is pickled with protocol {used}, and a checkpoint's with {protocol}")
    return Parsed(value, end)


def _run(
    data: bytes, start: int, find_rule: Callable, budget: Budget, load_storage: Callable | None
) -> tuple[Any, int, int]:
    """Goes through opcodes with a stack of values, as the pickle machine does; (last value, protocol used, end)."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}
    used, most = set(), budget.steps
    for steps, (name, argument, end) in enumerate(read_opcodes(data, start)):
        if steps == most:
            budget.spend(steps + 1)
        used.add(name)
        if name in PUSHED:
            stack.append(argument)
        elif name in ("BINPUT", "MEMOIZE", "LONG_BINPUT"):
            place = len(memo) if name == "MEMOIZE" else argument
            if place > len(memo):  # the standard unpickler would make room for all the places before
                raise PickleError("is no pickle of a checkpoint (it leaves out places of its memo)")
            memo[place] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "TUPLE":
            items, stack = tuple(stack), below.pop()
            stack.append(items)
        elif name in TUPLES:
            stack.append(tuple(_pop(stack, TUPLES[name])))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("REDUCE", "NEWOBJ"):
            made, args = _pop(stack, 2)
            stack.append(_call(made, args, find_rule, budget))
        elif name == "BINPERSID" and load_storage is not None:
            stack.append(load_storage(stack.pop()))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append(Pairs())
        elif name in ("APPEND", "APPENDS"):
            items, stack = (_pop(stack, 1), stack) if name == "APPEND" else (stack, below.pop())
            if type(stack[-1]) is not list:
                raise PickleError("is no pickle of a checkpoint (it appends to what is no list)")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items, stack = (_pop(stack, 2), stack) if name == "SETITEM" else (stack, below.pop())
            _put_items(stack[-1], items, find_rule)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument or _pop(stack, 2)
            stack.append(Global(_check_global(module, attribute, find_rule)))
        elif name == "BUILD":
            (state,) = _pop(stack, 1)
            _give_state(stack[-1], state, find_rule)
        elif name == "STOP":
            (value,) = stack
            if below:
                raise PickleError("is broken or cut off")
            budget.spend(steps)
            return value, max(PROTOCOLS[name] for name in used), end
        elif name == "FRAME":
            if argument > len(data) - end:
                raise PickleError("is broken or cut off")
        elif name == "INST":
            _check_global(*argument, find_rule)
            raise PickleError("is no pickle of a checkpoint (INST)")
        elif name != "PROTO":
            raise PickleError(f"is no pickle of a checkpoint ({name})")
    raise PickleError("is broken or cut off")


def _pop(stack: list[Any], number: int) -> list[Any]:
    """The topmost values of a stack, which loses them."""
    if len(stack) < number:
        raise PickleError("is broken or cut off")
    values = stack[-number:]
    del stack[-number:]
    return values


def _check_global(module: Any, attribute: Any, find_rule: Callable) -> str:
    """The dotted name of a class or function; PickleError for one that has no rule, or whose name is computed."""
    if type(module) is not str or type(attribute) is not str:
        raise PickleError("would import what it computes the name of when it is loaded")
    name = f"{OLD_NAMES.get(module, module)}.{attribute}"
    if find_rule(name) is None:
        raise PickleError(f"would import {name if len(name) <= 200 else f'{name[:200]}…'} when it is loaded")
    return name


def _call(made: Any, args: Any, find_rule: Callable, budget: Budget) -> Instance:
    """The result of a call; PickleError where the rule of what is called does not allow it."""
    rule = find_rule(made.name) if type(made) is Global else None
    if rule is None or rule.call is None or type(args) is not tuple:
        raise PickleError("would call what no checkpoint calls when it is loaded")
    try:
        rule.call(args, budget)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        why = f" ({error})" if type(error) is PickleError else ""
        raise PickleError(f"would call {made.name} in a way that no checkpoint does{why}") from None
    return Instance(made.name, args)


def _give_state(instance: Any, state: Any, find_rule: Callable) -> None:
    """Gives an instance its state, once: the attributes of the first one would decide what the second one does."""
    rule = find_rule(instance.name) if type(instance) is Instance else None
    if rule is None or rule.state is None or instance.state is not None:
        raise PickleError("sets attributes of what has none in a checkpoint")
    try:
        rule.state(state)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise PickleError(f"gives {instance.name} a state that it has in no checkpoint") from None
    instance.state = state


def _put_items(target: Any, items: list[Any], find_rule: Callable) -> None:
    """Puts keys and values into a mapping, or into an instance that takes them."""
    rule = find_rule(target.name) if type(target) is Instance else None
    if type(target) is not Pairs and not (rule and rule.items):
        raise PickleError("is no pickle of a checkpoint (it puts items into what is no mapping)")
    if len(items) % 2 or any(isinstance(key, list) for key in items[::2]):
        raise PickleError("is broken or cut off")
    if type(target) is Pairs:
        target.extend(items)
    else:
        target.items = target.items or []
        target.items.extend(items)


def check_extent(root: Any, budget: Budget) -> None:
    """PickleError for what is nested too deep, holds itself, or is huge where all that it names twice is written out.

    What loads the state of an optimizer goes through it by recursion, and again through what stands there again.
    """
    extents: dict[int, int] = {}  # id → how many values it holds, however deep
    path = [(root, iter(_list_parts(root)))]
    totals, above = [1], {id(root)}
    while path:
        value, parts = path[-1]
        for part in parts:
            if not isinstance(part, (list, tuple, Instance)):
                totals[-1] += 1
            elif id(part) in extents:
                totals[-1] += extents[id(part)]
            elif id(part) in above:
                raise PickleError("holds itself")
            elif len(path) == DEEPEST:
                raise PickleError(f"is nested more than {DEEPEST} deep")
            else:
                path.append((part, iter(_list_parts(part))))
                totals.append(1)
                above.add(id(part))
                break
        else:
            path.pop()
            above.remove(id(value))
            extents[id(value)] = totals.pop()
            if totals:
                totals[-1] += extents[id(value)]
    budget.spend(extents[id(root)])


def _list_parts(value: Any) -> list | tuple:
    """What a list, mapping, tuple or instance holds."""
    if isinstance(value, Instance):
        return [*value.args, value.state, *(value.items or ())]
    return value if isinstance(value, (list, tuple)) else ()
