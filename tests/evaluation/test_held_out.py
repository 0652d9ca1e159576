"""A run on one's own rows without tasks: its held-out rows are answered before and after, and are there to read."""

import json

from milora.evaluation.held_out import locate_answers
from milora.evaluation.scores import read_samples
from milora.evaluation.target import target_of_run
from milora.run.directory import open_run


def test_held_out_rows_are_answered_by_the_base_and_by_what_was_trained(small_recipe, call, tmp_path):
    rows = [{"question": f"What follows {number}?", "answer": f"{number + 1}"} for number in range(24)]
    rows += [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["data.name=rows.jsonl", "data.rows=null", "evaluation.tasks=[]", "training.max_steps=2"]
    code, out, err = call("run", small_recipe, *options, "--runs", "runs")
    assert code == 0, err
    assert "no task was scored" in out
    (path,) = (tmp_path / "runs").iterdir()
    target = target_of_run(open_run(path))
    before, after = (read_samples(locate_answers(one)) for one in (target.base, target))
    golds = {row["question"]: row["answer"] for row in rows[:24]} | {"Hi": "Hello"}
    assert len(before) == len(after) == 8
    assert all(sample.gold == golds[sample.question] and not sample.grades for sample in before + after)
    assert [sample.question for sample in before] == [sample.question for sample in after]
    page = (path / "report.html").read_text()
    assert page.count('data-task="held-out rows"') == 8 and 'class="verdict"' not in page
    assert "held-out" not in call("runs", "runs")[1].split("held-out loss")[1]  # it is not a score
    assert call("run", small_recipe, *options, "--runs", "runs")[0] == 0  # what is answered is not answered again
