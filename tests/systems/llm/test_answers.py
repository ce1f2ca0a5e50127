"""The kept answers of a language model: appended, shared between processes, safe from kills."""

import json
import logging
from unittest import mock

from jdkd.systems.llm.answers import Answers, has_any, home

KEPT = {'pairs': 1, 'tokens': (7, 1)}


def test_answers_come_back_and_count_pairs_once(tmp_path):
    answers = Answers(tmp_path / 'a')
    answers.add('k', [-1.0, -2.0], **KEPT)
    answers.add('l', '[2] > [1]', pairs=2, tokens=(9, 4))
    answers.add('k', [-1.0, -2.0], **KEPT)
    again = Answers(tmp_path / 'a')
    assert (again['k'], again['l'], len(again)) == ([-1.0, -2.0], '[2] > [1]', 2)
    assert again.pairs == answers.pairs == 3 and 'm' not in again


def test_the_first_answer_stays(tmp_path):
    answers = Answers(tmp_path)
    answers.add('k', 1, **KEPT)
    record = {'key': 'k', 'answer': 2, 'pairs': 1}
    (tmp_path / '00001.jsonl').write_text(json.dumps(record) + '\n')  # Another process asked, too.
    answers.refresh()
    assert answers['k'] == Answers(tmp_path)['k'] == 1


def test_a_copy_by_hard_links_keeps_its_own_answers(tmp_path):
    Answers(tmp_path / 'a').add('k', 1, **KEPT)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/00000.jsonl').hardlink_to(tmp_path / 'a/00000.jsonl')
    copy = Answers(tmp_path / 'b')
    copy.add('l', 2, **KEPT)
    assert len(copy) == len(Answers(tmp_path / 'b')) == 2 and len(Answers(tmp_path / 'a')) == 1


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path, caplog):
    answers = Answers(tmp_path)
    answers.add('k', 1, **KEPT)
    answers.add('l', 2, **KEPT)
    file = tmp_path / '00000.jsonl'
    file.write_bytes(file.read_bytes()[:-9])
    resumed = Answers(tmp_path)
    assert 'k' in resumed and 'l' not in resumed
    resumed.add('l', 3, **KEPT)
    resumed.add('m', 4, **KEPT)
    with caplog.at_level(logging.WARNING):
        last = Answers(tmp_path)
    assert [last[key] for key in 'klm'] == [1, 3, 4]
    assert '1 damaged lines' in caplog.text


def test_damage_is_no_answer(tmp_path):
    record = json.dumps({'key': 'k', 'answer': 1, 'pairs': 1})
    (tmp_path / '00000.jsonl').write_bytes(
        b'\xff\xfe\n[]\n{"key": "x"}\n' + record.encode() + b'\n'
    )
    answers = Answers(tmp_path)
    assert len(answers) == 1 and answers['k'] == 1


def test_processes_read_each_others_answers(tmp_path):
    first = Answers(tmp_path)
    with mock.patch('jdkd.runtime.distributed.process_index', return_value=1):
        second = Answers(tmp_path)
    first.add('k', 1, **KEPT)
    second.add('l', 2, **KEPT)
    assert 'k' not in second
    second.refresh()
    first.refresh()
    assert second['k'] == 1 and first['l'] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ['00000.jsonl', '00001.jsonl']


def test_a_workdir_says_whether_it_has_answers(tmp_path):
    assert not has_any(tmp_path, 'llm')
    Answers(home(tmp_path, 'llm')).add('k', 1, **KEPT)
    assert has_any(tmp_path, 'llm')
