"""Changes to code, one place at a time: cosmic-ray's, and two of ours.

Ours delete a statement, and an argument so that its default takes its place. Left alone are
annotations, protocols, what is raised, logged or shown as progress, `__repr__`, arguments of
decorators, those in SILENT, and `is` in place of `==`, which is the same for strings and small
numbers.
"""

import ast
import collections
import dataclasses
import difflib
import functools
import random
from collections.abc import Mapping

SHOWN = ('logging.', 'progress.', 'bar.', 'self.bar.')  # Calls that begin with these.
SILENT = {'desc', 'frozen', 'strict'}  # Shown alone, or checks of what cannot be.
# Nodes that no operator changes, left out for speed.
_INERT = {'name', 'string', 'newline', 'endmarker', 'trailer', 'atom', 'file_input', 'funcdef'}
_INERT |= {'fstring', 'fstring_string', 'fstring_expr', 'fstring_start', 'fstring_end', 'suite'}
_PUNCTUATION = {*'()[]{},.:=;', '->', ':='}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """Some lines of a file and what takes their place."""

    path: str
    line: int  # Of the first, from 1.
    old: tuple[str, ...]
    new: tuple[str, ...]
    operator: str

    @classmethod
    def read(cls, record: Mapping) -> 'Mutant':
        """From JSON."""
        path, line, operator = record['path'], record.get('line', 0), record.get('operator', '')
        return cls(path, line, tuple(record['old']), tuple(record['new']), operator)

    @property
    def room(self) -> str:
        return self.path.split('/')[1]

    @property
    def key(self) -> tuple:
        """The same wherever its lines stand."""
        return self.path, *(tuple(s.strip() for s in x) for x in (self.old, self.new))

    def apply(self, source: str) -> str | None:
        """The source with the change, nearest to its line; None if its lines are gone."""
        lines, size = source.split('\n'), len(self.old)
        places = [i for i in range(len(lines)) if tuple(lines[i : i + size]) == self.old]
        if not places:
            return None
        at = min(places, key=lambda i: abs(i + 1 - self.line))
        return '\n'.join([*lines[:at], *self.new, *lines[at + size :]])

    def diff(self) -> str:
        lines = [*(f'-{s}' for s in self.old), *(f'+{s}' for s in self.new)]
        return '\n'.join([f'{self.path}:{self.line} ({self.operator})', *lines])


@functools.cache
def operators() -> dict:
    """Operators by name."""
    import parso
    from cosmic_ray.operators.operator import Operator
    from cosmic_ray.operators.provider import OperatorProvider

    class DeleteStatement(Operator):
        """Calls, and changes of what is there already."""

        def mutation_positions(self, node):
            if node.type != 'simple_stmt':
                return
            statement = node.children[0]
            is_call = statement.type in ('atom_expr', 'power')
            if statement.type == 'expr_stmt':
                target, sign = statement.children[:2]
                is_augmented = sign.type == 'operator' and sign.value != '='
                is_call = is_augmented or target.type in ('atom_expr', 'power')
            if is_call:
                yield statement.start_pos, statement.end_pos

        def mutate(self, node, index):
            first = node.get_first_leaf()
            node.children[0] = parso.python.tree.Keyword('pass', first.start_pos, first.prefix)
            return node

        @classmethod
        def examples(cls):
            return ()

    class DropArgument(Operator):
        """A keyword argument of a call."""

        def mutation_positions(self, node):
            for argument in self._arguments(node):
                yield argument.start_pos, argument.end_pos

        def _arguments(self, node):
            if node.type != 'arglist' or node.parent.type != 'trailer':
                return []
            named = [c for c in node.children if c.type == 'argument' and c.children[1] == '=']
            return [c for c in named if c.children[0].value not in SILENT]

        def mutate(self, node, index):
            at = node.children.index(self._arguments(node)[index])
            del node.children[max(at - 1, 0) : max(at + 1, 2)]  # With a comma.
            return node

        @classmethod
        def examples(cls):
            return ()

    theirs = OperatorProvider()
    found = {name: theirs[name] for name in theirs if not theirs[name].arguments()}
    found = {k: v for k, v in found.items() if k.endswith('Is_IsNot') or 'Is' not in k[-6:]}
    return {**found, 'DeleteStatement': DeleteStatement, 'DropArgument': DropArgument}


def _spared(tree: ast.AST) -> list[tuple]:
    """(start, end) of the code that is left alone, each a line and a column."""
    spared: list = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            spared += [d for d in node.decorator_list if isinstance(d, ast.Call)]
        if isinstance(node, ast.ClassDef) and 'Protocol' in map(ast.unparse, node.bases):
            spared.append(node)
        if isinstance(node, ast.FunctionDef):
            spared += [node.returns, *([node] if node.name == '__repr__' else [])]
        elif isinstance(node, ast.AnnAssign | ast.arg):
            spared.append(node.annotation)
        elif isinstance(node, ast.Raise):
            spared.append(node.exc)
        elif isinstance(node, ast.keyword) and node.arg in SILENT:
            spared.append(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(SHOWN):
            spared.append(node)
    spared = [n for n in spared if n is not None]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in spared]


def positions(source: str) -> dict[tuple, list[tuple[str, int]]]:
    """{(start, end): [(operator, occurrence)]} of all changes to a module."""
    import cosmic_ray.ast

    found, spared = collections.defaultdict(list), _spared(ast.parse(source))
    counts, instances = collections.Counter(), {n: o() for n, o in operators().items()}
    for node in cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source)):
        if node.type in _INERT or getattr(node, 'value', '') in _PUNCTUATION:
            continue
        for name, operator in instances.items():
            for start, end in operator.mutation_positions(node):
                if not any(a <= start and end <= b for a, b in spared):
                    found[start, end].append((name, counts[name]))
                counts[name] += 1
    return found


def mutate(path: str, source: str, name: str, occurrence: int) -> Mutant | None:
    """The change to a module; None if it is not one, or does not compile."""
    from cosmic_ray.mutating import mutate_code

    changed = mutate_code(source, operators()[name](), occurrence)
    try:
        if changed is None or ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    old, new = source.split('\n'), changed.split('\n')
    edits = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    edits = [edit for edit in edits if edit[0] != 'equal']
    (_, i, _, k, _), (_, _, j, _, m) = edits[0], edits[-1]
    if i == j:  # Lines are only added: name the one before.
        i, k = i - 1, k - 1
    return Mutant(path, i + 1, tuple(old[i:j]), tuple(new[k:m]), name)


def draw(sources: Mapping[str, str], count: int, seed: int) -> list[Mutant]:
    """Mutants at random positions of some modules, at most one a position."""
    rng, drawn = random.Random(seed), []
    places = [(p, *place) for p, s in sources.items() for place in sorted(positions(s).items())]
    for path, _, changes in rng.sample(places, len(places)):
        if mutant := mutate(path, sources[path], *rng.choice(changes)):
            drawn.append(mutant)
        if len(drawn) == count:
            break
    return drawn


def statement_lines(source: str, line: int) -> range:
    """The lines of the innermost statement at a line: of its head, if it has a body."""
    found = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.end_lineno is not None:
            body = getattr(node, 'body', None)
            end = max(body[0].lineno if body else node.end_lineno + 1, node.lineno + 1)
            if node.lineno <= line < end:
                found = range(node.lineno, end)
    return found
