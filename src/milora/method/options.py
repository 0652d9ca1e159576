"""The words that users choose from, each defined once: for the library, recipes, and the command line."""

from typing import Literal

Band = Literal["minor", "principal", "middle", "random"]
"""The bands of singular components that have names."""

Components = Band | float
"""Which singular components the factors contain: a band by name, or by its position in the spectrum, 0 … 1."""

Form = Literal["intact", "residual"]
"""Whether the base weight remains W, or is replaced by W − s·B₀A₀ as in the paper."""

Unsupported = Literal["error", "lora"]
"""What becomes of layers that cannot be initialized: they are refused, or remain ordinary LoRA."""

Weighting = Literal["singular", "orthonormal"]
"""Whether the factors are weighted by the square root of the singular values, or are orthonormal."""

Solver = Literal["auto", "lanczos", "gram", "exact"]
"""How singular components are computed."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""The dtype in which a model is loaded."""

Quantization = Literal["nf4", "int8"]
"""How bitsandbytes quantizes a base when it is loaded."""

Method = Literal[
    "milora", "lora", "rslora", "loraplus", "dora", "mica", "pissa", "olora", "lora_ga", "adalora", "full", "projector"
]
"""How a model is fine-tuned."""

Export = Literal["lora", "gguf", "merged", "residual"]
"""The format in which a trained run is exported."""

TemplateName = Literal["auto", "chat", "plain", "alpaca", "commonsense", "peft", "tulu", "vicuna"]
"""How a conversation becomes text: with the model's own chat template, or with one of milora's. `auto` chooses."""

DataSet = Literal[
    "arithmetic",
    "chat",
    "easy_vqa",
    "digits",
    "gsm8k",
    "math",
    "mawps",
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "humaneval",
    "metamath",
    "commonsense_170k",
    "codefeedback",
    "codefeedback_first_block",
    "ultrafeedback",
    "llava_mix665k",
    "llava_pretrain",
    "code_alpaca",
    "alpaca_eval_1",
    "alpaca_eval_2",
    "ifeval",
    "follow_content",
    "follow_situation",
    "follow_style",
    "follow_format",
    "follow_example",
    "follow_mixed",
    "mt_bench",
]
"""The data sets that have names."""

Layout = Literal["documents", "mask", "padded"]
"""How rows share a forward pass: attention per document; one row under a block-diagonal mask; or padded rows."""

OnBadRow = Literal["error", "drop"]
"""What happens to a training row that cannot be read: for example, a cell is null where text is needed."""

PromptChoice = Literal["trained", "official", "chat", "plain", "alpaca", "commonsense", "tulu", "vicuna"]
"""Which prompt a benchmark uses: the one that the model was trained with, the benchmark's own, or a template's."""

Backend = Literal["hf", "server"]
"""What generates completions: transformers in this process, or an OpenAI-compatible server."""

JudgeForm = Literal["official", "corrected"]
"""How a judge's prompt holds the answers: as published, or with whatever imitates the prompt made harmless."""

Scheduler = Literal["local", "ray"]
"""Where the runs of a comparison are executed."""
