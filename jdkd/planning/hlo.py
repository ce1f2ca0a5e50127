"""What a compiled computation moves, read from its text."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

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
_LISTED = re.compile(r'replica_groups=\{\{([\d,]*)\}')  # {{0,1,2,3},{4,5,6,7}}
_NAMED = re.compile(r'replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}')  # mesh['a'=8,'b'=1] {'a'}
_CHANNEL = re.compile(r'channel_id=(\d+)')
_COUNTED = re.compile(r'replica_groups=\[\d+,(\d+)\]')  # [groups,size]<=[devices]

_OPERATION = re.compile(r'%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, .*)?$')
_PLACED = re.compile(rf'\b({"|".join(_BYTES)})\[([\d,]*)\](\{{[^}}]*\}})?')
_CALLED = re.compile(r'(body|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Operations that move nothing, or whose counterpart is counted.
_NAMES = {'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'while'}


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
    """Collectives by kind; one in a loop counts as often as the loop goes round.

    On TPUs one that is overlapped stands in each of the computations that it is spread over: they
    have one channel.

    Args:
        text: Of `compiled.as_text()`.
        devices: That it is compiled for, for operations that do not name theirs.
    """
    bodies, entry = _bodies(text)
    times = _times(bodies, entry)
    found, seen = defaultdict(list), set()
    for name, lines in bodies.items():
        for match in filter(None, map(_INSTRUCTION.search, lines)):
            line, kind = match[0], match['kind']
            ways = _ways(line, devices)
            channel = _CHANNEL.search(line)
            if ways == 1 or (channel and channel[1] in seen):
                continue
            if channel:
                seen.add(channel[1])
            arrays = [_size(item, shape) for item, shape, _ in _PLACED.findall(match['shape'])]
            if match['start'] and kind == 'all-gather':
                arrays = arrays[len(arrays) // 2 :]  # Results stand behind operands.
            if match['start'] and kind == 'collective-permute':
                arrays = arrays[:1]
            size = sum(arrays) * (ways if kind == 'reduce-scatter' else 1)
            # Of a ring; no order of sending needs less.
            share = {'all-reduce': 2 * (ways - 1) / ways, 'collective-permute': 1.0}
            sent = size * share.get(kind, (ways - 1) / ways)
            found[kind].append((times.get(name, 1), size, sent))
    return {
        kind: Collective(
            sum(n for n, _, _ in of), sum(n * s for n, s, _ in of), sum(n * s for n, _, s in of)
        )
        for kind, of in found.items()
    }


def _bodies(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by its name, and the name of the entry."""
    bodies, name, entry = {'': []}, '', ''
    for line in text.splitlines():
        if line.endswith('{') and not line.startswith(' '):
            name = line.removeprefix('ENTRY ').split()[0].lstrip('%')
            entry = name if line.startswith('ENTRY') else entry
            bodies[name] = []
        else:
            bodies[name].append(line)
    return bodies, entry


def _times(
    bodies: Mapping[str, Sequence[str]],
    entry: str,
    through: Collection[str] = ('body', 'calls', 'to_apply', 'branch_computations'),
) -> dict[str, int]:
    """How often each computation is called, as far as loops say how often they go round.

    Args:
        bodies: Of `_bodies`.
        entry: The same.
        through: Kinds of calls that are followed.
    """
    times: dict[str, int] = {}

    def call(name: str, count: int) -> None:
        times[name] = max(count, times.get(name, 0))
        for line in bodies[name]:
            trips = _TRIPS.search(line)
            for kind, names in _CALLED.findall(line):
                more = int(trips[1]) if trips and kind == 'body' else 1
                for other in re.findall(r'%?([\w.\-]+)', names if kind in through else ''):
                    if other in bodies:
                        call(other, count * more)

    call(entry, 1)
    return times


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


def loops(text: str) -> bool:
    """Whether a compiled computation has loops."""
    return _TRIPS.search(text) is not None


def main_memory(text: str) -> float:
    """Bytes that a compiled computation reads from and writes to a chip's main memory, about.

    The compiler's own count has what is moved within the chip too, which is several times as fast,
    and a loop only once. Operands count whole, also those that an operation reads a part of.

    Args:
        text: Of `compiled.as_text()`.
    """
    bodies, entry = _bodies(text)

    def moved(name: str) -> float:
        arrays, total = {}, 0.0
        for line in bodies[name]:
            match = _OPERATION.match(line.strip().removeprefix('ROOT '))
            if not match:
                continue
            result, shape, kind, operands = match.groups()
            placed = [(_size(a, b), 'S(1)' in layout) for a, b, layout in _PLACED.findall(shape)]
            arrays[result] = placed
            if kind in _NAMES or kind.endswith('-done'):
                continue
            read = [x for of in re.findall(r'%([\w.\-]+)', operands) for x in arrays.get(of, [])]
            if kind in ('copy-start', 'slice-start') and read:
                # Source and result are both in the tuple; a slice is read in part.
                size = min(bytes_ for bytes_, _ in placed[:2])
                total += size * ((not read[0][1]) + (not placed[kind == 'slice-start'][1]))
                continue
            total += sum(bytes_ for bytes_, inside in [*placed, *read] if not inside)
        return total

    # What a fusion calls stays within the chip.
    times = _times(bodies, entry, through=('body',))
    return sum(count * moved(name) for name, count in times.items())
