"""Every command, link and snippet that README and docs show fits the code."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from absl import flags

import jdkd.main
from jdkd import config as configs
from jdkd.models import dual_encoder
from tests.helpers import toy

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PROGRAMS = ('python', 'pip', 'jdkd', 'launch/', 'cp', 'sphinx-build')
_FENCE = re.compile(r'^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r'(?<!`)`(python -m [^`]+|jdkd [a-z]+ [^`]+)`(?!`)')


def blocks(page: pathlib.Path, *languages: str) -> list[str]:
    return [m['text'] for m in _FENCE.finditer(page.read_text()) if m['language'] in languages]


def commands(page: pathlib.Path) -> Iterator[list[str]]:
    """All commands of a page, split into words; output of commands is left out."""
    shown = [line for text in blocks(page, '', 'bash') for line in lines(text)]
    shown += _INLINE.findall(_FENCE.sub('', page.read_text()))
    for line in shown:
        for part in line.split(' && '):
            yield shlex.split(part)


def lines(text: str) -> Iterator[str]:
    text = text.replace('\\\n', ' ')
    has_prompts = any(line.startswith('$ ') for line in text.splitlines())
    for line in text.splitlines():
        if line.startswith('$ ') or not has_prompts and line.startswith(PROGRAMS):
            yield line.removeprefix('$ ')


def all_commands() -> list:
    found = [(page, words) for page in PAGES for words in commands(page)]
    return [
        pytest.param(words, id=f'{page.stem}: {shlex.join(words)[:60]}') for page, words in found
    ]


def has_placeholder(words: list[str]) -> bool:
    return not {'FILE', 'DIR', 'INDEX', 'VERB'}.isdisjoint(words)


def check_jdkd(words: list[str]) -> None:
    """Arguments of jdkd.main: flags exist, take these values, and name fields that exist."""
    defined = flags.FLAGS.flags_by_module_dict()['jdkd.main']
    known = {flag.name: flag for flag in defined}
    if words[:1] != ['VERB']:
        words = jdkd.main.expand(['jdkd', *words])[1:]
    rest, arguments = iter(words), []
    for word in rest:
        if word == 'VERB':
            continue
        if not word.startswith('--'):
            arguments.append(word)
            continue
        name, equals, value = word.removeprefix('--').partition('=')
        if name.startswith('config.') or name == 'verbosity':
            continue
        flag = known[name]
        if not flag.boolean:
            value = value if equals else next(rest)
            if value != 'VERB':
                flag.parser.parse(value)
    mode = words[0].removeprefix('--mode=') if words else ''
    names = jdkd.main._ARGUMENTS.get(mode, '').split()
    assert len(arguments) <= len(names), f'{arguments} are no flags'
    if not has_placeholder(words):
        configs.check_overrides(words, jdkd.main.DEFAULT)


def check_module(name: str, words: list[str]) -> None:
    """A script of ours: it exists, and its source defines these flags."""
    assert importlib.util.find_spec(name), f'there is no module {name}'
    if name.split('.')[0] in ('pytest', 'build'):
        return
    source = pathlib.Path(importlib.util.find_spec(name).origin).read_text()
    for imported in re.findall(r'^from benchmarks import (.+)$', source, re.MULTILINE):
        for other in imported.split(', '):  # Scripts share flags.
            source += (ROOT / f'benchmarks/{other}.py').read_text()
    overrides = []
    for word in words:
        flag = word.removeprefix('--').partition('=')[0]
        if flag.startswith('config.') or flag == 'config':
            overrides.append(word)
        elif word.startswith('--'):
            assert re.search(rf"'(--)?{flag}'", source), f'{name} has no --{flag}'
    if any('config.' in word for word in overrides):
        path = next(word.split('=')[1] for word in overrides if word.startswith('--config='))
        configs.check_overrides(overrides, path)


@pytest.mark.parametrize('words', all_commands())
def test_the_command_exists(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    match words:
        case ['python', '-m', 'jdkd.main', *arguments] | ['jdkd', *arguments]:
            check_jdkd(arguments)
        case ['python', '-m', module, *arguments]:
            check_module(module, arguments)
        case ['python', '-c', code]:
            ast.parse(code)
        case ['launch/local.sh', count, '--', *arguments]:
            assert count.isdigit()
            check_jdkd(arguments)
        case ['launch/tpu_vm.sh', verb, *arguments] if '--' in arguments:
            script = (ROOT / 'launch/tpu_vm.sh').read_text()
            at = arguments.index('--')
            assert re.search(rf'^\s*{verb}\)|\b{verb} \|', script, re.MULTILINE) or verb in script
            for option in arguments[2:at]:
                assert option.partition('=')[0] in script
            check_jdkd(arguments[at + 1 :])
        case ['pip', 'install', '-r', path]:
            assert (ROOT / path).is_file()
        case ['pip', 'install', '-e', target]:
            extra = re.fullmatch(r'\.(?:\[(\w+)\])?', target)[1]
            assert extra is None or f'\n{extra} = [' in (ROOT / 'pyproject.toml').read_text()
        case ['pip', 'install', *packages]:
            assert packages
        case ['sphinx-build', *options, source, _]:
            assert set(options) <= {'-W', '-n', '--keep-going'} and (ROOT / source).is_dir()
        case ['cp', '-al', _, _] | ['rm', '-f', *_]:
            pass
        case _:
            pytest.fail(f'nobody checks {shlex.join(words)}')


def python_blocks() -> list:
    return [
        pytest.param(text, id=f'{page.stem}-{i}')
        for page in PAGES
        for i, text in enumerate(blocks(page, 'python'))
    ]


@pytest.mark.parametrize('text', python_blocks())
def test_the_snippet_parses_and_config_snippets_run(text, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    code = compile(text, 'snippet', 'exec')
    if 'def get_config' in text:
        names = {}
        exec(code, names)
        names['get_config']()
    elif text.startswith('c.'):
        from jdkd.configs import common

        c = common.get_config()
        exec(code, {'c': c, 'common': common})


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r'\]\(([^)#]+)(?:#[\w-]+)?\)', _FENCE.sub('', text)):
        if not target.startswith('http'):
            assert (page.parent / target).exists(), target
    for path in re.findall(r'`((?:jdkd|benchmarks|configs|launch|tests)/[\w./]+)`', text):
        assert (ROOT / path).exists(), path


def test_flags_in_the_text_exist():
    scripts = [*(ROOT / 'launch').glob('*.*'), *(ROOT / 'benchmarks').glob('*.py')]
    text = '\n'.join(script.read_text() for script in scripts)
    known = {flag.name for flag in flags.FLAGS.flags_by_module_dict()['jdkd.main']} | {'verbosity'}
    for page in PAGES:
        for flag in re.findall(r'`--([a-z_]+)', page.read_text()):
            shown = f'--{flag}' in text or f"'{flag}'" in text
            assert flag in known or shown, f'{page.name}: --{flag}'


def test_the_readme_is_a_front_door():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_documented_fields_exist():
    """Inline `section.field` in docs names a field of the config, or of a system."""
    from jdkd.configs import common

    c = common.get_config()
    sections = {name: set(c[name]) for name in c if hasattr(c[name], 'keys')}
    for name in ('systems', 'student', 'options', 'plan', 'collection'):
        sections.pop(name, None)
    for page in PAGES:
        for section, field in re.findall(r'`([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`', page.read_text()):
            if section in sections:
                assert field in sections[section], f'{page.name}: {section}.{field}'


@pytest.mark.slow
def test_the_readme_s_student_answers(tmp_path):
    """README's Python snippet, with a toy model in the place of the student."""
    model = dual_encoder.DualEncoder(toy.TRANSFORMER, 'mean', True)
    toy.write_model(tmp_path / 'runs/mta4dpr_tiny/student', model)
    (snippet,) = blocks(ROOT / 'README.md', 'python')
    done = subprocess.run(
        [sys.executable, '-c', snippet],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()


def rooms() -> list[str]:
    """Rooms of the architecture's drawing, row by row and from left to right."""
    drawing = (ROOT / 'docs/explanation/rooms.svg').read_text()
    return [name.removesuffix('.py') for name in re.findall(r'class="room"[^>]*>([^<]+)<', drawing)]


def test_imports_go_down_the_drawing_of_the_rooms():
    order = {room: i for i, room in enumerate(rooms())}
    source = ROOT / 'jdkd'
    assert set(order) == {
        path.stem for path in source.iterdir() if path.is_dir() or path.suffix == '.py'
    } - {'__init__', '__pycache__', 'configs', 'py', 'version'}
    for path in source.rglob('*.py'):
        room = path.relative_to(source).parts[0].removesuffix('.py')
        if room in order:
            for node in ast.walk(ast.parse(path.read_text())):
                for other in imported_rooms(node):
                    assert order.get(other, 99) >= order[room], f'{path} imports {other}'


def imported_rooms(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == 'jdkd':
        names = [f'jdkd.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or '']
    else:
        return []
    return [name.split('.')[1] for name in names if name.startswith('jdkd.')]


def test_the_notebook_was_executed_and_its_code_parses():
    cells = json.loads((ROOT / 'docs/guides/notebook.ipynb').read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        ast.parse(''.join(cell['source']).removeprefix('%%capture\n'))
        assert all(output['output_type'] != 'error' for output in cell['outputs'])
