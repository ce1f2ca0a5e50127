"""The pictures of a run.

Each is drawn of several runs at once, by name: they share the axes, and the line style tells them
apart. A run that stands alone is called ''.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from jdkd.report import drawing
from jdkd.report.drawing import (
    LINES,
    MARKERS,
    Picture,
    color,
    label,
    legend,
    marker,
    picture,
    plain,
    short,
)
from jdkd.report.examples import Duel
from jdkd.report.finished import Finished
from jdkd.run import STUDENT

Runs = Mapping[str, Finished]

_CHOICES = 6  # Assistants that a picture names.
_WINDOWS = 150  # Of training that it shows them in.


def of_runs(runs: Runs) -> list[Picture]:
    """All pictures of the way of some runs that there is something to draw of."""
    drawn = [by_round(runs), losses(runs), selected(runs), self_paced(runs)]
    return [picture for picture in drawn if picture]


def by_round(runs: Runs) -> Picture:
    """The measure that decides, of students and, where a run stands alone, of its pool."""
    figure, (axes,) = drawing.axes()
    measures = dict.fromkeys(run.config.compare for run in runs.values())
    measure = ' / '.join(measures)
    told, last = [], 0
    for (name, run), line in zip(runs.items(), LINES, strict=False):
        decides, rounds = run.config.compare, run.report['rounds']
        start = rounds[0]['references'][f'{STUDENT}_init'][decides]
        ours = [100 * v for v in (start, *(r[STUDENT][decides] for r in rounds))]
        last = max(last, len(rounds))
        style = {'color': color(0), 'linestyle': line, 'linewidth': 2.5, 'marker': 'o'}
        shown = label(STUDENT if len(measures) == 1 else f'{STUDENT} ({decides})', name)
        axes.plot(ours, label=shown, zorder=3, **style)
        after = ', '.join(f'{v:.1f} after round {i}' for i, v in enumerate(ours[1:]))
        told.append(f'{shown}: {ours[0]:.1f} at the start, {after}')
        if len(runs) == 1:
            told += _pool(axes, run)
    axes.set_xticks(range(last + 1), ['start', *(f'round {i}' for i in range(last))])
    axes.set_ylabel(f'{measure}, times 100')
    axes.margins(x=0.05, y=0.1)
    legend(axes)
    return picture(
        figure,
        'rounds',
        'From round to round',
        f'How well the right passages of queries held out of training (D_eval) are found, as '
        f'{measure} times 100: higher is better. The student starts on the left and is measured '
        'after every round; where it beats the worst assistant of the pool, it takes its place. '
        + (
            'The teacher re-ranks what the first stage finds.'
            if len(runs) == 1
            else 'Each run is measured on the queries that it held out itself.'
        ),
        '. '.join(told),
    )


def _pool(axes: Axes, run: Finished) -> list[str]:
    """Draws the pool round by round, the first stage and the teacher; returns what to say of it."""
    measure, rounds, told = run.config.compare, run.report['rounds'], []
    names = dict.fromkeys(name for r in rounds for name in r['assistants'])
    for i, name in enumerate(names):
        points = [(k, r['assistants'].get(name)) for k, r in enumerate(rounds, start=1)]
        known = [(k, 100 * found[measure]) for k, found in points if found]
        axes.plot(
            *zip(*known, strict=True),
            label=label(short(name)),
            color=color(i + 1),
            marker=marker(i + 1),
        )
        told.append(f'{name}: {known[-1][1]:.1f}')
    lines = {'teacher': (run.report['teacher_eval'], '-.')}
    first = run.config.first_stage
    if first not in names:
        lines[first] = rounds[0]['references'][first], ':'
    for name, (found, line) in lines.items():
        value = 100 * found[measure]
        axes.axhline(value, label=label(name), color='#444444', linestyle=line, linewidth=1.2)
        told.append(f'{name}: {value:.1f}')
    return told


def losses(runs: Runs) -> Picture | None:
    """The terms of the loss over the steps, and those on D_eval after each round."""
    if not any(run.records for run in runs.values()):
        return None
    figure, (axes,) = drawing.axes()
    terms = _keys(runs, lambda key: key == 'loss' or key.startswith('loss/'))
    colors = {term: color(i) for i, term in enumerate(t for t in terms if t != 'loss')}
    colors['loss'] = 'black'
    told = []
    for (name, run), line, mark in zip(runs.items(), LINES, MARKERS, strict=False):
        steps_per_round = run.config.steps_per_round
        for term in terms:
            steps, values = _series(run, term)
            if not len(steps):
                continue
            shown = 'all terms' if term == 'loss' else term.removeprefix('loss/')
            axes.plot(steps, values, label=label(shown, name), color=colors[term], linestyle=line)
            ends = [
                ((i + 1) * steps_per_round, r['eval_loss'][term])
                for i, r in enumerate(run.report['rounds'])
                if term in r['eval_loss']
            ]
            axes.plot(*zip(*ends, strict=True), color=colors[term], marker=mark, linestyle='none')
            told.append(f'{label(shown, name)}: {values[0]:.3g} at first, {values[-1]:.3g} at last')
    _rounds(axes, runs)
    axes.set_ylim(bottom=0)
    axes.set_ylabel('loss')
    legend(axes)
    return picture(
        figure,
        'loss',
        'What the student was asked to lower',
        'Each term of the loss with its weight, on one batch of the train queries every few steps: '
        'lower is better, though batches differ. Marks are the same on D_eval after each round, '
        'with the schedules as at the end of training. Grey lines end the rounds.',
        '. '.join(told),
    )


def selected(runs: Runs) -> Picture | None:
    """Which assistant taught beside the teacher, over the steps."""
    windows = {
        name: selection(run.records, run.config.steps_per_round) for name, run in runs.items()
    }
    windows = {name: found for name, found in windows.items() if found[1]}
    if not windows:
        return None
    figure, rows = drawing.axes(len(windows))
    told = []
    order = _by_share({name: shares for name, (_, shares) in windows.items()})
    for axes, (name, (edges, shares)) in zip(rows, windows.items(), strict=True):
        shown = {c: shares[c] for c in order[:_CHOICES] if np.any(shares.get(c, 0) > 0)}
        rest = np.sum([s for choice, s in shares.items() if choice not in shown], axis=0)
        if np.any(rest > 0):
            shown['others'] = rest
        bottom = np.zeros(len(edges) - 1)
        for choice, share in shown.items():
            shade = color(order.index(choice)) if choice in order else '#d0d0d0'
            style = {'color': shade, 'fill': True, 'linewidth': 0}
            axes.stairs(bottom + share, edges, baseline=bottom, label=label(short(choice)), **style)
            bottom = bottom + share
            mean = 100 * np.average(share, weights=np.diff(edges))
            told.append(f'{label(choice, name)}: {mean:.0f}%')
        axes.set_ylim(0, 1)
        axes.set_ylabel('share of the queries')
        axes.set_title(label(name), fontsize=10)
        _rounds(axes, {name: runs[name]})
        legend(axes)
    return picture(
        figure,
        'selected',
        'Who taught beside the teacher',
        'In every batch, or for every query of it where selection.per says so, the student learns '
        'from the assistant whose ranking of the candidates is closest to that of the teacher, '
        'alone or fused with others (joined by +). The height of a colour is the share of the '
        'queries that it was selected for.',
        'Over the training: ' + ', '.join(told),
    )


def selection(
    records: Sequence[Mapping[str, float]], steps_per_round: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The share of queries that each choice was selected for, between one record and the next.

    Args:
        records: `selected/<choice>` in them is the share over the round so far.
        steps_per_round: Where the shares begin anew.

    Returns:
        `[n + 1]` steps and {choice: `[n]` shares in the window that ends there}, at most some
        hundred windows.
    """
    prefix = 'selected/'
    records = [r for r in records if any(key.startswith(prefix) for key in r)]
    every = -(-len(records) // _WINDOWS) if records else 1
    # The last ones of the rounds stay, where the shares begin anew.
    kept = [
        r
        for i, r in enumerate(records, start=1)
        if i % every == 0 or i == len(records) or not r['step'] % steps_per_round
    ]
    choices = dict.fromkeys(k.removeprefix(prefix) for r in kept for k in r if k.startswith(prefix))
    edges, shares = [], {choice: [] for choice in choices}
    for r in kept:
        begun = (r['step'] - 1) // steps_per_round * steps_per_round
        edges = edges or [begun]
        if begun >= edges[-1]:
            before, counts = begun, dict.fromkeys(choices, 0.0)
        now = {c: r.get(prefix + c, 0.0) * (r['step'] - begun) for c in choices}
        for choice in choices:
            shares[choice].append((now[choice] - counts[choice]) / (r['step'] - before))
        edges.append(r['step'])
        before, counts = r['step'], now
    return np.array(edges), {choice: np.clip(s, 0, 1) for choice, s in shares.items()}


def self_paced(runs: Runs) -> Picture | None:
    """The share of lists that the self-paced mask kept, and its threshold."""
    labels = {'kept_share': 'share of lists kept', 'threshold': 'threshold'}
    if not any(_keys(runs, lambda key: key in labels)):
        return None
    figure, (axes,) = drawing.axes()
    told = []
    for (name, run), line in zip(runs.items(), LINES, strict=False):
        for i, (key, shown) in enumerate(labels.items()):
            steps, values = _series(run, key)
            if len(steps):
                style = {'color': color(i), 'linestyle': line}
                axes.plot(steps, values, label=label(shown, name), **style)
                told.append(f'{label(shown, name)}: from {values[0]:.2f} to {values[-1]:.2f}')
    _rounds(axes, runs)
    axes.set_ylim(0, 1.03)
    legend(axes)
    return picture(
        figure,
        'self_paced',
        'Dark examples: from easy to all',
        'Of the lists with dark examples, the student first learns from those where the teacher is '
        'sure of the positive: the share that is kept grows, and the threshold is the probability '
        'that the teacher must give the positive for its list to be kept.',
        '. '.join(told),
    )


def histogram(round_index: int, found: Mapping) -> Picture:
    """ADAM's figure: the teacher's scores of each kind of candidate.

    Args:
        round_index: Of the lists.
        found: From `teacher.score_histogram`.
    """
    figure, (axes,) = drawing.axes()
    told = []
    low, high = found['gap']
    positives = 'positives' if 'positive' in found['counts'] else 'stand-ins for positives'
    if low < high:
        grey = (
            'Dark examples, where there are any, are made to lie in the grey, above three quarters '
            f'of the hard negatives and below three quarters of the {positives}.'
        )
    else:
        grey = (
            f'Here the teacher is unsure as it is: hard negatives and {positives} overlap, a '
            'quarter of each reaching the grey or beyond, and dark examples have no gap to fill.'
        )
    axes.axvspan(*sorted(found['gap']), color='#eeeeee', label='between')
    for i, (kind, counts) in enumerate(found['counts'].items()):
        total = max(sum(counts), 1)
        shown = f'{plain(kind)} ({100 * found["between"][kind]:.0f}% between)'
        style = {'label': label(shown), 'color': color(i), 'linewidth': 1.6}
        axes.stairs([c / total for c in counts], found['edges'], **style)
        told.append(shown)
    axes.set_xlabel("teacher's logit")
    axes.set_ylabel('share of its kind')
    legend(axes)
    return picture(
        figure,
        f'scores_{round_index:02d}',
        f"The teacher's scores, round {round_index}",
        'How relevant the teacher finds the texts of the train lists, by their kind: the further '
        'right, the more relevant. What is plain to the teacher teaches little. ' + grey,
        '. '.join(told),
    )


def duels(found: Sequence[Duel]) -> Picture:
    """Query by query, how much better or worse a system is than others, by one measure."""
    measure = found[0].measure
    figure, (axes,) = drawing.axes()
    told = []
    for i, duel in enumerate(found):
        values = np.array(list(duel.differences.values()))
        falling = np.sort(values)[::-1]
        at = np.flatnonzero(np.diff(falling)) + 1  # Equal values are one stair.
        edges = np.concatenate([[0], at, [len(falling)]]) / len(falling)
        wins, losses_ = int((values > 0).sum()), int((values < 0).sum())
        ties = len(values) - wins - losses_
        text = f'{duel.ours} less {duel.theirs}: {wins} better, {ties} equal, {losses_} worse'
        style = {'baseline': None, 'color': color(i), 'linewidth': 1.6}
        axes.stairs(falling[np.concatenate([[0], at])], edges, label=label(text), **style)
        told.append(text)
    axes.axhline(0, color='#444444', linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel('share of the test queries')
    axes.set_ylabel(f'difference in {measure}')
    axes.legend(loc='upper left', bbox_to_anchor=(0.0, -0.2), fontsize=9, frameon=False)
    return picture(
        figure,
        'queries',
        'Wins and losses, query by query',
        f'The difference in {measure} of every test query, sorted: left of where a line meets zero '
        'are the queries that are answered better, right of where it leaves zero those that are '
        'answered worse.',
        '. '.join(told),
    )


def _rounds(axes: Axes, runs: Runs) -> None:
    """A line where each round ends."""
    axes.set_xlabel('step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for run, line in zip(runs.values(), LINES, strict=False):
        style = {'color': '#777777', 'linestyle': line, 'linewidth': 1.2, 'zorder': 1}
        for i in range(1, len(run.report['rounds'])):
            axes.axvline(i * run.config.steps_per_round, **style)


def _keys(runs: Runs, wanted: Callable[[str], bool]) -> list[str]:
    """Names of the metrics that are wanted, in the order in which records have them."""
    found = dict.fromkeys(key for run in runs.values() for r in run.records for key in r)
    return [key for key in found if wanted(key)]


def _series(run: Finished, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric."""
    points = [(r['step'], r[key]) for r in run.records if key in r]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)


def _by_share(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Choices of all runs, the one that was selected most often first."""
    total: dict[str, float] = {}
    for shares in found.values():
        for choice, share in shares.items():
            total[choice] = total.get(choice, 0.0) + float(np.sum(share))
    return sorted(total, key=lambda choice: -total[choice])
