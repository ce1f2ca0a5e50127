"""No control character of a file, a name or a library reaches the terminal."""

import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jdkd import config as configs
from jdkd.commands import setup
from jdkd.corpus import building, storage
from jdkd.corpus.sources import registry
from jdkd.models import hub, pretrained, weights
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import trec
from jdkd.runtime import messages, stages
from jdkd.tokens.tokenizer import load_tokenizer
from tests.helpers import processes, toy

PWNED = '\x1b]0;PWNED\x07\x9b2J\u202e\r'
ACTIVE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]')


@pytest.fixture
def model(tmp_path):
    toy.write_model(tmp_path / 'model', DualEncoder(toy.TRANSFORMER))
    return tmp_path / 'model'


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


def module_type(model):
    (model / 'modules.json').write_text(json.dumps([{'type': PWNED, 'path': ''}]))


def module_path(model):
    (model / 'modules.json').write_text(json.dumps([{'type': 'x', 'path': PWNED}]))


def model_type(model):
    edit(model / 'config.json', model_type=PWNED)


def activation(model):
    edit(model / 'config.json', hidden_act=PWNED)


def layer_types(model):
    edit(model / 'config.json', model_type='modernbert', layer_types=[PWNED])


def pooling(model):
    edit(model / '1_Pooling/config.json', pooling_mode=PWNED)


def prompt(model):
    edit(model / 'config_sentence_transformers.json', prompts={'query': [PWNED]})


def shard(model):
    (model / 'model.safetensors').unlink()
    edit(model / 'model.safetensors.index.json', weight_map={PWNED: PWNED})


def broken_tokenizer(model):
    edit(model / 'tokenizer.json', model={'type': PWNED})


def special_token(model):
    edit(model / 'tokenizer_config.json', cls_token=[PWNED])


def limit(model):
    edit(model / 'sentence_bert_config.json', max_seq_length=PWNED)


@pytest.mark.parametrize(
    'change',
    [
        module_type,
        module_path,
        model_type,
        activation,
        layer_types,
        pooling,
        prompt,
        shard,
        broken_tokenizer,
        special_token,
        limit,
    ],
)
def test_errors_of_checkpoints(model, change):
    change(model)
    with pytest.raises(ValueError) as error:
        load_tokenizer(model)
        pretrained.read_pretrained(model)
    assert not ACTIVE.search(str(error.value))


@pytest.mark.parametrize(
    ('file', 'text'),
    [
        ('corpus.jsonl', json.dumps({'_id': PWNED, 'text': 'a'})),
        ('corpus.jsonl', json.dumps({'_id': [PWNED], 'text': 'a'})),
        ('corpus.jsonl', json.dumps({'_id': 'x', 'text': {PWNED: PWNED}})),
        ('corpus.jsonl', '{%s: 1, %s: 2}' % ((json.dumps(PWNED),) * 2)),
        ('corpus.jsonl', PWNED),
        ('queries.jsonl', json.dumps({'_id': PWNED, 'text': 'a'})),
        ('qrels/train.tsv', f'q\tp\t{PWNED.strip()}'),
        ('qrels/train.tsv', f'{PWNED.strip()}\tp\t1'),
    ],
)
def test_errors_of_collections(tmp_path, file, text):
    directory = toy.write_collection(tmp_path / 'given')
    (directory / file).write_text((directory / file).read_text() + text + '\n')
    with pytest.raises(ValueError) as error:
        building.build_collection(registry.open_source(f'beir:{directory}'), tmp_path)
    assert not ACTIVE.search(str(error.value))


@pytest.mark.parametrize('suffix', ['jsonl', 'parquet'])
def test_errors_of_tables(tmp_path, suffix):
    """Names of fields and of files are data too."""
    name, record = f'{PWNED.strip()}.{suffix}', {PWNED: 'a'}
    if suffix == 'jsonl':
        (tmp_path / name).write_text(json.dumps(record))
    else:
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / name)
    source = registry.open_source(f'tables:{tmp_path}', queries={'train': f'*.{suffix}'})
    with pytest.raises(ValueError, match='there is no field') as error:
        building.build_collection(source, tmp_path)
    assert not ACTIVE.search(str(error.value))


@pytest.mark.parametrize(
    'line',
    [
        f'{PWNED.strip()} Q0 p1 1 0.5 tag',
        f'q1 Q0 {PWNED.strip()} 1 0.5 tag',
        f'q1 Q0 p1 1 {PWNED.strip()} tag',
        f'{PWNED} what is this',
        json.dumps({'query_id': PWNED, 'passage_id': 'p1', 'score': 1}),
        json.dumps({'query_id': 'q1', 'passage_id': 'p1', 'score': PWNED}),
    ],
)
def test_errors_of_run_files(tmp_path, line):
    directory = toy.write_collection(tmp_path / 'given')
    building.build_collection(registry.open_source(f'beir:{directory}'), tmp_path)
    (tmp_path / 'run').write_text(f'{line}\n')
    collection = storage.open_collection(tmp_path)

    def on_error(kind, message):
        raise ValueError(message)

    with pytest.raises(ValueError) as error:
        trec.read(tmp_path / 'run', collection, on_error)
    assert not ACTIVE.search(str(error.value))


def test_errors_of_names_and_of_the_hub(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match='is no repository') as error:
        hub.check_repo(PWNED)
    assert not ACTIVE.search(str(error.value))
    with pytest.raises(FileNotFoundError, match='no such directory') as error:
        weights.local(PWNED)
    assert not ACTIVE.search(str(error.value))

    def answer(*args, **kwargs):
        raise OSError(f'401 {PWNED}')

    monkeypatch.setattr(weights, '_from_hub', answer)
    with pytest.raises(FileNotFoundError, match='401') as error:
        weights.find_weights('org/name')
    assert not ACTIVE.search(str(error.value))
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', answer)
    with pytest.raises(ConnectionError, match='401') as error:
        hub.push(tmp_path, 'org/name')
    assert not ACTIVE.search(str(error.value))


def test_errors_of_a_workdir(tmp_path):
    config = configs.resolve(setup.read_config('mta4dpr:tiny'))
    values = stages.to_json(config)
    for changed in ({PWNED: 1}, {'first_stage': PWNED}, {'seed': PWNED}):
        bad = values | changed
        extra = {'format': stages.FORMAT, 'sha256': stages.digest(bad)}
        (tmp_path / 'config.json').write_text(json.dumps(bad | extra))
        with pytest.raises(ValueError) as error:
            configs.save(tmp_path, config)
            configs.load(tmp_path)
        assert not ACTIVE.search(str(error.value))
    stages.build_stage(tmp_path / 'x', {PWNED: 1}, lambda out: None)
    with pytest.raises(ValueError, match='built from other inputs') as error:
        stages.build_stage(tmp_path / 'x', {'a': 1}, lambda out: None)
    assert not ACTIVE.search(str(error.value))


def test_streams_escape():
    raw = io.StringIO()
    stream = messages.EscapedStream(raw)
    print(f'a\tb {PWNED}', file=stream)
    assert raw.getvalue() == 'a\tb \\x1b]0;PWNED\\x07\\x9b2J\\u202e\r\n'
    stream.write('100%|█| \u3000日本 می\u200cروم \U0001f469\u200d\U0001f680')
    assert raw.getvalue().endswith('100%|█| \u3000日本 می\u200cروم \U0001f469\u200d\U0001f680')
    stream.writelines(['\x1b', '\x07'])
    assert raw.getvalue().endswith('\\x1b\\x07')
    assert not stream.isatty() and stream.writable()


@pytest.mark.slow
@pytest.mark.parametrize(
    'args',
    [
        ['--config.student.weights=' + PWNED],
        ['--config.collection.source=beir:' + PWNED],
        [f'--config.{PWNED}=1'],
        [f'--config.rounds={PWNED}'],
        [f'--{PWNED}'],
        [PWNED],
        ['--config', PWNED],
        ['--mode', PWNED],
        ['--workdir', f'/dev/null/{PWNED}'],
        ['--config.first_stage=' + PWNED],
    ],
)
def test_the_command_line(args):
    done = processes.run_jdkd('--config', 'configs/mta4dpr.py:tiny', *args)
    assert done.returncode and 'PWNED' in done.stderr + done.stdout
    assert not ACTIVE.search((done.stderr + done.stdout).replace('\r', ''))


@pytest.mark.slow
def test_what_libraries_write(tmp_path):
    """Logs, tracebacks and warnings of libraries that were handed a file's text."""
    config = tmp_path / 'config.py'
    config.write_text(
        'import logging, sys, warnings\n'
        'import absl.logging\n'
        f'PWNED = {PWNED!r}\n'
        'import transformers\n'  # Has a handler of its own.
        'transformers.logging.get_logger("transformers.tokens").warning(PWNED)\n'
        'absl.logging.warning(PWNED)\n'
        'logging.getLogger("other").warning(PWNED)\n'
        'warnings.warn(PWNED)\n'
        'print(PWNED)\n'
        'def get_config(_=""):\n'
        '    raise KeyError(PWNED, type("X", (), {"__repr__": lambda self: PWNED})())\n'
    )
    # In a new interpreter: `processes` forks one that has imported transformers already.
    done = subprocess.run(
        [sys.executable, '-m', 'jdkd.main', '--config', str(config)],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode and 'Traceback' in done.stderr
    assert 'PWNED' in done.stdout and done.stderr.count('PWNED') > 5
    assert not ACTIVE.search((done.stderr + done.stdout).replace('\r', ''))
