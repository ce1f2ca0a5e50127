"""What is checked of models, files and collections before a run starts."""

import json
import shutil

import pytest
import safetensors.numpy

from jdkd import config as configs
from jdkd import validation
from jdkd.configs import common, mta4dpr
from jdkd.corpus import importing
from jdkd.models.cross_encoder import CrossEncoder
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


def small(home, **overrides):
    """A config of models and a collection under a directory."""
    c = mta4dpr.get_config('tiny')
    c.collection.source = f'beir:{home / "toy"}'
    c.collection.options = {}
    c.systems.minilm.weights = c.systems.minilm_ft.weights = c.student.weights = str(home / 'model')
    c.student.layers = ()
    c.pseudo_labels.systems = ()
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
        ({'student__weights': ''}, "student: weights='': there is no such directory"),
        ({'student__layers': (0, 3)}, r'student: layers=\(0, 3\) cannot be kept'),
        ({'student__passage_length': 41}, "student: '.*' has 40 positions, but .* need 41"),
        ({'systems__minilm_ft__query_length': 50}, "systems.minilm_ft: '.*' has 40 positions"),
        ({'student__hidden_size': 9}, 'student: hidden_size=9 is no multiple of the 4 units'),
        ({'student__dims': (9,)}, r'student: dims=\(9,\) asks for more than its 8 dimensions'),
        ({'student__freeze': 'passage'}, "student.freeze='passage' needs two towers, and the"),
        ({'student__projection': 7}, 'student: projection=7 is narrower than the 8 units of'),
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


def test_local_checkpoints_may_leave_lengths_open(home):
    lengths = {'query_length': 0, 'passage_length': 0}
    overrides = {f'student__{name}': length for name, length in lengths.items()}
    overrides |= {f'systems__minilm_ft__{name}': length for name, length in lengths.items()}
    before_start(home, **overrides, train_passage_length=0)


def test_a_classifier_of_several_labels_needs_a_choice_before_anything_is_trained(home):
    toy.write_model(home / 'pairs', CrossEncoder(toy.TRANSFORMER, 'linear', 3))
    lengths = {'query_length': 8, 'passage_length': 16}
    pairs = common.encoder(str(home / 'pairs'), kind='cross_encoder', **lengths)
    teacher = {'systems__pairs': pairs, 'teacher__members': ('bm25', 'pairs')}
    with pytest.raises(ValueError, match=r'systems.pairs: .* has 3 labels \(.*\); set label'):
        before_start(home, **teacher)
    pairs.label = 2
    before_start(home, **teacher)


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
            {
                'collection__label_share': 0.5,
                'loss__teacher': 0,
                'loss__embedding': 0,
                'assistants': (),
            },
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
        (
            {'measures': ('MRR@10', 'AnswerR@5'), 'collection__eval_labels': False},
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
    # Of all by bm25, minilm_ft and three students at once; of a fourth without the train queries.
    assert few['rankings'] == 8 * 100 * ((1 + 1 + 3) * 12 + 8)
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
