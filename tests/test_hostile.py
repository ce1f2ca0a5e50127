"""Input made to do harm: refused by name, or kept as the data that it is. See fuzz.py too."""

import ast
import contextlib
import gzip
import json
import os
import pathlib
import pickle
import re
import struct
import sys

import numpy as np
import pytest

import jdkd
from jdkd.commands import search
from jdkd.corpus import building, storage
from jdkd.corpus.sources import parsing, registry
from jdkd.models import pretrained
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.tokens.tokenizer import load_tokenizer
from tests.helpers import toy

TRANSFORMER = 'sentence_transformers.models.Transformer'
SCRIPT = '</h1><script>alert(1)</script>'


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp('made') / 'model'
    toy.write_model(directory, DualEncoder(toy.TRANSFORMER, projection=Projection(4)))
    return directory


@pytest.fixture
def model(made, tmp_path):
    directory = tmp_path / 'given' / 'model'
    for file in made.rglob('*'):
        if file.is_file():
            copy = directory / file.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return directory


def load(directory):
    load_tokenizer(directory)
    return pretrained.read_pretrained(directory)


def test_pickles_are_not_opened(model):
    """Neither beside the weights nor instead of them, whatever they are called."""
    evil = pickle.dumps(Evil(model / 'ran'))
    for name in ('pytorch_model.bin', 'optimizer.pt', 'model.pkl', '2_Dense/pytorch_model.bin'):
        (model / name).write_bytes(evil)
    load(model)
    weights = model / 'model.safetensors'
    weights.write_bytes(evil)
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        load(model)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match='no model.safetensors; .*pytorch_model.bin'):
        load(model)
    assert not (model / 'ran').exists()


@pytest.mark.parametrize('file', ['config.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('vocabulary', ['tokenizer.json', 'vocab.txt'])
def test_code_of_a_checkpoint_is_not_run(model, file, vocabulary):
    (model / 'evil.py').write_text(f'import os\nos.mkdir({str(model / "ran")!r})\nTokens = None\n')
    if vocabulary == 'vocab.txt':
        (model / 'tokenizer.json').unlink()
        (model / 'vocab.txt').write_text('\n'.join('[PAD] [UNK] [CLS] [SEP] [MASK] cat'.split()))
    edit(model / file, auto_map={'AutoModel': 'evil.Model', 'AutoTokenizer': ['evil.Tokens', None]})
    with pytest.raises(ValueError, match=f'{file} has auto_map: .* never run'):
        load(model)
    assert not (model / 'ran').exists()


@pytest.mark.parametrize(
    ('file', 'changes'),
    [
        ('tokenizer_config.json', {'tokenizer_class': 'evil_model.Evil'}),
        ('tokenizer_config.json', {'processor_class': 'evil_model.Evil', 'backend': 'evil_model'}),
        ('config.json', {'architectures': ['evil_model.Evil'], 'tokenizer_class': 'evil_model.E'}),
        ('config.json', {'text_config': {'auto_map': {'AutoModel': 'evil_model.Evil'}}}),
        ('config.json', {'sentence_transformers': {'activation_fn': 'evil_model.Evil'}}),
        ('config.json', {'hidden_act': 'evil_model.Evil'}),
        ('config.json', {'model_type': 'evil_model'}),
        ('2_Dense/config.json', {'activation_function': 'evil_model.Evil'}),
        ('2_Dense/config.json', {'activation_function': 'torch.evil_model.Evil'}),
    ],
)
@pytest.mark.parametrize('vocabulary', ['tokenizer.json', 'vocab.txt'])
def test_nothing_that_a_checkpoint_names_is_imported(
    model, tmp_path, monkeypatch, file, changes, vocabulary
):
    for place in (model, tmp_path):
        (place / 'evil_model.py').write_text(f'open({str(tmp_path / "ran")!r}, "w").close()\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(model)
    if vocabulary == 'vocab.txt':
        (model / 'tokenizer.json').unlink()
        (model / 'vocab.txt').write_text('\n'.join('[PAD] [UNK] [CLS] [SEP] [MASK] cat'.split()))
    edit(model / file, **changes)
    with contextlib.suppress(ValueError):  # Refused or ignored: both do.
        load(model)
    assert 'evil_model' not in sys.modules and not (tmp_path / 'ran').exists()


def test_where_jdkd_runs_or_imports_by_a_name():
    """Names of our own modules, and config files, which are code: nothing else."""
    loaders = {'import_module', '__import__', 'eval', 'exec', 'run_path', 'run_module'}
    root, calls = pathlib.Path(jdkd.__file__).parent, set()
    for path in root.rglob('*.py'):
        source = path.read_text()
        assert not re.search(r'allow_pickle|trust_remote_code=True|pickle\.loads?\(', source), path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, 'attr', getattr(node.func, 'id', None))
                if name in loaders:
                    calls.add((path.relative_to(root).as_posix(), name))
    assert calls == {
        ('__init__.py', 'import_module'),  # Names of the public API.
        ('corpus/sources/registry.py', 'import_module'),  # Kinds of sources.
        ('config/overrides.py', 'run_path'),
        # Names that stand in these files.
        ('models/onnx_export.py', 'import_module'),
        ('runtime/tracking.py', 'import_module'),
    }


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


OUTSIDE = 'which is not inside'
FLOAT = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


def header(data=b'\0' * 8, **tensors):
    encoded = json.dumps(tensors).encode()
    return struct.pack('<Q', len(encoded)) + encoded + data


@pytest.mark.parametrize(
    ('file', 'content', 'message'),
    [
        *(
            ('modules.json', [{'type': TRANSFORMER, 'path': path}], OUTSIDE)
            for path in ('../model', '/etc', 'a/../../model', '\0', '\u202e', 3)
        ),
        ('modules.json', [{'type': 'evil.Module', 'path': ''}], 'has the modules evil.Module'),
        (
            'modules.json',
            [{}],
            "damaged or of an unexpected kind.*KeyError: 'path'|KeyError: 'type'",
        ),
        ('modules.json', {}, 'holds a dict where a list belongs'),
        ('modules.json', b'[' * 100_000, 'is no JSON'),
        ('config.json', '\ufeff{}'.encode('utf-16'), 'is no JSON'),
        ('config.json', [], 'holds a list where a dict belongs'),
        *(
            ('model.safetensors.index.json', {'weight_map': {'a': name}}, OUTSIDE)
            for name in ('../../x', '/etc/passwd', 3)
        ),
        ('model.safetensors.index.json', {'weight_map': 3}, 'damaged'),
        ('model.safetensors', b'', 'damaged'),
        ('model.safetensors', struct.pack('<Q', 2**62) + b'{}', 'damaged'),
        ('model.safetensors', header(a=FLOAT, b=FLOAT), 'damaged'),
        ('model.safetensors', header(a={**FLOAT, 'data_offsets': [0, 80]}), 'damaged'),
        ('model.safetensors', header(a={**FLOAT, 'shape': [2**33, 2**33]}), 'damaged'),
        ('model.safetensors', header(a={**FLOAT, 'shape': [-1]}), 'damaged'),
        ('model.safetensors', header(a={**FLOAT, 'dtype': 'EVIL'}), 'damaged'),
        ('tokenizer.json', {'model': {'type': 'Evil'}}, 'is no tokenizer'),
        ('sentence_bert_config.json', {'max_seq_length': -5}, 'it must be a number of tokens'),
        ('tokenizer_config.json', {'cls_token': [1]}, 'no tokenizer that transformers can'),
        ('1_Pooling/config.json', {'pooling_mode': [{}]}, 'asks for pooling {}'),
        ('2_Dense/config.json', {'out_features': 10**30, 'in_features': 8}, 'implies'),
        ('config_sentence_transformers.json', {'prompts': [1]}, 'damaged'),
        ('config_sentence_transformers.json', {'prompts': {'query': 1}}, 'prompt must be a string'),
    ],
)
def test_checkpoints_that_lie(model, file, content, message):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    (model / file).write_bytes(content)
    if 'index' in file:  # Else it does not count.
        (model / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match=message) as error:
        load(model)
    assert str(model / file.replace('2_Dense/config', '2_Dense/model').replace('l.json', 'l.')) in (
        str(error.value)
    )


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        *(('hidden_size', x) for x in (10**9, 2**62, -8, 0, '8', 8.0, True)),
        *(('num_hidden_layers', x) for x in (10**6, 10**9, 0, -1)),
        *(('num_attention_heads', x) for x in (0, -2)),
        *(('max_position_embeddings', x) for x in (10**12, -1)),
        *(('layer_norm_eps', x) for x in ('x', -1, float('nan'), float('inf'))),
        *(('pad_token_id', x) for x in (-1, 2**40)),
        *(('model_type', x) for x in (['bert'], {}, 'evil')),
        ('hidden_act', ['gelu']),
        ('architectures', 5),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(model, field, value):
    edit(model / 'config.json', **{field: value})
    with pytest.raises(ValueError, match=re.escape(str(model))):
        pretrained.read_pretrained(model)


def test_where_rust_panics_the_tokenizer_is_refused(model):
    normalizer = {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}
    edit(model / 'tokenizer.json', normalizer=normalizer)
    with pytest.raises(ValueError, match=r'tokenizer.json is no tokenizer that can be used'):
        load_tokenizer(model)


def test_exports_copy_no_link_out_of_a_checkpoint(model, tmp_path):
    secret = tmp_path / 'id_rsa'
    secret.write_text('secret')
    (model / 'vocab.txt').symlink_to(secret)
    with pytest.raises(ValueError, match='vocab.txt is a link to .*id_rsa, outside the checkpoint'):
        load(model)


def test_the_links_of_the_hubs_cache_are_its_own(model, tmp_path):
    commit, blobs = tmp_path / 'models--x/snapshots/abc', tmp_path / 'models--x/blobs'
    blobs.mkdir(parents=True)
    for i, file in enumerate(f for f in sorted(model.rglob('*')) if f.is_file()):
        link = commit / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(i))
        link.symlink_to(blobs / str(i))
    assert load(commit).projection.out_dim == 4


def test_transformers_does_not_make_do_without_the_vocabulary(model):
    (model / 'tokenizer.json').unlink()
    (model / 'vocab.json').write_text(json.dumps({f'w{i}': i for i in range(100)}))
    edit(model / 'tokenizer_config.json', tokenizer_class='BertTokenizer')
    with pytest.raises(ValueError, match='it ignores the vocabulary of 100 tokens'):
        load_tokenizer(model)


def build(directory, tmp_path, **options):
    out = tmp_path / 'built'
    out.mkdir()
    building.build_collection(registry.open_source(f'beir:{directory}', **options), out)
    return storage.open_collection(out)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (rb'{"_id": "x\u0000", "text": "a"}', 'control character'),
        (rb'{"_id": "x\ny", "text": "a"}', 'control character'),
        (rb'{"_id": "a\tb", "text": "a"}', 'control character'),
        (rb'{"_id": "x\u202ey", "text": "a"}', 'control character'),
        (rb'{"_id": "\ud800", "text": "a"}', 'control character'),
        (b'{"_id": "%s", "text": "a"}' % (b'x' * 10_000_000), '10000000 characters'),
        (rb'{"_id": "x", "text": "\ud800"}', 'lone surrogate'),
        (rb'{"_id": "x", "title": "\ud800", "text": ""}', 'lone surrogate'),
        (b'{"_id": "x", "text": "a", "text": "b"}', "field 'text' is there twice"),
        (b'{"_id": 1.5, "text": "a"}', 'must be a string or integer, found 1.5'),
        (b'{"_id": NaN, "text": "a"}', 'must be a string or integer, found nan'),
        (b'[' * 100_000, 'not JSON'),
        (b'{"_id": %s, "text": "a"}' % (b'9' * 5000), 'not JSON'),
        ('{"_id": "x", "text": "a"}'.encode('utf-16'), 'not UTF-8'),
        ('{"_id": "x", "text": "a"}'.encode('utf-16-le'), 'not JSON'),
    ],
)
def test_passages_that_cannot_be_kept(tmp_path, line, message):
    directory = toy.write_collection(tmp_path / 'given')
    corpus = directory / 'corpus.jsonl'
    corpus.write_bytes(corpus.read_bytes() + b'\n' + line)
    with pytest.raises(ValueError, match=message) as error:
        build(directory, tmp_path)
    assert str(error.value).startswith(f'{corpus}:31: ') and len(str(error.value)) < 600


def test_texts_are_only_texts(tmp_path):
    """Paths in ids, control codes, text from right to left and ten megabytes stay as they are."""
    directory = toy.write_collection(tmp_path / 'given')
    texts = {
        '../../../etc/passwd': SCRIPT,
        '/absolute': '\0 \x1b[2J \u202e\u05d0\u05d1 \u200f',
        'https://en.wikipedia.org/?a=<b>': 'word ' * 2_000_000,
        '$(touch${IFS}x)': '{{7*7}} %s {0} \\u0000',
    }
    # With CRLF, and a mark of byte order at the head of the file.
    lines = [json.dumps({'_id': i, 'text': text}) for i, text in texts.items()]
    corpus = directory / 'corpus.jsonl'
    corpus.write_bytes(
        b'\xef\xbb\xbf' + '\r\n'.join(lines).encode() + b'\r\n' + corpus.read_bytes()
    )
    found = build(directory, tmp_path)
    assert dict(zip(found.passage_ids[:4], found.passages.texts[:4], strict=True)) == texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ['built', 'given']


@pytest.mark.parametrize(
    ('grade', 'message'),
    [
        ('9' * 5000, 'more than 7 digits'),
        ('-3000000000', 'more than 7 digits'),
        *((grade, 'must be an integer') for grade in ('nan', '٣', '1_0')),
    ],
)
def test_grades_that_cannot_be_kept(tmp_path, grade, message):
    directory = toy.write_collection(tmp_path / 'given')
    qrels = directory / 'qrels/test.tsv'
    qrels.write_text(qrels.read_text() + f'\ntest0\tp0\t{grade}')
    with pytest.raises(ValueError, match=message) as error:
        build(directory, tmp_path)
    assert str(error.value).startswith(f'{qrels}:22: ') and len(str(error.value)) < 400


def test_lines_without_an_end_are_refused_before_they_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, '_MAX_LINE', 1000)
    bomb = tmp_path / 'corpus.jsonl.gz'
    bomb.write_bytes(gzip.compress(b'{}\n' + b'\0' * 10_000_000))
    lines = parsing.read_lines(bomb, lambda kind, message: None)
    assert next(lines)[1] == '{}'
    with pytest.raises(ValueError, match='corpus.jsonl.gz:2: the line is longer than 1000 bytes'):
        next(lines)


@pytest.mark.parametrize('field', ['name', 'license'])
@pytest.mark.parametrize('value', ['a\nb: c', '\x1b[2J', 'x\u202ey', '', 3])
def test_names_of_collections_are_a_line_of_text(tmp_path, field, value):
    directory = toy.write_collection(tmp_path / 'given')
    with pytest.raises(ValueError, match=f'options.{field}=.*a line of printable text'):
        build(directory, tmp_path, **{field: value or '\n'})


def test_a_terminal_does_what_no_passage_says():
    title, text = '\x1b]0;owned\x07', '\x1b[2J' + '\u202eword\n' * 2_000_000
    shown = search._cell(title, text, 1.0, 40)
    assert len(shown) < 6 and all(line.isprintable() and len(line) <= 40 for line in shown)


def test_ids_of_a_vocabulary_with_gaps_are_kept(model):
    content = json.loads((model / 'tokenizer.json').read_text())
    content['model']['vocab']['cat'] = 70_000
    (model / 'tokenizer.json').write_text(json.dumps(content))
    ids = load_tokenizer(model).encode(['cat'], 8).ids
    np.testing.assert_array_equal(ids, [2, 70_000, 3])
