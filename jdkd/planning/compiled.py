"""Counts what the compiler's own cost analysis leaves out: communication, memory traffic, loops.

It is read from the compiler's text, whose format nobody promises: what cannot be read is an error,
for it would count as nothing.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

_COLLECTIVE = re.compile(
    r'= (?P<shape>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|'
    r'collective-permute)(?P<start>-start)?\(.*'
)
# An operation between devices by its attributes or its name, however the line is written.
_COMMUNICATION = re.compile(
    r'\b(?:replica_groups|source_target_pairs)=|'
    r'\b(?:all|reduce|collective)[-_](?:reduce|gather|scatter|to|permute|broadcast)[\w\-]*\('
)
_WAITING = re.compile(r'-(?:done|update)\(')  # Names again what was started.
_CHANNEL = re.compile(r'channel_id=(\d+)')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_GROUP_LIST = re.compile(r'replica_groups=\{\{([\d,]*)\}')  # {{0,1,2,3},{4,5,6,7}}
_GROUP_AXES = re.compile(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}')  # mesh['a'=8,'b'=1] {'a'}
_GROUP_SHAPE = re.compile(r'replica_groups=\[\d+,(\d+)\]')  # [groups,size]<=[devices]

_OPERATION = re.compile(r'%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, .*)?$')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?')
_NUMBER = re.compile(r'(?:[sufc]|bf)(\d+)(?:e\w+)?')  # s4, f32, bf16, f8e4m3fn
_CALL = re.compile(r'(body|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r' while\(.*condition=%?([\w.\-]+)')
_LIMIT = re.compile(r'= s32\[\]\S* constant\((\d+)\)')
# Operations that move no bytes, or whose bytes another operation counts.
_FREE = {'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'while'}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind."""

    count: int  # Of operations.
    size: int  # Bytes of their whole operands or results on a chip, whichever are more.
    sent: float  # Bytes that a chip sends at least.


def collectives(text: str, devices: int) -> dict[str, Collective]:
    """Sums the collectives of a computation (`compiled.as_text()`) by kind, in loops every trip.

    On TPUs, an overlapped collective appears in each computation that it is spread over, always
    of the same channel, source and shape; it counts once.

    Raises:
        ValueError: if the text, or an operation between devices, is written in an unknown way.
    """
    bodies, entry = _computations(text)
    calls = _count_calls(bodies, entry)
    operations, seen = defaultdict(list), set()
    for name, lines in bodies.items():
        for match in filter(None, map(_read_collective, lines)):
            line, kind = match[0], match['kind']
            ways = _group_size(line, devices)
            channel, source = _CHANNEL.search(line), _SOURCE.search(line)
            # Those of a `shard_map` share one channel.
            key = channel and (channel[1], source and source[1], kind, match['shape'])
            if ways == 1 or (key and key in seen):
                continue
            seen.add(key)
            arrays = [_array_bytes(*array[:2]) for array in _ARRAY.findall(match['shape'])]
            if match['start'] and kind == 'all-gather':
                arrays = arrays[len(arrays) // 2 :]  # Operands come first, then results.
            if match['start'] and kind == 'collective-permute':
                arrays = arrays[:1]
            size = sum(arrays) * (ways if kind == 'reduce-scatter' else 1)
            # The share that a ring sends; no algorithm sends less.
            share = {'all-reduce': 2 * (ways - 1) / ways, 'collective-permute': 1.0}
            sent = size * share.get(kind, (ways - 1) / ways)
            count = calls.get(name, 1)
            operations[kind].append((count, count * size, count * sent))
    return {
        kind: Collective(*map(sum, zip(*sums, strict=True))) for kind, sums in operations.items()
    }


def _read_collective(line: str) -> re.Match | None:
    """The parts of an operation between devices; None if the line is none."""
    match = _COLLECTIVE.search(line)
    if match and _ARRAY.search(match['shape']):
        return match
    if _COMMUNICATION.search(line) and not _WAITING.search(line):
        raise _unknown('an operation between devices', line)
    return None


def _unknown(what: str, text: str) -> ValueError:
    return ValueError(
        f"the compiler's text has {what} that jdkd cannot read, so that a plan would be wrong: "
        f'{text.strip()[:200]!r}; use a version of JAX that pyproject.toml names, or report it.'
    )


def main_memory(text: str) -> float:
    """Approximate bytes that a computation (`compiled.as_text()`) moves to or from main memory.

    The compiler's own count includes traffic within the chip, which is several times as fast, and
    counts loops once. Operands count whole, even where an operation reads only a part.
    """
    bodies, entry = _computations(text)
    # Fusions keep intermediate results within the chip, so only loop bodies are followed.
    calls = _count_calls(bodies, entry, through=('body',))
    return sum(count * _moved_bytes(bodies[name]) for name, count in calls.items())


def repeated_flops(text: str, jaxpr: ClosedJaxpr) -> float:
    """Operations of matrix products in loops after the first trip, on all devices.

    XLA counts the first trip only. Zero without loops of known length.
    """
    bodies, _ = _computations(text)
    if not any(_trips(line, bodies) for lines in bodies.values() for line in lines):
        return 0.0
    return _product_flops(jaxpr.jaxpr, True) - _product_flops(jaxpr.jaxpr, False)


def product_flops(jaxpr: ClosedJaxpr) -> float:
    """Operations of all matrix products, on all devices."""
    return _product_flops(jaxpr.jaxpr, True)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by its name, and the name of the entry."""
    bodies, name, entry = {'': []}, '', ''
    for line in text.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            name = line.removeprefix('ENTRY ').split()[0].lstrip('%')
            entry = name if line.startswith('ENTRY') else entry
            bodies[name] = []
        else:
            bodies[name].append(line)
    if not any(map(_read_operation, bodies[entry])):
        raise _unknown('no entry', text)
    return bodies, entry


def _read_operation(line: str) -> re.Match | None:
    """The name, shape, kind and operands of an operation."""
    return _OPERATION.match(line.strip().removeprefix('ROOT '))


def _count_calls(
    bodies: Mapping[str, Sequence[str]],
    entry: str,
    through: Collection[str] = ('body', 'calls', 'to_apply', 'branch_computations'),
) -> dict[str, int]:
    """Counts how often each computation runs, as far as the lengths of loops are known."""
    counts: dict[str, int] = {}

    def call(name: str, count: int) -> None:
        counts[name] = max(count, counts.get(name, 0))
        for line in bodies[name]:
            trips = _trips(line, bodies)
            for kind, names in _CALL.findall(line):
                times = trips if trips and kind == 'body' else 1
                for callee in re.findall(r'%?([\w.\-]+)', names if kind in through else ''):
                    if callee in bodies:
                        call(callee, count * times)

    call(entry, 1)
    return counts


def _trips(line: str, bodies: Mapping[str, Sequence[str]]) -> int | None:
    """How often a loop runs: as it says, or as its condition does; None for other operations."""
    if known := _TRIP_COUNT.search(line):
        return int(known[1])
    if (loop := _CONDITION.search(line)) and loop[1] in bodies:
        condition = '\n'.join(bodies[loop[1]])
        limits = _LIMIT.findall(condition)
        if len(limits) == 1 and 'direction=LT' in condition:
            return int(limits[0])
    return None


def _moved_bytes(lines: Sequence[str]) -> float:
    """Bytes that one run of a computation moves to or from main memory."""
    arrays, total = {}, 0.0
    for line in lines:
        match = _read_operation(line)
        if not match:
            continue
        result, shape, kind, operands = match.groups()
        arrays[result] = written = [
            (_array_bytes(dtype, dims), 'S(1)' in layout)
            for dtype, dims, layout in _ARRAY.findall(shape)
        ]
        if kind in _FREE or kind.endswith('-done'):
            continue
        read = [x for name in re.findall(r'%([\w.\-]+)', operands) for x in arrays.get(name, [])]
        if kind in ('copy-start', 'slice-start') and read:
            # The tuple holds source and result; a slice reads only a part of its source.
            size = min(bytes_ for bytes_, _ in written[:2])
            total += size * ((not read[0][1]) + (not written[kind == 'slice-start'][1]))
            continue
        total += sum(bytes_ for bytes_, on_chip in [*written, *read] if not on_chip)
    return total


def _group_size(line: str, devices: int) -> int:
    """Number of devices that communicate with each other."""
    if match := _GROUP_SHAPE.search(line):
        return int(match[1])
    if match := _GROUP_AXES.search(line):
        sizes = dict(axis.split('=') for axis in match[1].split(','))
        return math.prod(int(sizes[axis.strip()]) for axis in match[2].split(','))
    if (match := _GROUP_LIST.search(line)) and match[1]:
        return len(match[1].split(','))
    if 'replica_groups={}' not in line and 'source_target_pairs=' not in line:
        raise _unknown('groups of devices', line)
    return devices  # All of them.


def _array_bytes(dtype: str, shape: str) -> int:
    if dtype in ('token', 'opaque'):
        return 0
    number = _NUMBER.fullmatch('s8' if dtype == 'pred' else dtype)
    # A dimension that is known at run time only is written with its bound: <=8.
    sizes = [n.strip().removeprefix('<=') for n in shape.split(',') if n]
    if not number or not all(map(str.isdecimal, sizes)):
        raise _unknown('an array', f'{dtype}[{shape}]')
    return -(-int(number[1]) * math.prod(map(int, sizes)) // 8)


def _product_flops(jaxpr: Jaxpr, count_trips: bool) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if kind == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            left: Any = eqn.invars[0].aval
            product: Any = eqn.outvars[0].aval
            total += 2 * product.size * math.prod(left.shape[axis] for axis in contracted)
        elif kind == 'pallas_call':
            total += params['cost_estimate'].flops if params['cost_estimate'] else 0
        else:
            values = [getattr(x, 'jaxpr', x) for x in jax.tree.leaves(params)]
            inner = [_product_flops(x, count_trips) for x in values if isinstance(x, Jaxpr)]
            if kind == 'cond':  # One branch runs.
                total += max(inner)
            elif kind == 'scan':
                total += sum(inner) * (params['length'] if count_trips else 1)
            else:  # The body of a shard_map computes one shard.
                total += sum(inner) * (params['mesh'].size if kind == 'shard_map' else 1)
    return total
