"""Prompts, what answers to them say, and the windows of RankGPT."""

import math

import numpy as np
import pytest

from jdkd.config import LLMSpec
from jdkd.config.systems import ListwiseConfig
from jdkd.systems.llm import prompts


def chat(top):
    listed = [{'token': token, 'logprob': value} for token, value in top.items()]
    return {'choices': [{'logprobs': {'content': [{'top_logprobs': listed}]}}]}


def test_texts_stand_in_prompts_as_they_are():
    spec = LLMSpec(prompt='{query}|{title}|{passage}|{other}|{0}')
    prompt = prompts.pair_prompt(spec, 'a {passage} {0}', '{query}', r'{title} \1 %s')
    assert prompt == r'a {passage} {0}|{query}|{title} \1 %s|{other}|{0}'


def test_a_prompt_without_a_title_begins_the_passage_with_it():
    assert prompts.pair_prompt(LLMSpec(prompt='{query}: {passage}'), 'q', 't', 'x y') == 'q: t x y'
    cut = LLMSpec(prompt='{query}: {passage}', passage_words=2)
    assert prompts.pair_prompt(cut, 'q', 't', 'x  y') == 'q: t x'


def test_a_passage_cannot_pose_as_another_of_its_window():
    spec = LLMSpec(listwise=ListwiseConfig(window=3, prompt='{count}\n{passages}\n{query}'))
    prompt = prompts.window_prompt(spec, 'q [1]', ['see [2]', 'b'])
    assert prompt == '2\n[1] see (2)\n\n[2] b\nq [1]'


@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_the_body_is_that_of_the_endpoint(endpoint):
    spec = LLMSpec(model='m', endpoint=endpoint, extra={'temperature': None, 'seed': 3})
    ways = {
        'chat': {
            'messages': [{'role': 'user', 'content': 'p'}],
            'logprobs': True,
            'top_logprobs': 20,
        },
        'completions': {'prompt': 'p', 'logprobs': 20},
    }
    assert prompts.body(spec, 'p') == {'model': 'm', 'max_tokens': 1, 'seed': 3, **ways[endpoint]}


def test_all_tokens_that_are_the_word_add_up():
    top = {' Yes': math.log(0.2), 'yes': math.log(0.3), 'NO': math.log(0.1), 'yesterday': -0.1}
    yes, no = prompts.read_yes_no(chat(top), LLMSpec())
    np.testing.assert_allclose([math.exp(yes), math.exp(no)], [0.5, 0.1])
    legacy = {'choices': [{'logprobs': {'top_logprobs': [top]}}]}
    assert prompts.read_yes_no(legacy, LLMSpec()) == [yes, no]


def test_a_word_that_is_not_listed_counts_as_the_least_likely_that_is():
    assert prompts.read_yes_no(chat({'no': -0.1, 'x': -4.5, 'y': -3.0}), LLMSpec()) == [-4.5, -0.1]
    assert prompts.read_yes_no(chat({'no': 0.0, 'yes': -9999.0}), LLMSpec()) == [-30.0, 0.0]
    assert prompts.read_yes_no(chat({'x': -0.1}), LLMSpec()) is None
    german = LLMSpec(yes=' Ja', no='nein')
    assert prompts.read_yes_no(chat({'ja': -1.0, 'Nein': -2.0}), german) == [-1.0, -2.0]


@pytest.mark.parametrize(
    ('response', 'lack'),
    [
        ([], 'no choices'),
        ({'choices': []}, 'no choices'),
        ({'choices': [{'logprobs': None}]}, 'no logprobs'),
        ({'choices': [{'logprobs': {'content': []}}]}, 'no top_logprobs'),
        ({'choices': [{'logprobs': {'content': [{'top_logprobs': [{'token': 'a'}]}]}}]}, 'no top_'),
        ({'choices': [{'logprobs': {'top_logprobs': [None]}}]}, 'no top_logprobs'),
        (chat({}), 'empty'),
        (chat({'yes': math.nan}), 'no numbers'),
        (chat({'yes': 'high'}), 'no top_logprobs'),
    ],
)
def test_an_answer_without_logprobs_is_an_error(response, lack):
    with pytest.raises(ValueError, match=lack):
        prompts.read_yes_no(response, LLMSpec())


@pytest.mark.parametrize(
    ('text', 'order', 'faults'),
    [
        ('[2] > [4] > [1] > [3]', [1, 3, 0, 2], (0, 0, 0)),
        ('2 > 4', [1, 3, 0, 2], (2, 0, 0)),
        ('[3] > [3] > [9] > [0] > [1]', [2, 0, 1, 3], (2, 1, 2)),
        ('<think>[4] is best of 4</think> [2]>[1]>[3]>[4]', [1, 0, 2, 3], (0, 0, 0)),
        ('I cannot rank these.', [0, 1, 2, 3], (4, 0, 0)),
    ],
)
def test_permutations_are_parsed_with_checks(text, order, faults):
    parsed, counted = prompts.parse_permutation(text, 4)
    assert parsed == order
    assert tuple(counted[kind] for kind in ('missing', 'repeated', 'unknown')) == faults


@pytest.mark.parametrize(
    ('count', 'window', 'step'), [(1, 4, 2), (2, 4, 2), (10, 4, 2), (11, 4, 3), (100, 20, 10)]
)
def test_windows_reach_from_the_end_to_the_top(count, window, step):
    spans = prompts.windows(count, window, step)
    if count == 1:
        assert spans == []
        return
    assert spans[0].stop == count and spans[-1].start == 0
    for before, after in zip(spans, spans[1:], strict=False):
        assert before.stop - after.stop == step and after.stop - after.start <= window
        assert after.stop > before.start or step == window  # The best pass from one to the next.
    assert len(spans) == (1 if count <= window else 1 + math.ceil((count - window) / step))
