"""Row files of every shape, good and bad: the conversations that are read, or the exact reason why none is."""

import json
from collections import Counter
from pathlib import Path

import pytest

from milora import MiloraError
from milora.data.conversation import Conversation
from milora.data.formats import read_conversations
from milora.data.templates import TEMPLATES, resolve_template
from milora.data.training_rows import load_training_rows
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.sections import DataSection, ModelSection

S, U, A = "system", "user", "assistant"
QA = [(U, "q"), (A, "a")]
MORE = [*QA, (U, "q2"), (A, "a2")]


def chat(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def sharegpt(*turns):
    names = {S: "system", U: "human", A: "gpt"}
    return [{"from": names[role], "value": text} for role, text in turns]


def reply(text, rank=None, role="assistant", replies=(), **more):
    return {"text": text, "role": role, "replies": list(replies), **({} if rank is None else {"rank": rank}), **more}


def tree(*replies):
    return {"message_tree_id": "1", "prompt": reply("q", role="prompter", replies=replies)}


GOOD = {
    "messages": ({"messages": chat(*QA)}, QA),
    "messages, many turns": ({"messages": chat(*MORE)}, MORE),
    "messages, system": ({"messages": chat((S, "s"), *QA)}, [(S, "s"), *QA]),
    "messages, parts": (
        {"messages": [{"role": U, "content": [{"type": "text", "text": t} for t in "qr"]}, *chat((A, "a"))]},
        [(U, "qr"), (A, "a")],
    ),
    "messages before prompt": ({"prompt": "x", "completion": "y", "messages": chat(*QA)}, QA),
    "messages of ultrafeedback": (
        {"prompt": "q", "chosen": chat(*QA), "rejected": chat((U, "q"), (A, "b")), "messages": chat(*QA)},
        QA,
    ),
    "messages end on the user, chosen is the turn": ({"messages": chat((U, "q")), "chosen": chat((A, "a"))}, QA),
    "messages end on the user, chosen is text": ({"messages": chat((U, "q")), "chosen": "a"}, QA),
    "messages end on the user, chosen is all": ({"messages": chat((U, "q")), "chosen": chat(*QA)}, QA),
    "messages with another column": ({"messages": chat(*QA), "label": True, "tools": None}, QA),
    "sharegpt": ({"conversations": sharegpt(*MORE)}, MORE),
    "sharegpt, system turn": ({"conversations": sharegpt((S, "s"), *QA)}, [(S, "s"), *QA]),
    "sharegpt, system column": ({"conversations": sharegpt(*QA), "system": "s"}, [(S, "s"), *QA]),
    "sharegpt, empty system column": ({"conversations": sharegpt(*QA), "system": ""}, QA),
    "sharegpt, chosen": (
        {"conversations": sharegpt(*QA, (U, "q2")), "chosen": {"from": "gpt", "value": "a2"}, "rejected": None},
        MORE,
    ),
    "sharegpt with role and content": ({"conversations": chat(*QA)}, QA),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, QA),
    "prompt and completion as messages": (
        {"prompt": chat((S, "s"), (U, "q")), "completion": chat((A, "a"))},
        [(S, "s"), *QA],
    ),
    "completion before chosen": ({"prompt": "q", "completion": "a", "chosen": "b"}, QA),
    "chosen as text": ({"prompt": "q", "chosen": "a", "rejected": "b"}, QA),
    "chosen as the turn": ({"prompt": "q", "chosen": chat((A, "a")), "rejected": []}, QA),
    "chosen as the conversation": ({"prompt": "q", "chosen": chat(*QA), "rejected": []}, QA),
    "prompt as messages, chosen": ({"prompt": chat(*QA, (U, "q2")), "chosen": chat((A, "a2"))}, MORE),
    "chosen without prompt": ({"chosen": chat(*QA), "rejected": chat(*QA)}, QA),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, QA),
    "alpaca, input": ({"instruction": "q", "input": "x\ny", "output": "a"}, [(U, "q\nx\ny"), (A, "a")]),
    "alpaca, null input": ({"instruction": "q", "input": None, "output": "a"}, QA),
    "alpaca, no input": ({"instruction": "q", "output": "a"}, QA),
    "alpaca, system and history": (
        {"instruction": "q2", "output": "a2", "system": "s", "history": [["q", "a"]]},
        [(S, "s"), *MORE],
    ),
    "self-instruct": ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, QA),
    "question and answer": ({"question": "q", "answer": "a"}, QA),
    "query and response": ({"query": "q", "response": "a"}, QA),
    "text": ({"text": "a\nb"}, [(A, "a\nb")]),
    "words that look like no text": ({"question": "null", "answer": "NA"}, [(U, "null"), (A, "NA")]),
    "digits": ({"question": "007", "answer": "1.0"}, [(U, "007"), (A, "1.0")]),
    "a date": ({"question": "2020-01-01", "answer": "2020-01-01T00:00:00Z"}, None),
    "spaces and other scripts": ({"question": " q\u2028r\n", "answer": "é 漢 🙂\u0000"}, None),
    "tree": (tree(reply("a")), QA),
    "tree, ranks": (tree(reply("c", 2), reply("a", 0), reply("b", 1)), QA),
    "tree, no rank is last": (tree(reply("b"), reply("a", 5)), QA),
    "tree, deleted": (tree(reply("b", 0, deleted=True), reply("a", 1)), QA),
    "tree, deep": (tree(reply("a", 0, replies=[reply("q2", role="prompter", replies=[reply("a2")])])), MORE),
    "tree, unanswered end": (tree(reply("a", 0, replies=[reply("q2", role="prompter")])), QA),
}
BAD = {
    "null question": ({"question": None, "answer": "a"}, "column question is null (NoneType), not text"),
    "number answer": ({"question": "q", "answer": 3}, "column answer is a number (int), not text"),
    "float answer": ({"question": "q", "answer": float("nan")}, "column answer is a number (float), not text"),
    "boolean answer": ({"question": "q", "answer": True}, "column answer is a value (bool), not text"),
    "list answer": ({"question": "q", "answer": ["a"]}, "column answer is a list (list), not text"),
    "nested answer": ({"question": "q", "answer": {"text": "a"}}, "column answer is an object (dict), not text"),
    "empty answer": ({"question": "q", "answer": ""}, "column answer is empty (str)"),
    "blank question": ({"question": " \n", "answer": "a"}, "column question is empty (str)"),
    "half an emoji": ({"question": "q", "answer": "\ud83d"}, "column answer contains half of a character ('\\ud83d')"),
    "null messages": ({"messages": None}, "column messages is null (NoneType), not a list of messages"),
    "messages as text": ({"messages": str(chat(*QA))}, "column messages is text (str), not a list of messages"),
    "no messages": ({"messages": []}, "the conversation has no message of the user"),
    "null message": ({"messages": [None]}, "column messages[0] is null (NoneType), not a message"),
    "null content": ({"messages": chat((U, "q"), (A, None))}, "column messages[1].content is null (NoneType)"),
    "number content": ({"messages": chat((U, 1), (A, "a"))}, "column messages[0].content is a number (int)"),
    "empty turn": ({"messages": chat((U, "q"), (A, ""))}, "column messages[1].content is empty (str)"),
    "tool role": ({"messages": chat((U, "q"), ("tool", "a"))}, "column messages[1].role is 'tool', and the roles are"),
    "null role": ({"messages": chat((None, "q"))}, "column messages[0].role is None, and the roles are system, user"),
    "no role": ({"messages": [{"content": "q"}]}, "has neither role and content nor from and value"),
    "tool calls": ({"messages": [{"role": A, "content": "a", "tool_calls": [{}]}]}, "messages[0] calls tools"),
    "tools": ({"messages": chat(*QA), "tools": [{"name": "f"}]}, "the row has tools (column tools)"),
    "a video": ({"messages": [{"role": U, "content": [{"type": "video"}]}]}, "[0] is a part of type video, and only"),
    "null part": (
        {"messages": [{"role": U, "content": [{"type": "text", "text": None}]}]},
        "column messages[0].content[0].text is null (NoneType)",
    ),
    "ends on the user": ({"messages": chat((U, "q"))}, "the conversation ends on the user, and no column `chosen`"),
    "null chosen": ({"messages": chat((U, "q")), "chosen": None}, "the conversation ends on the user"),
    "chosen of another conversation": (
        {"messages": chat((U, "q")), "chosen": chat((U, "x"), (A, "a"))},
        "column chosen neither continues the conversation nor repeats it",
    ),
    "only the assistant": ({"messages": chat((A, "a"))}, "the conversation has no message of the user"),
    "assistant first": ({"messages": chat((A, "hi"), *QA)}, "the conversation begins with the assistant"),
    "assistant after system": (
        {"conversations": sharegpt((A, "hi"), *QA), "system": "s"},
        "the conversation begins with the assistant",
    ),
    "late system": ({"messages": chat(*QA, (S, "s"), *QA)}, "a system message follows other messages"),
    "sharegpt role": ({"conversations": [{"from": "bing", "value": "q"}]}, "column conversations[0].from is 'bing'"),
    "sharegpt null": ({"conversations": [{"from": "human", "value": None}]}, "column conversations[0].value is null"),
    "a picture of its own": ({"conversations": sharegpt(*QA), "image": 7}, "column image is a number (int)"),
    "sharegpt number system": ({"conversations": sharegpt(*QA), "system": 1}, "column system is a number (int)"),
    "null completion": ({"prompt": "q", "completion": None}, "column completion is null (NoneType), not text"),
    "null chosen text": ({"prompt": "q", "chosen": None}, "column chosen is null (NoneType), not text"),
    "prompt alone": ({"prompt": "q"}, "column prompt has no answer beside it"),
    "alpaca number": ({"instruction": "q", "input": 3, "output": "a"}, "column input is a number (int), not text"),
    "alpaca null": ({"instruction": "q", "input": "", "output": None}, "column output is null (NoneType), not text"),
    "alpaca history": ({"instruction": "q", "output": "a", "history": ["x"]}, "column history is not a list of"),
    "no instances": ({"instruction": "q", "instances": []}, "column instances is a list (list), not a list of inputs"),
    "null instance": ({"instruction": "q", "instances": [None]}, "column instances[0] is null (NoneType), not an"),
    "null output": ({"instruction": "q", "instances": [{}]}, "column instances[0].output is null (NoneType)"),
    "one message of a tree": ({"text": "q", "role": "prompter", "parent_id": None}, "the row is one message of a conv"),
    "null text": ({"text": None}, "column text is null (NoneType), not text"),
    "unanswered tree": (tree(), "no message of the tree is answered"),
    "null in a tree": (tree(reply(None)), "a reply in column prompt.text is null (NoneType), not text"),
    "bad replies": ({"prompt": {"text": "q", "role": "prompter", "replies": [1]}}, "the replies in column prompt are"),
    "unknown columns": ({"foo": "q", "bar": "a"}, "the columns are those of no known format: foo, bar"),
    "no columns": ({}, "the columns are those of no known format: none"),
    "null row": (None, "the row is null (NoneType), not an object of columns"),
    "list row": (["q", "a"], "the row is a list (list), not an object of columns"),
}
FINE = {"question": "fine", "answer": "yes"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(name, **settings):
    return load_training_rows(DataSection(name=name, **{"validation_rows": 0, **settings}))


def turns(row):
    return [(message.role, message.text) for message in row.messages]


def read(name, **settings):
    return [turns(Conversation.from_row(row)) for row in load(name, **settings).train]


@pytest.mark.parametrize("shape", GOOD)
def test_a_good_row_becomes_its_conversation(tmp_path, shape):
    row, expected = GOOD[shape]
    if expected is None:
        expected = [(U, row["question"]), (A, row["answer"])]
    assert read(write(tmp_path / "rows.jsonl", row, FINE)) == [expected, [(U, "fine"), (A, "yes")]]


@pytest.mark.parametrize("shape", BAD)
def test_a_bad_row_is_refused_by_its_place_or_dropped_and_counted(tmp_path, shape):
    row, reason = BAD[shape]
    name = write(tmp_path / "rows.jsonl", FINE, row, FINE)
    with pytest.raises(MiloraError) as refused:
        load(name)
    assert refused.value.message.startswith(f"{name}, row 2: ") and reason in refused.value.message
    assert any(way in refused.value.hint for way in ("data.on_bad_row=drop", "data.question_column", "message trees"))
    kept = load(name, on_bad_row="drop")
    assert (len(kept.train), kept.bad) == (2, 1)


def test_a_file_of_bad_rows_alone_is_refused(tmp_path):
    name = write(tmp_path / "rows.jsonl", {"question": None, "answer": "a"}, {"text": ""})
    with pytest.raises(MiloraError, match=r"has no rows; 2 bad rows were dropped, the first was .*row 1: column que"):
        load(name, on_bad_row="drop")


def test_several_instances_are_several_conversations():
    row = {"instruction": "q", "instances": [{"input": "x", "output": "a"}, {"input": None, "output": "b"}]}
    assert [turns(found) for found in read_conversations(row)] == [[(U, "q\nx"), (A, "a")], [(U, "q"), (A, "b")]]


def test_columns_that_the_recipe_names_go_first(tmp_path):
    name = write(tmp_path / "rows.jsonl", {"messages": chat(*QA), "ask": "x", "answer": "y"})
    assert read(name, question_column="ask") == [[(U, "x"), (A, "y")]]
    with pytest.raises(MiloraError, match=r"row 1: no column reply; there are messages, ask, answer"):
        read(name, question_column="ask", answer_column="reply")


REAL = {
    "kto_messages_multiturn.json": (38, 38),
    "oasst_en_trees.jsonl.gz": (100, 100),
    "self_instruct_seed_tasks.jsonl": (175, 175),
    "user_oriented_instructions.jsonl": (252, 252),
    "sharegpt_preference_multiturn.json": (105, 105),
    "ultrafeedback_binarized_test100.jsonl": (100, 100),
    "ultrafeedback_binarized_train350.jsonl.gz": (350, 350),
}


@pytest.mark.parametrize("name", REAL)
def test_published_files_are_read_whole(data_dir, name):
    path = Path(data_dir) / "instruction" / "chat" / name
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    rows, readable = REAL[name]
    found = load(str(path), on_bad_row="drop")
    assert (len(found.train) + found.bad, len(found.train)) == (rows, readable)
    conversations = [turns(Conversation.from_row(row)) for row in found.train]
    assert all(found[-1][0] == A and all(text.strip() for _, text in found) for found in conversations)
    lengths = Counter(len(found) > 2 for found in conversations)
    assert lengths[True] > 0 or "multiturn" not in name


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSection(name=EMBEDDED))


@pytest.mark.parametrize("shape", ["messages", "messages, system", "sharegpt, chosen", "alpaca, input", "tree, deep"])
def test_token_ids_and_masks_in_the_chat_template(tokenizer, shape):
    row, expected = GOOD[shape]
    (conversation,) = read_conversations(row)
    encoded = resolve_template("auto", lambda: tokenizer).encode(tokenizer, conversation)
    assert encoded.ids == tokenizer.apply_chat_template(chat(*expected), return_dict=True)["input_ids"]
    trained = [token for token, keep in zip(encoded.ids, encoded.trained, strict=True) if keep]
    assert tokenizer.decode(trained) == "".join(f"{text}<|im_end|>" for role, text in expected if role == A)


def test_plain_text_is_trained_whole_and_not_in_a_chat(tokenizer):
    (conversation,) = read_conversations({"text": "Once upon a time."})
    encoded = TEMPLATES["plain"].encode(tokenizer, conversation)
    assert encoded.ids == [*tokenizer("Once upon a time.")["input_ids"], tokenizer.eos_token_id]
    assert all(encoded.trained)
    with pytest.raises(MiloraError, match=r"a row is plain text, .* \(set data.template=plain"):
        resolve_template("auto", lambda: tokenizer).encode(tokenizer, conversation)


def test_auto_is_chat_where_the_tokenizer_has_a_template():
    bare = load_tokenizer(ModelSection(name=EMBEDDED))
    assert resolve_template("auto", lambda: bare).text == "chat"
    bare.chat_template = None
    assert resolve_template("auto", lambda: bare) == TEMPLATES["plain"]
