import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import tokenizers
from flax import traverse_util

from jdkd.models import export, pretrained
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig, param_shapes
from jdkd.tokens.tokenizer import load_tokenizer

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cat', 'sat', 'on', 'the', 'mat']
TINY = TransformerConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=24,
    max_positions=20,
)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.normal(path.endswith('scale'), 0.3, shape).astype(np.float32)
        for path, shape in param_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


@pytest.fixture
def arguments(tmp_path):
    """Keyword arguments of an export, with a tokenizer on disk."""
    directory = tmp_path / 'tokenizer'
    directory.mkdir()
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.save(str(directory / 'tokenizer.json'))
    (directory / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    special = {f'{name.lower()}_token': f'[{name}]' for name in ('PAD', 'UNK', 'CLS', 'SEP')}
    (directory / 'tokenizer_config.json').write_text(
        json.dumps({'tokenizer_class': 'BertTokenizer', 'mask_token': '[MASK]', **special})
    )
    return {
        'model': DualEncoder(TINY),
        'params': {'transformer': random_params(TINY)},
        'tokenizer_dir': directory,
        'max_length': 12,
        'model_card': '---\nlicense: mit\n---\n# Tiny\n',
    }


@pytest.mark.parametrize(('pooling', 'normalize'), [('mean', True), ('cls', False)])
def test_round_trip_is_exact(tmp_path, arguments, pooling, normalize):
    arguments['model'] = DualEncoder(TINY, pooling, normalize)
    # Device arrays, as training has them.
    arguments['params'] = jax.tree.map(jax.numpy.asarray, arguments['params'])
    export.export_sentence_transformer(tmp_path / 'deep' / 'out', **arguments)
    read = pretrained.read_pretrained(tmp_path / 'deep' / 'out')
    assert read.config == TINY
    assert (read.pooling, read.normalize, read.max_length) == (pooling, normalize, 12)
    assert read.license == 'mit' and read.head is None
    jax.tree.map(np.testing.assert_array_equal, read.params, arguments['params']['transformer'])
    assert load_tokenizer(read.tokenizer_dir).special == {'cls': 2, 'sep': 3, 'pad': 0, 'mask': 4}
    # A second pass writes the same bytes.
    export.export_sentence_transformer(
        tmp_path / 'again',
        **arguments
        | {'params': {'transformer': read.params}, 'tokenizer_dir': tmp_path / 'deep/out'},
    )
    files = sorted(p.relative_to(tmp_path / 'again') for p in (tmp_path / 'again').rglob('*.*'))
    assert len(files) == 11
    for file in files:
        first, second = (tmp_path / 'deep' / 'out' / file), (tmp_path / 'again' / file)
        assert first.read_bytes() == second.read_bytes(), file


def test_an_earlier_export_is_replaced_whole(tmp_path, arguments, monkeypatch):
    target = tmp_path / 'out'
    export.export_sentence_transformer(target, **arguments)
    (target / 'onnx').mkdir()
    (target / 'onnx/model.onnx').write_text('old')
    warned = []
    monkeypatch.setattr(export.logging, 'warning', lambda text, *args: warned.append(text % args))
    export.export_sentence_transformer(target, **arguments | {'model_card': 'new'})
    assert (target / 'README.md').read_text() == 'new'
    assert not (target / 'onnx').exists() and len(warned) == 1 and 'ONNX files go' in warned[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'tokenizer']


def test_the_same_export_again_leaves_what_was_added(tmp_path, arguments):
    target = tmp_path / 'out'
    export.export_sentence_transformer(target, **arguments)
    (target / 'onnx').mkdir()
    (target / 'onnx/model.onnx').write_text('x')
    for table in ('one', 'two'):
        export.add_to_card(target, 'ONNX', f'{table}\n')
    card = arguments['model_card'] + '\n## ONNX\n\ntwo\n'
    export.export_sentence_transformer(target, **arguments)
    assert (target / 'onnx/model.onnx').read_text() == 'x'
    assert (target / 'README.md').read_text() == card
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'tokenizer']
    (target / 'model.safetensors').unlink()
    export.export_sentence_transformer(target, **arguments)
    assert (target / 'model.safetensors').is_file()


@pytest.mark.parametrize('content', ['years of work', None])
@pytest.mark.parametrize('name', ['notes.txt', 'README.md', 'onnx/mine.onnx', export.MARKER])
def test_a_file_that_was_changed_or_added_is_not_lost(tmp_path, arguments, name, content):
    target = tmp_path / 'out'
    export.export_sentence_transformer(target, **arguments)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text(content or '')
    new = arguments | {'model_card': 'new'}
    with pytest.raises(FileExistsError, match=f'changed or added since jdkd exported it .{name}.'):
        export.export_sentence_transformer(target, **new)
    assert (target / name).read_text() == (content or '')
    reasons = []

    def set_aside(reason):
        reasons.append(reason)
        target.rename(tmp_path / 'aside')

    export.export_sentence_transformer(target, **new, set_aside=set_aside)
    assert name in reasons[0] and (tmp_path / 'aside' / name).read_text() == (content or '')
    assert (target / 'README.md').read_text() == 'new'
    export.export_sentence_transformer(target, **new, set_aside=set_aside)
    assert len(reasons) == 1


def test_what_is_not_ours_is_not_overwritten(tmp_path, arguments):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match='was not exported by jdkd'):
        export.export_sentence_transformer(tmp_path / 'out', **arguments)
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['thesis.tex']
    with pytest.raises(FileExistsError, match='was not exported by jdkd'):
        export.export_sentence_transformer(tmp_path / 'out' / 'thesis.tex', **arguments)


@pytest.mark.parametrize('content', ['thesis.tex', 'new/thesis.tex', 'old/thesis.tex'])
def test_a_hidden_directory_that_is_not_ours_is_kept(tmp_path, arguments, content):
    for hidden in (tmp_path / '.out.tmp', tmp_path / 'elsewhere'):
        (hidden / content).parent.mkdir(parents=True)
        (hidden / content).write_text('years of work')
    (tmp_path / '.link.tmp').symlink_to('elsewhere')
    for name in ('out', 'link'):
        with pytest.raises(FileExistsError, match='tmp exists and was not made by jdkd'):
            export.export_sentence_transformer(tmp_path / name, **arguments)
        assert (tmp_path / f'.{name}.tmp' / content).read_text() == 'years of work'
        assert not (tmp_path / name).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*fork')
def test_an_export_killed_anywhere_leaves_the_old_or_the_new_one(tmp_path, arguments):
    export.export_sentence_transformer(tmp_path / 'made', **arguments)
    states, target = [], tmp_path / 'out'
    while not states or states[-1] != 'end':
        for path in tmp_path.glob('*out*'):
            shutil.rmtree(path)
        shutil.copytree(tmp_path / 'made', target)
        states.append(_export_killed_at(len(states), target))
        state = target / 'README.md' if target.exists() else tmp_path / '.out.tmp/old/README.md'
        assert state.read_text() in ('new', arguments['model_card']), states
        if not target.exists():
            states[-1] = 'between'
            broken = arguments | {'max_length': 999}  # The next start fails and yet recovers.
            with pytest.raises(ValueError, match='max_length'):
                export.export_sentence_transformer(target, **broken)
            assert (target / 'README.md').read_text() == arguments['model_card']
        export.export_sentence_transformer(target, **arguments | {'model_card': 'last'})
        assert (target / 'README.md').read_text() == 'last'
        assert not (tmp_path / '.out.tmp').exists()
    assert 'between' in states and 'killed' in states and len(states) > 20


def _export_killed_at(event, target):
    """Exports in a process that ends at an event of the file system; 'end' if it is over before."""
    child = os.fork()
    if child == 0:
        countdown = itertools.count(event, -1)

        def hook(name, _):
            if name in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.listdir'):
                if next(countdown) == 0:
                    os._exit(1)

        sys.addaudithook(hook)
        try:
            export._write(target, {'README.md': 'new', '1_Pooling/config.json': {}}, {})
        finally:  # Else the child would go on with the tests.
            os._exit(0)
    return 'killed' if os.waitpid(child, 0)[1] else 'end'


def test_a_rename_that_fails_leaves_the_earlier_export(tmp_path, arguments, monkeypatch):
    target = tmp_path / 'out'
    export.export_sentence_transformer(target, **arguments)
    rename = pathlib.Path.rename

    def fail(path, to):
        if path.name == 'new':
            raise OSError('no')
        return rename(path, to)

    monkeypatch.setattr(pathlib.Path, 'rename', fail)
    with pytest.raises(OSError, match='no'):
        export.export_sentence_transformer(target, **arguments | {'model_card': 'new'})
    assert (target / 'README.md').read_text() == arguments['model_card']


def test_a_target_that_is_a_link_is_replaced_and_its_directory_kept(tmp_path, arguments):
    export.export_sentence_transformer(tmp_path / 'elsewhere', **arguments)
    (tmp_path / 'out').symlink_to('elsewhere')
    export.export_sentence_transformer(tmp_path / 'out', **arguments | {'model_card': 'new'})
    assert (tmp_path / 'elsewhere/README.md').read_text() == arguments['model_card']
    assert (tmp_path / 'out/README.md').read_text() == 'new'


def test_no_local_path_of_the_tokenizer_is_published(tmp_path, arguments):
    file = arguments['tokenizer_dir'] / 'tokenizer_config.json'
    paths = dict.fromkeys(('name_or_path', 'special_tokens_map_file', 'tokenizer_file'), '/home/me')
    file.write_text(json.dumps(json.loads(file.read_text()) | paths))
    export.export_sentence_transformer(tmp_path / 'out', **arguments)
    for path in (tmp_path / 'out').rglob('*.*'):
        assert b'/home/me' not in path.read_bytes(), path


def test_the_class_that_config_json_names_stays_that_of_the_tokenizer(tmp_path, arguments):
    directory = arguments['tokenizer_dir']
    file = directory / 'tokenizer_config.json'
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in settings.items() if k != 'tokenizer_class'}))
    config = {'model_type': 'roberta', 'tokenizer_class': 'BertTokenizer'}
    (directory / 'config.json').write_text(json.dumps(config))
    model = DualEncoder(dataclasses.replace(TINY, family='roberta', position_offset=1))
    params = {'transformer': random_params(model.transformer)}
    changed = {'model': model, 'params': params}
    export.export_sentence_transformer(tmp_path / 'out', **arguments | changed)
    ours, exported = map(load_tokenizer, (directory, tmp_path / 'out'))
    assert exported.fingerprint == ours.fingerprint


def test_errors_leave_the_earlier_export(tmp_path, arguments):
    target = tmp_path / 'out'
    export.export_sentence_transformer(target, **arguments)
    deeper = dataclasses.replace(TINY, num_layers=3)
    broken = {'transformer': random_params(TINY)}
    broken['transformer']['layer_1']['ffn']['up']['kernel'][0, 0] = np.nan
    for change, kind, message in [
        ({'model': DualEncoder(TINY, 'last')}, ValueError, "'last' cannot be exported; use one of"),
        (
            {'model': CrossEncoder(TINY, 'cosine')},
            ValueError,
            "head='cosine' cannot be exported, .*; train it with head='linear'",
        ),
        ({'max_length': 21}, ValueError, 'max_length=21 is not between 1 and .*20'),
        (
            {'model': DualEncoder(deeper)},
            ValueError,
            r'layer_2/attention/key/bias has shape None, .*\(16,\)',
        ),
        ({'params': broken}, ValueError, 'layer_1/ffn/up/kernel is not finite'),
        ({'tokenizer_dir': tmp_path}, FileNotFoundError, 'has no tokenizer files'),
    ]:
        with pytest.raises(kind, match=message):
            export.export_sentence_transformer(target, **arguments | change)
    assert pretrained.read_pretrained(target).config == TINY
    assert sorted(p.name for p in tmp_path.iterdir()) == ['out', 'tokenizer']
