"""Configs that cannot work: the error of each, and all errors at once."""

import pytest

from jdkd import config as configs
from jdkd.config import EncoderSpec
from jdkd.configs import common, mta4dpr
from jdkd.models.dual_encoder import DualEncoder
from jdkd.validation import checkpoints, validate
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
        ('student', {'projection': 768, 'freeze': 'passage'}, "freeze='passage' keeps passages"),
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
        ('collection.test_split', 'passages', "test_split is 'passages', as the files of passages"),
        ('collection.eval_split', 'passages-64', "eval_split is 'passages-64', as the files of"),
        ('self_paced.cap', 1.5, '1.5 must be within 0.001 and 1'),
        ('selection.persistence', 1.0, 'selection.persistence=1.0 must be above 0 and below 1'),
        ('fit_floor', -0.1, 'fit_floor=-0.1 must be at least 0'),
        ('hard_queries', 'all', "hard_queries is 'all'; use one of wrong, prod"),
        ('self_paced.share', 0.0, '0.0 must be within 0.001 and 1'),
        ('optimizer.warmup_steps', 999, 'optimizer.warmup_steps=999 leaves nothing'),
        ('optimizer.total_steps', 0, 'optimizer.total_steps=0 must be at least 1'),
        ('systems.minilm_ft.train.warmup_steps', 100, 'minilm_ft.train.warmup_steps=100 leaves'),
        ('rounds', -1, 'rounds=-1 must be at least 0'),
        ('collection.test_split', '', "collection.test_split is ''; name a split"),
        ('steps_per_round', 0, 'steps_per_round=0 must be at least 1'),
        ('batch_size', -8, 'batch_size=-8 must be at least 1'),
        ('depth', 0, 'depth=0 must be at least 1'),
        ('log_every', 0, 'log_every=0 must be at least 1'),
        ('checkpoint_every', 0, 'checkpoint_every=0 must be at least 1'),
        ('seed', -1, 'seed=-1 must be at least 0'),
        ('rows.chunks', 0, 'rows.chunks=0 must be at least 1'),
        ('rows.shared', 32, 'rows.shared=32 does not hold .* student.passage_length=40'),
        ('candidates.eval_lists', 0, 'candidates.eval_lists=0 must be at least 1'),
        (
            'measures',
            ('MRR@10', 'R@1000'),
            "'R@1000', but a ranking keeps depth=100 passages; raise",
        ),
        ('measures', ('MRR@10', 'AnswerR@101'), "'AnswerR@101', but a ranking keeps depth=100"),
        ('candidates.hardest', 4, 'candidates.hardest=4 is less than candidates.hard_negatives=5'),
        ('candidates.scored', 4, 'candidates.scored=4 is less than candidates.hard_negatives=5'),
        ('fit_floor', 1.8, 'fit_floor=1.8 is no less than .* 1 . candidates.hard_negatives=5 '),
        ('candidates.hard_negatives', 200, 'is more than the 30 passages .* of each of 3 rankings'),
        ('dark.noisy', -1, 'dark.noisy=-1 must be at least 0'),
        ('dark.splice', (0.5, 0.1), r'dark.splice=\(0.5, 0.1\) must be two shares'),
        ('dark.mask', (0.5,), r'dark.mask=\(0.5,\) must be two shares'),
        ('replay', 1.5, 'replay=1.5 must be within 0 and 1'),
        ('collection.eval_fraction', 1.0, 'eval_fraction=1.0 must be above 0 and below 1'),
        ('collection.label_share', -0.5, 'collection.label_share=-0.5 must be within 0 and 1'),
        ('collection.pseudo_queries.kinds', ('word',), "names 'word'; use some of keyphrases, "),
        ('pseudo_labels.share', 0.0, 'pseudo_labels.share=0.0 must be above 0 and at most 1'),
        ('pseudo_labels.systems', ('minilm', 'minilm'), "systems names 'minilm' more than once"),
        ('pseudo_labels.systems', ('minilm_ft',), "'minilm_ft', which is trained from the labels"),
        ('pseudo_labels.systems', ('cross',), "names 'cross', which is of kind cross_encoder and "),
        ('candidates.stand_ins', 1, 'stand_ins=1 leaves pseudo-labels no second passage to lead'),
        ('spread', 0.0, 'spread=0.0 must be above 0'),
        ('optimizer.learning_rate', float('nan'), 'optimizer.learning_rate=nan must be above 0'),
        ('optimizer.accumulate', 7, 'accumulate=7 does not divide steps_per_round=120'),
        ('systems.minilm_ft.train.accumulate', 7, 'divide systems.minilm_ft.train.steps=100'),
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
        ('student.query_length', 2, 'student.query_length=2 must be 0 or at least 3'),
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


def test_shared_rows_hold_the_whole_passages_of_alignment():
    config = mta4dpr.get_config()
    config.student.passage_length, config.train_passage_length, config.rows.shared = 80, 40, 60
    with pytest.raises(ValueError, match='rows.shared=60 does not .* student.passage_length=80'):
        validate(configs.resolve(config))
    config.align.epochs = 0.0
    validate(configs.resolve(config))
    config.rows.shared = 32
    with pytest.raises(ValueError, match='rows.shared=32 .* train_passage_length=40'):
        validate(configs.resolve(config))


def test_some_term_of_the_loss_has_a_weight():
    config = mta4dpr.get_config()
    config.loss.contrastive = config.loss.teacher = 0.0
    validate(configs.resolve(config))  # Assistants are left.
    config.assistants = ()
    with pytest.raises(ValueError, match='no term of the loss has a weight'):
        validate(configs.resolve(config))
    for term in ('contrastive', 'teacher', 'embedding', 'pool'):
        config.loss[term] = 1.0
        validate(configs.resolve(config))
        config.loss[term] = 0.0


@pytest.mark.parametrize('name', ['a b', 'student_x', 'teacher', 'twin'])
def test_names_that_reports_use_name_no_system(name):
    config = mta4dpr.get_config()
    config.systems[name] = common.bm25()
    with pytest.raises(ValueError, match=f"'{name}' cannot name a system"):
        validate(configs.resolve(config))


def test_signs_alone_are_stored_where_nothing_is_aligned():
    config = mta4dpr.get_config()
    config.index.store, config.align.epochs = 'binary', 0.0
    validate(configs.resolve(config))
    config.loss.embedding = 1.0
    with pytest.raises(ValueError, match='align.epochs=0 and loss.embedding=0'):
        validate(configs.resolve(config))


@pytest.mark.parametrize('normalize', [True, False])
def test_signs_alone_are_stored_of_embeddings_of_unit_length(tmp_path, normalize):
    toy.write_model(tmp_path / 'm', DualEncoder(toy.TRANSFORMER, 'mean', normalize))
    spec = EncoderSpec(weights=str(tmp_path / 'm'), query_length=8, passage_length=8)
    found = [*checkpoints.errors({'student': spec}, store='binary', fetch=False)]
    assert len(found) == (not normalize)
    assert all(error.startswith("student: index.store='binary' keeps signs") for error in found)
    assert [
        *checkpoints.errors({'student': spec.replace(kind=None)}, store='binary', fetch=False)
    ] == found
    assert not [*checkpoints.errors({'student': spec}, store='int8', fetch=False)]
    cosine = spec.replace(normalize=True)
    assert not [*checkpoints.errors({'student': cosine}, store='binary', fetch=False)]


def test_frozen_passages_stay_in_the_space_of_the_students_start():
    config = mta4dpr.get_config()
    config.student.freeze, config.student.layers = 'passage', ()
    with pytest.raises(ValueError, match="brings queries to the space of 'minilm_ft'; name one "):
        validate(configs.resolve(config))  # Fine-tuned.
    config.align.to = ('minilm',)
    validate(configs.resolve(config))
    for name, value in {'layers': (0, 4, 5), 'dims': (128,)}.items():
        config.student[name] = value
        with pytest.raises(ValueError, match="the space of 'minilm'"):
            validate(configs.resolve(config))
        config.student[name] = ()
    config.align.to = ('minilm', 'minilm_ft')
    with pytest.raises(ValueError, match="the space of 'minilm'"):
        validate(configs.resolve(config))
    config.align.epochs = 0.0
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
        ({'depth': 101}, {}, 'depth=101 re-ranks more than the 100 passages'),
        ({'depth': 101}, {'assistants': ('minilm',)}, None),
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


def test_a_run_without_rounds_needs_alignment_and_has_no_twin():
    config = mta4dpr.get_config()
    config.rounds, config.collection.test_split = 0, None
    validate(configs.resolve(config))
    config.twin = True
    for message in ('twin learns in rounds, and rounds=0', 'twin is compared on test queries'):
        with pytest.raises(ValueError, match=message):
            validate(configs.resolve(config))
    config.twin, config.align.epochs = False, 0.0
    with pytest.raises(ValueError, match='rounds=0 and align.epochs=0 train nothing'):
        validate(configs.resolve(config))


def test_all_errors_of_a_config_are_raised_together():
    config = mta4dpr.get_config()
    config.rounds, config.student.dropout, config.assistants = -1, 2.0, ('minilm', 'nobody')
    config.measures, config.teacher.weights = ('MRR@10', 'best'), (1.0,)
    config.loss.teacher, config.collection.source = 'half', 'csv:x'
    config.optimizer.warmup_steps = 120
    with pytest.raises(ValueError) as caught:
        validate(configs.resolve(config))
    first, *lines = str(caught.value).splitlines()
    assert first == '8 things are wrong:' and all(line.startswith('- ') for line in lines)
    for part in (
        'rounds=-1',
        'student.dropout=2.0',
        "'nobody' is no entry",
        "names 'best'",
        'teacher.weights=(1.0,)',
        "loss.teacher='half'",
        "unknown collection source 'csv:x'",
        'optimizer.warmup_steps=120',
    ):
        assert sum(part in line for line in lines) == 1, part
