"""Collectives of a compiled computation, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict

_BYTES = {
    'pred': 1,
    **{f'{kind}{bits}': bits // 8 for kind in 'su' for bits in (8, 16, 32, 64)},
    **{f'f{bits}': bits // 8 for bits in (16, 32, 64)},
    'bf16': 2,
    'c64': 8,
}
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_INSTRUCTION = re.compile(
    rf'= (?P<shape>\(.*?\)|\S+) (?P<kind>{"|".join(KINDS)})(?P<start>-start)?\(.*'
)
_ARRAY = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\]')
_LISTED = re.compile(r'replica_groups=\{\{([\d,]*)\}')  # {{0,1,2,3},{4,5,6,7}}
_NAMED = re.compile(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}')  # mesh['a'=8,'b'=1] {'a'}
_CHANNEL = re.compile(r'channel_id=(\d+)')
_COUNTED = re.compile(r'replica_groups=\[\d+,(\d+)\]')  # [groups,size]<=[devices]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind.

    Attributes:
        count: Operations.
        size: Bytes of their whole operands or results on a chip, whichever are more.
        sent: Bytes that a chip sends at least.
    """

    count: int
    size: int
    sent: float


def collectives(text: str, devices: int) -> dict[str, Collective]:
    """Collectives by kind; one in a loop counts once.

    On TPUs one that is overlapped stands in each of the computations that it is spread over: they
    have one channel.

    Args:
        text: Of `compiled.as_text()`.
        devices: That it is compiled for, for operations that do not name theirs.
    """
    found, seen = defaultdict(list), set()
    for match in _INSTRUCTION.finditer(text):
        line, kind = match[0], match['kind']
        ways = _ways(line, devices)
        channel = _CHANNEL.search(line)
        if ways == 1 or (channel and channel[1] in seen):
            continue
        if channel:
            seen.add(channel[1])
        arrays = [_size(*array) for array in _ARRAY.findall(match['shape'])]
        if match['start'] and kind == 'all-gather':
            arrays = arrays[len(arrays) // 2 :]  # Results stand behind operands.
        if match['start'] and kind == 'collective-permute':
            arrays = arrays[:1]
        size = sum(arrays) * (ways if kind == 'reduce-scatter' else 1)
        # Of a ring; no order of sending needs less.
        share = {'all-reduce': 2 * (ways - 1) / ways, 'collective-permute': 1.0}
        found[kind].append((size, size * share.get(kind, (ways - 1) / ways)))
    return {
        kind: Collective(len(sizes), sum(s for s, _ in sizes), sum(s for _, s in sizes))
        for kind, sizes in found.items()
    }


def _ways(line: str, devices: int) -> int:
    if match := _COUNTED.search(line):
        return int(match[1])
    if match := _NAMED.search(line):
        sizes = dict(axis.split('=') for axis in match[1].split(','))
        return math.prod(int(sizes[axis.strip()]) for axis in match[2].split(','))
    if (match := _LISTED.search(line)) and match[1]:
        return len(match[1].split(','))
    return devices


def _size(kind: str, shape: str) -> int:
    return _BYTES[kind] * math.prod(int(n) for n in shape.split(',') if n)
