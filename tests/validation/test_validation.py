"""Configs that cannot work: the error of each, and all errors at once."""

import json
import shutil

import pytest
import safetensors.numpy

from jdkd import config as configs
from jdkd import validation
from jdkd.configs import common, mta4dpr
from jdkd.corpus import importing
from jdkd.models.dual_encoder import DualEncoder
from jdkd.planning import disk
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems.llm.answers import Answers
from jdkd.systems.llm.answers import home as answers_home
from jdkd.validation import validate
from tests.helpers import toy

DUAL = DualEncoder(toy.TRANSFORMER, 'mean', True)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('assistants', ('minilm', 'nobody'), "'nobody' is no entry of config.systems"),
        ('assistants', ('cross',), "'cross' is a cross-encoder and cannot search"),
        ('collection.source', 'csv:x', "unknown collection source 'csv:x': use one of"),
        ('collection.on_error', 'ignore', "collection.on_error is 'ignore'; use one of stop, skip"),
        ('candidates.retrievers', ('cross',), "'cross' is a cross-encoder and cannot search"),
        ('teacher.members', (), 'teacher.members is empty'),
        ('teacher.weights', (1.0,), 'does not give one weight for each'),
        ('teacher.weights', (1.0, float('inf')), 'must be finite numbers'),
        ('student.dims', (4, 4), r'student.dims=\(4, 4\) must be different whole numbers'),
        ('student.dims', (0,), r'student.dims=\(0,\) must be different whole numbers'),
        (
            'index.store',
            'int4',
            "index.store is 'int4'; use one of float32, bfloat16, int8, binary",
        ),
        ('index.store', 'binary', "index.store='binary' keeps signs alone"),
        ('compare', 'MRR@5', "compare='MRR@5' is not among measures"),
        ('candidates.hard_negatives', 0, 'must be at least 1'),
        ('candidates.depth', 500, 'candidates.depth=500 is more than is kept of a ranking'),
        ('selection.fusion', 'max', "selection.fusion is 'max'; use one of none, mean"),
        ('selection.distance', 'l2', "selection.distance is 'l2'; use one of kl, footrule, rbo"),
        ('selection.per', 'list', "selection.per is 'list'; use one of batch, query"),
        ('self_paced.weighting', 'soft', "weighting is 'soft'; use one of hard, linear"),
        ('loss.distance', 'mse', "loss.distance is 'mse'; use one of kl, margin_mse"),
        ('candidates.false_negatives', 'drop', "is 'drop'; use one of mask, keep"),
        ('loss.teacher', 'half', "loss.teacher='half' is no schedule"),
        ('loss.dark', -1.0, 'loss.dark=-1.0: -1.0 must be at least 0'),
        ('loss.temperature', ((0.0, 1.0), (1.0, 0.0)), '0.0 must be at least 0.001'),
        ('collection.eval_split', 'test', "eval_split and collection.test_split are both 'test'"),
        ('collection.eval_split', 'train', 'train_split and collection.eval_split are both'),
        ('collection.test_split', 'train', 'train_split and collection.test_split are both'),
        ('self_paced.cap', 1.5, '1.5 must be within 0.001 and 1'),
        ('selection.persistence', 1.0, 'selection.persistence=1.0 must be above 0 and below 1'),
        ('fit_floor', -0.1, 'fit_floor=-0.1 must be at least 0'),
        ('hard_queries', 'all', "hard_queries is 'all'; use one of wrong, prod"),
        ('self_paced.share', 0.0, '0.0 must be within 0.001 and 1'),
        ('optimizer.warmup_steps', 999, 'optimizer.warmup_steps=999 leaves nothing'),
        ('systems.minilm_ft.train.warmup_steps', 30, 'minilm_ft.train.warmup_steps=30 leaves'),
        ('rounds', 0, 'rounds=0 must be at least 1'),
        ('steps_per_round', 0, 'steps_per_round=0 must be at least 1'),
        ('batch_size', -8, 'batch_size=-8 must be at least 1'),
        ('depth', 0, 'depth=0 must be at least 1'),
        ('log_every', 0, 'log_every=0 must be at least 1'),
        ('checkpoint_every', 0, 'checkpoint_every=0 must be at least 1'),
        ('seed', -1, 'seed=-1 must be at least 0'),
        ('rows.chunks', 0, 'rows.chunks=0 must be at least 1'),
        ('rows.shared', 32, 'rows.shared=32 does not hold the longest candidate'),
        ('candidates.eval_lists', 0, 'candidates.eval_lists=0 must be at least 1'),
        ('candidates.hard_negatives', 200, 'is more than the 30 passages .* of each of 3 rankings'),
        ('dark.noisy', -1, 'dark.noisy=-1 must be at least 0'),
        ('dark.splice', (0.5, 0.1), r'dark.splice=\(0.5, 0.1\) must be two shares'),
        ('dark.mask', (0.5,), r'dark.mask=\(0.5,\) must be two shares'),
        ('replay', 1.5, 'replay=1.5 must be within 0 and 1'),
        ('collection.eval_fraction', 1.0, 'eval_fraction=1.0 must be above 0 and below 1'),
        ('collection.label_share', -0.5, 'collection.label_share=-0.5 must be within 0 and 1'),
        ('collection.pseudo_queries.kinds', ('word',), "names 'word'; use some of keyphrases, "),
        ('spread', 0.0, 'spread=0.0 must be above 0'),
        ('optimizer.learning_rate', float('nan'), 'optimizer.learning_rate=nan must be above 0'),
        ('optimizer.accumulate', 4, 'accumulate=4 does not divide steps_per_round=90'),
        ('systems.minilm_ft.train.accumulate', 7, 'divide systems.minilm_ft.train.steps=30'),
        ('optimizer.accumulate', 0, 'optimizer.accumulate=0 must be at least 1'),
        ('optimizer.clip_norm', 0.0, 'optimizer.clip_norm=0.0 must be above 0'),
        ('index.leaves', 2.0, 'index.leaves=2.0 must be above 0 and at most 1'),
        ('index.kind', 'faiss', "index.kind is 'faiss'; use one of scann, exact"),
        ('index.shard', 100, 'index.shard=100 is too small'),
        ('mesh.data', 0, 'mesh.data=0 must be -1 .* or at least 1'),
        ('mesh.model', 0, 'mesh.model=0 must be at least 1'),
        ('measures', ('MRP@3', 'MRR@10'), "measures names 'MRP@3'"),
        ('assistants', ('minilm', 'minilm'), "assistants names 'minilm' more than once"),
        ('train_passage_length', 41, 'train_passage_length=41 is more than the student encodes'),
        ('student.scale', 0.0, 'student.scale=0.0 must be above 0'),
        ('student.dropout', 1.0, 'student.dropout=1.0 must be at least 0 and below 1'),
        ('student.query_length', 2, 'student.query_length=2 must be at least 3'),
        ('student.pooling', 'sum', "student.pooling is 'sum'; use one of mean, cls, max"),
        ('student.dtype', 'float16', "student.dtype is 'float16'; use one of float32, bfloat16"),
        ('student.remat', 'some', "student.remat is 'some'; use one of none, dots, full"),
        ('systems.bm25.b', 1.5, 'systems.bm25.b=1.5 must be within 0 and 1'),
        ('systems.bm25.language', 'latin', "language is 'latin'; use one of arabic, "),
        ('systems.minilm.kind', 'splade', "systems.minilm.kind is 'splade'; use one of bm25"),
        ('systems.minilm_ft.train.steps', -1, 'minilm_ft.train.steps=-1 must be at least 0'),
        ('systems.minilm_ft.train.depth', 500, 'minilm_ft.train.depth=500 is more than is kept'),
        ('systems.minilm_ft.train.negatives_from', 'x', "'x' is no entry of config.systems"),
        ('systems.minilm_ft.train.negatives_from', 'cross', 'names the cross-encoder .cross.'),
        ('systems.minilm_ft.train.negatives_from', 'minilm_ft', 'minilm_ft <- minilm_ft'),
    ],
)
def test_a_field_that_cannot_work_is_an_error(field, value, message):
    config = mta4dpr.get_config()
    config.student.passage_length = config.train_passage_length = 40
    validate(configs.resolve(config))
    owner = config
    *parents, name = field.split('.')
    for parent in parents:
        owner = owner[parent]
    owner[name] = value
    with pytest.raises(ValueError, match=message):
        validate(configs.resolve(config))


def test_imported_scores_and_dark_examples_exclude_each_other():
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.teacher.members = ('ranker',)
    with pytest.raises(ValueError, match="'ranker' has imported scores and cannot score dark"):
        validate(configs.resolve(config))
    config.dark.reinforced = config.dark.noisy = 0
    validate(configs.resolve(config))
    # What only mines negatives scores nothing.
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.candidates.retrievers = ('ranker',)
    validate(configs.resolve(config))


def test_imported_scores_do_not_reach_over_a_batch():
    config = mta4dpr.get_config()
    config.systems.ranker = common.scores('ranker.trec')
    config.assistants = ('ranker',)
    config.dark.reinforced = config.dark.noisy = 0
    with pytest.raises(ValueError, match="'ranker' has imported scores, which do not reach"):
        validate(configs.resolve(config))
    config.loss.in_batch = 0.0
    validate(configs.resolve(config))


LLM = {'base_url': 'http://localhost:8000/v1', 'model': 'm', 'depth': 10}


@pytest.mark.parametrize(
    ('spec', 'changes', 'message'),
    [
        ({}, {'loss.in_batch': 0.0}, None),
        ({}, {}, "assistant 'llm' is a language model, which a batch's queries .* loss.in_batch=0"),
        ({'depth': 0}, {'assistants': ()}, None),
        ({'depth': 0}, {}, 'ranks no collection; set systems.llm.depth'),
        ({}, {'first_stage': 'llm'}, "first_stage names the language model 'llm'"),
        ({}, {'systems.minilm_ft.train.negatives_from': 'llm'}, "names the language model 'llm'"),
        ({}, {'align.to': ('llm',)}, 'of kind llm and has no embeddings'),
        ({'base_url': 'localhost:8000'}, {}, "base_url='localhost:8000' is no address"),
        ({'base_url': 'http://host:port/v1'}, {}, 'is no address of an API'),
        ({'base_url': 'https://me:sk-secret@host/v1'}, {}, 'base_url holds a password'),
        ({'model': ''}, {}, 'systems.llm.model is not set'),
        ({'prompt': 'Is {passage} good?'}, {}, 'prompt has no {query}'),
        ({'yes': 'NO '}, {}, "yes='NO' and no='no' must be different"),
        ({'extra': {'messages': []}}, {}, 'extra may not hold messages'),
        ({'endpoint': 'chats'}, {}, "endpoint is 'chats'; use one of chat, completions"),
        ({'concurrency': 0}, {}, 'concurrency=0 must be at least 1'),
        ({'listwise': {'window': 1}}, {}, 'window=1 ranks nothing'),
        ({'listwise': {'window': 4, 'step': 5}}, {}, 'listwise.step=5 leaves passages between'),
        ({'listwise': {'window': 4, 'prompt': '{query}'}}, {}, 'prompt has no {passages}'),
        ({'listwise': {'window': 10}}, {}, 'candidates.hardest compares scores of different lists'),
    ],
)
def test_language_models_must_be_asked_for_what_they_can_do(spec, changes, message):
    config = mta4dpr.get_config()
    config.systems.llm = common.llm(**{**LLM, **spec})
    config.teacher.members, config.assistants = ('llm',), ('llm', 'minilm')
    config.update_from_flattened_dict(changes)
    if message is None:
        validate(configs.resolve(config))
        return
    with pytest.raises(ValueError, match=message) as caught:
        validate(configs.resolve(config))
    assert 'sk-secret' not in str(caught.value)


def test_an_entry_that_is_not_used_may_be_anything():
    config = mta4dpr.get_config()
    config.systems.cross.train.batch_size = 0
    validate(configs.resolve(config))


def test_all_errors_of_a_config_are_raised_together():
    config = mta4dpr.get_config()
    config.rounds, config.student.dropout, config.assistants = 0, 2.0, ('minilm', 'nobody')
    config.measures, config.teacher.weights = ('MRR@10', 'best'), (1.0,)
    config.loss.teacher, config.collection.source = 'half', 'csv:x'
    config.optimizer.warmup_steps = 99
    with pytest.raises(ValueError) as caught:
        validate(configs.resolve(config))
    first, *lines = str(caught.value).splitlines()
    assert first == '8 things are wrong:' and all(line.startswith('- ') for line in lines)
    for part in (
        'rounds=0',
        'student.dropout=2.0',
        "'nobody' is no entry",
        "names 'best'",
        'teacher.weights=(1.0,)',
        "loss.teacher='half'",
        "unknown collection source 'csv:x'",
        'optimizer.warmup_steps=99',
    ):
        assert sum(part in line for line in lines) == 1, part


def small(home, **overrides):
    """A config of models and a collection under a directory."""
    c = mta4dpr.get_config('tiny')
    c.collection.source = f'beir:{home / "toy"}'
    c.collection.options = {}
    c.systems.minilm.weights = c.systems.minilm_ft.weights = c.student.weights = str(home / 'model')
    c.student.layers = ()
    c.measures = ('MRR@10', 'R@100')
    for field, value in overrides.items():
        owner = c
        *parents, name = field.split('__')
        for parent in parents:
            owner = owner[parent]
        with owner.ignore_type():
            owner[name] = value
    return configs.resolve(c)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp('made')
    toy.write_model(directory / 'model', DUAL)
    toy.write_collection(directory / 'toy', splits=('train', 'dev', 'test'))
    return directory


@pytest.fixture
def home(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'home')


def before_start(home, **overrides):
    validation.before_start(small(home, **overrides), home / 'w')


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'student__weights': './none'}, 'student: .*/none.*: there is no such directory'),
        ({'student__layers': (0, 3)}, r'student: layers=\(0, 3\) cannot be kept'),
        ({'student__passage_length': 41}, "student: '.*' has 40 positions, but .* need 41"),
        ({'systems__minilm_ft__query_length': 50}, "systems.minilm_ft: '.*' has 40 positions"),
        ({'student__hidden_size': 9}, 'student: hidden_size=9 is no multiple of the 4 units'),
        ({'student__dims': (9,)}, r'student: dims=\(9,\) asks for more than its 8 dimensions'),
        ({'student__query_weights': './none'}, 'student.query_weights: .* no such directory'),
        ({'batch_size': 12}, 'batch_size=12 does not divide over the 8 devices'),
        ({'systems__minilm_ft__train__batch_size': 4}, 'train.batch_size=4 does not divide over'),
        ({'rows__parts': 12}, 'rows.parts=12 does not divide over the 8 devices'),
        ({'rows__chunks': 3}, 'does not divide among 8 parts .rows.parts. of 3 chunks'),
        ({'mesh__model': 3}, 'mesh.data=2 times mesh.model=3 is not the number of devices, 8'),
        ({'collection__options': {'names': 'x'}}, "has no option 'names'"),
        ({'collection__options': {'questions': {'qa': 'no.csv'}}}, 'no.csv is missing; the option'),
    ],
)
def test_checkpoints_devices_and_files_must_fit(home, overrides, message):
    before_start(home)
    with pytest.raises(ValueError, match=message):
        before_start(home, **overrides)
    assert not (home / 'w').exists()


def test_a_tokenizer_must_be_its_models(home):
    tokenizer = json.loads((home / 'model/tokenizer.json').read_text())
    tokenizer['model']['vocab']['beyond'] = toy.TRANSFORMER.vocab_size
    (home / 'model/tokenizer.json').write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError) as caught:
        before_start(home)
    message = str(caught.value)
    assert message.startswith('2 things are wrong:')  # In each of two entries.
    assert 'embeddings of 15 tokens (vocab_size in config.json)' in message
    assert "its tokenizer has a token 15, 'beyond'" in message
    del tokenizer['model']['vocab']['[MASK]'], tokenizer['model']['vocab']['beyond']
    tokenizer['added_tokens'] = [t for t in tokenizer['added_tokens'] if t['content'] != '[MASK]']
    (home / 'model/tokenizer.json').write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match='has no mask token'):
        before_start(home)


def test_files_of_scores_must_be_there_until_they_are_read(home):
    overrides = {'candidates__retrievers': ('ranker',), 'systems__ranker': common.scores('no.trec')}
    with pytest.raises(ValueError, match="systems.ranker.path='no.trec': there is no such file"):
        before_start(home, **overrides)
    kept = home / 'w/systems/ranker/scores'
    kept.mkdir(parents=True)
    stages.write_json(kept / stages.MANIFEST, {})
    before_start(home, **overrides)


def opened(home, **overrides):
    config = small(home, **overrides)
    (home / 'w').mkdir(exist_ok=True)
    return Run(
        config, home / 'w', meshes.make_mesh(), importing.load_collection(config, home / 'w')
    )


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'candidates__hard_negatives': 28}, 'hard_negatives=28, but beside the 5 relevant ones'),
        (
            {'systems__minilm_ft__train__batch_size': 24},
            '=24 is more than four times the 4 labelled',
        ),
        (
            {'collection__label_share': 0.5, 'loss__teacher': 0, 'assistants': ()},
            '2 of the 4 train queries have no positive, and no term of the loss learns without',
        ),
        (
            {'collection__label_share': 0.0},
            'minilm_ft.train.steps=.* trains from labels, but no train query of .* has one',
        ),
        (
            {'collection__label_share': 0.0, 'twin': True},
            'twin needs labels to learn from, but no train query',
        ),
        (
            {'measures': ('MRR@10', 'AnswerR@5')},
            "AnswerR@5 needs answers, .* split 'dev' have no",
        ),
    ],
)
def test_the_collection_must_be_large_enough(home, overrides, message):
    validation.before_work(opened(home))
    with pytest.raises(ValueError, match=message):
        validation.before_work(opened(home, **overrides))


def test_an_endpoint_must_answer_before_work_unless_it_has_answered(home, monkeypatch):
    llm = common.llm('http://127.0.0.1:9/v1', 'm', api_key_variable='MY_KEY')
    config, workdir = small(home, systems__llm=llm, teacher__members=('llm',)), home / 'w'
    monkeypatch.delenv('MY_KEY', raising=False)
    with pytest.raises(ValueError, match='systems.llm: the environment variable MY_KEY'):
        validation.before_start(config, workdir)
    monkeypatch.setenv('MY_KEY', 'x')
    validation.before_start(config, workdir)
    run = Run(config, workdir, meshes.make_mesh(), importing.load_collection(config, workdir))
    with pytest.raises(ValueError, match=r'nothing answers at http://127.0.0.1:9/v1/models'):
        validation.before_work(run)
    Answers(answers_home(workdir, 'llm')).add('k', [-1.0, -2.0], pairs=1, tokens=(5, 1))
    validation.before_work(run)


def test_pseudo_queries_are_used_and_their_file_is_there(home):
    made = {'collection__pseudo_queries__count': 3}
    with pytest.raises(ValueError, match='pseudo_queries are unlabelled, .* set it to distil, or'):
        validate(small(home, **made, collection__unlabelled='skip'))
    missing = {'collection__pseudo_queries__file': str(home / 'no.jsonl')}
    with pytest.raises(ValueError, match=r"file='.*no.jsonl': there is no such file"):
        before_start(home, **missing)


def test_a_disk_that_is_too_small_is_an_error_with_both_figures(home, monkeypatch):
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=50 * 2**10))
    run = opened(home)
    with pytest.raises(ValueError) as caught:
        validation.before_work(run)
    total = sum(disk.estimate_run(run).values())
    assert f'will write about {total / 2**20:.1f} MiB (tokens ' in str(caught.value)
    assert 'has 0.0 MiB free' in str(caught.value)
    (run.workdir / 'systems').mkdir()  # A run that has begun passes.
    validation.before_work(run)


def test_the_disk_estimate_follows_the_config(home):
    few, more = disk.estimate_run(opened(home)), disk.estimate_run(opened(home, rounds=5))
    # minilm_ft once; in the first round the student before training, once aligned, and after it; in
    # the last of five, as it enters and leaves it, at its best, and twice in the pool of two.
    rows = 30 + 12
    assert few['embeddings'] == rows * 8 * 4 * (1 + 3)
    assert more['embeddings'] == rows * 8 * 4 * (1 + 5)
    kept = disk.estimate_run(opened(home, rounds=5, keep_students=True))
    assert kept['embeddings'] == rows * 8 * 4 * (1 + 7)
    # Rankings of the train queries go with them, those of D_eval and test stay.
    run = opened(home)
    kept_depth = 8 * run.config.depth * len(run.train)
    assert kept['rankings'] - more['rankings'] == kept_depth * (7 - 5)
    tensors = safetensors.numpy.load_file(home / 'model/model.safetensors')
    size = sum(x.size for name, x in tensors.items() if not name.startswith('pooler'))
    # Two rounds and the alignment, a copy during replacement, and minilm_ft.
    assert few['checkpoints'] == 12 * (2 + 1 + 1 + 1) * size + 4 * size
    twin = disk.estimate_run(opened(home, twin=True))
    assert twin['checkpoints'] - few['checkpoints'] == 12 * 2 * size
    unscored = disk.estimate_run(opened(home, candidates__hardest=0))
    kind = 'candidates, scores and datasets'
    # Of two rounds, 12 queries and 100 passages: the passage and the scores of two members.
    assert few[kind] - unscored[kind] == pytest.approx(2 * 12 * 100 * 4 * 3, abs=2)
    half = disk.estimate_run(opened(home, index__store='bfloat16'))
    assert half['embeddings'] == few['embeddings'] / 2
