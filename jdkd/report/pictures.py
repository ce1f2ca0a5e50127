"""Draws the figures of training runs.

Functions take runs by name. Several runs share the axes and differ in line style; a single run has
the name ''.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from jdkd.report import drawing
from jdkd.report.drawing import LINES, MARKERS, Picture, color, label, legend, marker, render
from jdkd.report.examples import Duel
from jdkd.report.finished import Finished
from jdkd.run import STUDENT

Runs = Mapping[str, Finished]

_CHOICES = 6  # Assistants with a color of their own.
_WINDOWS = 150  # Windows of steps, at most.


def draw_training(runs: Runs) -> list[Picture]:
    """All figures for which these runs have data."""
    draw = draw_rounds, draw_alignment, draw_losses, draw_selection, draw_self_paced
    drawn = [picture(runs) for picture in draw]
    return [picture for picture in drawn if picture]


def draw_rounds(runs: Runs) -> Picture | None:
    """The measure that decides, of students and, for a single run, of its pool."""
    runs = {name: run for name, run in runs.items() if run.report['rounds']}
    if not runs:
        return None
    figure, (axes,) = drawing.new_figure()
    measures = dict.fromkeys(run.config.compare for run in runs.values())
    measure = ' / '.join(measures)
    alt, last = [], 0
    for (name, run), line in zip(runs.items(), LINES, strict=False):
        decides, rounds = run.config.compare, run.report['rounds']
        start = rounds[0]['references'][f'{STUDENT}_init'][decides]
        ours = [100 * v for v in (start, *(r[STUDENT][decides] for r in rounds))]
        last = max(last, len(rounds))
        style = {'color': color(0), 'linestyle': line, 'linewidth': 2.5, 'marker': 'o'}
        shown = label(STUDENT if len(measures) == 1 else f'{STUDENT} ({decides})', name)
        axes.plot(ours, label=shown, zorder=3, **style)
        after = ', '.join(f'{v:.1f} after round {i}' for i, v in enumerate(ours[1:]))
        alt.append(f'{shown}: {ours[0]:.1f} at the start, {after}')
        if len(runs) == 1:
            alt += _draw_pool(axes, run)
    axes.set_xticks(range(last + 1), ['start', *(f'round {i}' for i in range(last))])
    axes.set_ylabel(f'{measure}, times 100')
    axes.margins(x=0.05, y=0.1)
    legend(axes)
    return render(
        figure,
        'rounds',
        'From round to round',
        f'{measure}, times 100, of the queries held out of training (D_eval): higher is better. '
        'The student is measured before training and after every round; when it beats the worst '
        'assistant of the pool, it replaces it. '
        + (
            'The teacher re-ranks the top passages of the first stage.'
            if len(runs) == 1
            else 'Each run is measured on its own held-out queries.'
        ),
        '. '.join(alt),
    )


def _draw_pool(axes: Axes, run: Finished) -> list[str]:
    """Draws the pool round by round, the first stage and the teacher; returns their alt texts."""
    measure, rounds, alt = run.config.compare, run.report['rounds'], []
    names = dict.fromkeys(name for r in rounds for name in r['assistants'])
    for i, name in enumerate(names):
        points = [(k, r['assistants'].get(name)) for k, r in enumerate(rounds, start=1)]
        known = [(k, 100 * measures[measure]) for k, measures in points if measures]
        x, y = zip(*known, strict=True)
        axes.plot(
            x, y, label=label(drawing.shorten(name)), color=color(i + 1), marker=marker(i + 1)
        )
        alt.append(f'{name}: {known[-1][1]:.1f}')
    teacher = run.report['teacher_eval']
    lines = {'teacher': (teacher, '-.')} if teacher else {}
    first = run.config.first_stage
    if first not in names:
        lines[first] = rounds[0]['references'][first], ':'
    for name, (measures, line) in lines.items():
        value = 100 * measures[measure]
        axes.axhline(value, label=label(name), color='#444444', linestyle=line, linewidth=1.2)
        alt.append(f'{name}: {value:.1f}')
    return alt


def draw_alignment(runs: Runs) -> Picture | None:
    """The distance from the targets of the alignment, by step."""
    if not any(run.alignment for run in runs.values()):
        return None
    figure, (axes,) = drawing.new_figure()
    alt = []
    for i, (name, run) in enumerate(runs.items()):
        if not run.alignment:
            continue
        steps, values = zip(*((r['step'], r['loss']) for r in run.alignment), strict=True)
        shown = label(', '.join(run.config.align.to), name)
        axes.plot(steps, values, label=shown, color=color(i))
        alt.append(f'{shown}: {values[0]:.3g} at first, {values[-1]:.3g} at last')
    axes.set_xlabel('step')
    axes.set_ylim(bottom=0)
    axes.set_ylabel('squared distance')
    legend(axes)
    return render(
        figure,
        'alignment',
        'Alignment',
        "Before the first round the student learns the assistants' embeddings of passages and "
        'train queries. The mean squared distance from them, on one batch every few steps: for '
        'embeddings of unit length, 2 less twice the cosine.',
        '. '.join(alt),
    )


def draw_losses(runs: Runs) -> Picture | None:
    """The loss terms by step, and on D_eval after each round."""
    if not any(run.records for run in runs.values()):
        return None
    figure, (axes,) = drawing.new_figure()
    terms = _keys(runs, lambda key: key == 'loss' or key.startswith('loss/'))
    colors = {term: color(i) for i, term in enumerate(t for t in terms if t != 'loss')}
    colors['loss'] = 'black'
    alt = []
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
            alt.append(f'{label(shown, name)}: {values[0]:.3g} at first, {values[-1]:.3g} at last')
    _mark_rounds(axes, runs)
    axes.set_ylim(bottom=0)
    axes.set_ylabel('loss')
    legend(axes)
    return render(
        figure,
        'loss',
        'Training loss',
        'Each weighted term of the loss, on one batch of train queries every few steps: lower is '
        'better, though batches differ. Markers show the same terms on D_eval after each round, '
        'with the schedules as at the end of training. Grey lines end the rounds.',
        '. '.join(alt),
    )


def draw_selection(runs: Runs) -> Picture | None:
    """The assistants that were selected to teach, by step."""
    windows = {}
    for name, run in runs.items():
        edges, shares = selection_windows(run.records, run.config.steps_per_round)
        if shares:
            windows[name] = edges, shares
    if not windows:
        return None
    figure, rows = drawing.new_figure(len(windows))
    total: Counter[str] = Counter()
    for _, shares in windows.values():
        total.update({choice: np.sum(share) for choice, share in shares.items()})
    order, alt = [choice for choice, _ in total.most_common()], []
    for axes, (name, (edges, shares)) in zip(rows, windows.items(), strict=True):
        shown = {c: shares[c] for c in order[:_CHOICES] if np.any(shares.get(c, 0) > 0)}
        rest = np.sum([s for choice, s in shares.items() if choice not in shown], axis=0)
        if np.any(rest > 0):
            shown['others'] = rest
        bottom = np.zeros(len(edges) - 1)
        for choice, share in shown.items():
            shade = color(order.index(choice)) if choice in order else '#d0d0d0'
            style = {'color': shade, 'fill': True, 'linewidth': 0}
            style['label'] = label(drawing.shorten(choice))
            axes.stairs(bottom + share, edges, baseline=bottom, **style)
            bottom = bottom + share
            mean = 100 * np.average(share, weights=np.diff(edges))
            alt.append(f'{label(choice, name)}: {mean:.0f}%')
        axes.set_ylim(0, 1)
        axes.set_ylabel('share of the queries')
        axes.set_title(label(name), fontsize=10)
        _mark_rounds(axes, {name: runs[name]})
        legend(axes)
    return render(
        figure,
        'selected',
        'Selected assistants',
        'For every batch, or every query (selection.per), the student learns from the assistant '
        "whose ranking of the candidates is closest to the teacher's, alone or fused with others "
        '(joined by +). The height of a colour is the share of queries it was selected for.',
        'Over the training: ' + ', '.join(alt),
    )


def selection_windows(
    records: Sequence[Mapping[str, float]], steps_per_round: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns `[n + 1]` edges of windows of steps, and {choice: `[n]` shares of the queries}.

    In the records, `selected/<choice>` is the share over the round so far.
    """
    prefix = 'selected/'
    records = [r for r in records if any(key.startswith(prefix) for key in r)]
    every = -(-len(records) // _WINDOWS)
    # The last record of a round stays, since the shares then start again.
    kept = [
        r
        for i, r in enumerate(records, start=1)
        if i % every == 0 or i == len(records) or not r['step'] % steps_per_round
    ]
    choices = dict.fromkeys(k.removeprefix(prefix) for r in kept for k in r if k.startswith(prefix))
    edges, shares = [], {choice: [] for choice in choices}
    before, counts = 0, dict.fromkeys(choices, 0.0)
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


def draw_self_paced(runs: Runs) -> Picture | None:
    """The share of lists that the self-paced mask keeps, and its threshold, by step."""
    labels = {'kept_share': 'share of lists kept', 'threshold': 'threshold'}
    if not _keys(runs, lambda key: key in labels):
        return None
    figure, (axes,) = drawing.new_figure()
    alt = []
    for (name, run), line in zip(runs.items(), LINES, strict=False):
        for i, (key, text) in enumerate(labels.items()):
            steps, values = _series(run, key)
            if len(steps):
                shown = label(text, name)
                axes.plot(steps, values, label=shown, color=color(i), linestyle=line)
                alt.append(f'{shown}: from {values[0]:.2f} to {values[-1]:.2f}')
    _mark_rounds(axes, runs)
    axes.set_ylim(0, 1.03)
    legend(axes)
    return render(
        figure,
        'self_paced',
        'Self-paced mask',
        'Of the lists with dark examples, the student learns first from those whose positive the '
        'teacher is sure of: the mask keeps a growing share, namely the lists whose positive has '
        "a teacher's probability above the threshold.",
        '. '.join(alt),
    )


def draw_histogram(round_index: int, histogram: Mapping) -> Picture:
    """The teacher's scores of each kind of candidate, as in a figure of ADAM."""
    figure, (axes,) = drawing.new_figure()
    alt = []
    low, high = histogram['gap']
    positives = 'positives' if 'positive' in histogram['counts'] else 'stand-ins for positives'
    if low < high:
        grey = (
            'Dark examples, if any, are made to lie in the grey, above three quarters of the hard '
            f'negatives and below three quarters of the {positives}.'
        )
    else:
        grey = (
            f'Here hard negatives and {positives} overlap: a quarter of each reaches the grey or '
            'beyond, and dark examples have no gap to fill.'
        )
    axes.axvspan(*sorted(histogram['gap']), color='#eeeeee', label='between')
    for i, (kind, counts) in enumerate(histogram['counts'].items()):
        shares = np.array(counts) / max(sum(counts), 1)
        shown = f'{kind.replace("_", " ")} ({100 * histogram["between"][kind]:.0f}% between)'
        style = {'label': label(shown), 'color': color(i), 'linewidth': 1.6}
        axes.stairs(shares, histogram['edges'], **style)
        alt.append(shown)
    axes.set_xlabel("teacher's logit")
    axes.set_ylabel('share of its kind')
    legend(axes)
    return render(
        figure,
        f'scores_{round_index:02d}',
        f"The teacher's scores, round {round_index}",
        "The teacher's logits of the train lists by kind of candidate: the further right, the "
        'more relevant. Candidates that the teacher is certain of teach little. ' + grey,
        '. '.join(alt),
    )


def draw_duels(duels: Sequence[Duel]) -> Picture:
    """The sorted differences between a system and others, query by query, in one measure."""
    measure = duels[0].measure
    figure, (axes,) = drawing.new_figure()
    alt = []
    for i, duel in enumerate(duels):
        values = np.array(list(duel.differences.values()))
        falling = np.sort(values)[::-1]
        at = np.flatnonzero(np.diff(falling)) + 1  # Equal values are one stair.
        edges = np.concatenate([[0], at, [len(falling)]]) / len(falling)
        better, equal, worse = (values > 0).sum(), (values == 0).sum(), (values < 0).sum()
        text = f'{duel.ours} less {duel.theirs}: {better} better, {equal} equal, {worse} worse'
        style = {'baseline': None, 'color': color(i), 'linewidth': 1.6}
        axes.stairs(falling[np.concatenate([[0], at])], edges, label=label(text), **style)
        alt.append(text)
    axes.axhline(0, color='#444444', linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel('share of the test queries')
    axes.set_ylabel(f'difference in {measure}')
    axes.legend(loc='upper left', bbox_to_anchor=(0.0, -0.2), fontsize=9, frameon=False)
    return render(
        figure,
        'queries',
        'Wins and losses, query by query',
        f'The difference in {measure} of every test query, sorted: a line is above zero for the '
        'queries that the first system answers better, and below for those it answers worse.',
        '. '.join(alt),
    )


def _mark_rounds(axes: Axes, runs: Runs) -> None:
    """Draws a line at the end of each round."""
    axes.set_xlabel('step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for run, line in zip(runs.values(), LINES, strict=False):
        style = {'color': '#777777', 'linestyle': line, 'linewidth': 1.2, 'zorder': 1}
        for i in range(1, len(run.report['rounds'])):
            axes.axvline(i * run.config.steps_per_round, **style)


def _keys(runs: Runs, wanted: Callable[[str], bool]) -> list[str]:
    """Names of the wanted metrics, in the order of the records."""
    keys = dict.fromkeys(key for run in runs.values() for r in run.records for key in r)
    return [key for key in keys if wanted(key)]


def _series(run: Finished, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric."""
    points = [(r['step'], r[key]) for r in run.records if key in r]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps), np.array(values)
