"""The words that users choose from, each spelled once: for the library, recipes, and the command line."""

from typing import Literal

Components = Literal["minor", "principal", "middle", "random"]
"""Which singular components the factors hold."""

Form = Literal["intact", "residual"]
"""Whether the base weight stays W, or becomes W − s·B₀A₀ as in the paper."""

Weighting = Literal["singular", "orthonormal"]
"""Whether each factor is weighted by the root of the singular values, or has orthonormal rows and columns."""

Solver = Literal["auto", "lanczos", "gram", "exact"]
"""How singular components are computed."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""What a model is loaded in."""

Quantization = Literal["nf4", "int8"]
"""How bitsandbytes stores a base while it is loaded."""

Method = Literal["milora", "lora", "rslora", "loraplus", "dora", "mica", "pissa", "olora", "lora_ga", "adalora", "full"]
"""How a model is fine-tuned."""

Export = Literal["lora", "merged", "residual"]
"""What a trained run is written as."""

TemplateName = Literal["chat", "plain", "alpaca", "commonsense"]
"""How a conversation becomes text: by the model's own chat template, or by one of milora's."""

PromptChoice = Literal["trained", "official"]
"""Whose prompt a benchmark is asked with: the one the model was trained with, or the benchmark's own."""

Backend = Literal["hf", "server"]
"""What completes prompts: transformers in this process, or an OpenAI-compatible server."""

Scheduler = Literal["local", "ray"]
"""Where the runs of a comparison run."""
