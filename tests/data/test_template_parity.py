"""Chat templates as they are used elsewhere: the tokenizer's own ids, TRL's masks, and exactly the assistants' turns.

The templates are those in TRL's installed package, on the embedded model's tokenizer, which is given their control
tokens.
"""

import re
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import trl
from tokenizers import Regex, pre_tokenizers

from milora import MiloraError
from milora.data.conversation import Conversation, Message, Text
from milora.data.templates import ChatTemplate
from milora.models.base import load_tokenizer
from milora.models.embedded import EMBEDDED
from milora.run.sections import ModelSection

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
TRAINING = {name: FOLDER / f"{name}_training.jinja" for name in NAMES if (FOLDER / f"{name}_training.jinja").exists()}
CONTROL = re.compile(
    r"<[|｜][^<>{}'\"\s]*?[|｜]>|<(?:start_of_turn|end_of_turn|end_of_utterance)>|<[a-z_]*\|>|<\|[a-z_]+>|</s>|\[/?INST\]"
)

SYSTEM = ("system", "Zebra rules.")
FIRST = [("user", "What is 1 + 1?"), ("assistant", "Two.")]
SECOND = [("user", "And 2 + 2?"), ("assistant", "Four,\n\nas ever.")]
THOUGHTS = [
    *(("user", "What is 1 + 1?"), ("assistant", "<think>\nEasy.\n</think>\n\nTwo.")),
    *(("user", "And 2 + 2?"), ("assistant", "<think>\nHard.\n</think>\n\nFour.")),
]
CASES = {
    "one": FIRST,
    "one, system": [SYSTEM, *FIRST],
    "two": [*FIRST, *SECOND],
    "two, system": [SYSTEM, *FIRST, *SECOND],
    "thoughts": THOUGHTS,
}
SEVERAL = {"two", "two, system", "thoughts"}

LOST, OTHERWISE, NO_END = "leaves out or rewrites a part of a message", "begins an answer otherwise", "control token"
# What is refused, and why. Their prompts open a thought, which a row without one does not begin with; pictures need
# messages of another form; gpt-oss ends an earlier answer with another token than the last one.
REFUSED = {
    **{name: (set(CASES), f"{OTHERWISE}|{LOST}") for name in ("deepseek_r1_distill", "deepseekv3")},
    **{name: (set(CASES), f"{OTHERWISE}|{LOST}") for name in NAMES if name.startswith("nemotron_3")},
    **{name: (set(CASES), LOST) for name in ("idefics3", "smolvlm")},
    "llava_next": (set(CASES), "refuses a conversation"),
    "gemma": ({"one, system", "two, system"}, "System role not supported"),
    "gptoss": (SEVERAL, NO_END),
    **{name: ({"thoughts"}, LOST) for name in ("glm4moe", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6")},
    **{name: ({"thoughts"}, LOST) for name in ("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl")},
}
# Their prompts end with two newlines, which the embedded tokenizer, like GPT-2's, joins only if nothing follows.
JOINED = ("llama3", "llama3_1", "llama3_2", "qwen3_5_nothink")
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@cache
def load(words=None):
    """The embedded tokenizer with every template's control tokens; `words` splits text as Llama 3 and Qwen do."""
    tokenizer = load_tokenizer(ModelSection(name=EMBEDDED))
    control = {text for name in NAMES for text in CONTROL.findall((FOLDER / f"{name}.jinja").read_text())}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(control)})
    if words:
        split = pre_tokenizers.Split(Regex(words), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    return tokenizer


def converse(turns):
    return Conversation(tuple(Message(role, (Text(text),)) for role, text in turns))


def squeeze(text):
    return "".join(text.split())


def apply(tokenizer, turns, **options):
    dicts = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(dicts, return_dict=True, **options)


def check(tokenizer, name, turns):
    """Encode, and check ids and mask against the tokenizer, TRL, and the text of the turns."""
    template, own = ChatTemplate(tokenizer), apply(tokenizer, turns)["input_ids"]
    training = {"chat_template": TRAINING[name].read_text()} if name in TRAINING else {}
    encoded = template.encode(tokenizer, converse(turns))
    runs = find_runs(encoded.trained)
    answers = [text for role, text in turns if role == "assistant"]
    for (start, end), answer in zip(runs, answers, strict=True):
        said = tokenizer.decode(encoded.ids[start:end])
        assert squeeze(answer) in squeeze(said) and encoded.ids[end - 1] in tokenizer.all_special_ids
    rest = tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.trained, strict=True) if not keep])
    assert not re.search(r"Two|Four|as ever|Easy|Hard", rest)
    assert all(squeeze(text) in squeeze(rest) for role, text in turns if role != "assistant")
    # The last answer follows the prompt that the model will get; in TRL's form earlier turns may differ from it.
    before = encoded.ids[: runs[-1][0]]
    if encoded.ids == own:
        assert before == template.encode_prompt(tokenizer, converse(turns).prompt)
        assert before == apply(tokenizer, turns[:-1], add_generation_prompt=True)["input_ids"]
    else:
        assert before == apply(tokenizer, turns[:-1], add_generation_prompt=True, **training)["input_ids"]
    if training:
        theirs = apply(tokenizer, turns, return_assistant_tokens_mask=True, **training)
        assert encoded.ids in (own, theirs["input_ids"])
        if encoded.ids == theirs["input_ids"]:
            check_mask(tokenizer, encoded, theirs["assistant_masks"], runs)
    else:
        assert encoded.ids == own


def find_runs(mask):
    """Where the trained parts begin and end."""
    runs, place = [], 0
    for keep, group in groupby(mask):
        length = len(list(group))
        if keep:
            runs.append((place, place + length))
        place += length
    return runs


def check_mask(tokenizer, encoded, theirs, runs):
    """TRL's mask is ours, and what it has besides: the end of a turn's prompt, and white space after the turn."""
    assert all(other or not ours for ours, other in zip(encoded.trained, theirs, strict=True))
    extra = [other and not ours for ours, other in zip(encoded.trained, theirs, strict=True)]
    begins = {start for start, _ in runs}
    for start, end in find_runs(extra):
        assert end in begins or not tokenizer.decode(encoded.ids[start:end]).strip()


@pytest.mark.parametrize("name", NAMES)
def test_parity(name):
    tokenizer = load(LLAMA3_WORDS if name in JOINED else None)
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    refused, reason = REFUSED.get(name, (set(), ""))
    for case, turns in CASES.items():
        if case in refused:
            with pytest.raises(MiloraError, match=reason):
                ChatTemplate(tokenizer).encode(tokenizer, converse(turns))
        else:
            check(tokenizer, name, turns)


@pytest.mark.parametrize("name", JOINED[:3])
def test_a_prompt_whose_last_token_is_another_one_in_the_whole_is_refused(name):
    tokenizer = load()
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    for turns in (FIRST, CASES["two, system"]):
        with pytest.raises(MiloraError, match="joins .* at the end of a prompt with the answer"):
            ChatTemplate(tokenizer).encode(tokenizer, converse(turns))


def test_the_embedded_models_own_template():
    tokenizer = load_tokenizer(ModelSection(name=EMBEDDED))
    for turns in CASES.values():
        check(tokenizer, "", turns)


def test_there_are_templates_of_every_family():
    assert {"qwen2_5", "qwen3", "llama3", "llama3_2", "gemma", "gemma3", "phi3"} <= set(NAMES)
