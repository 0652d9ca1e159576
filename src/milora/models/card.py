"""How others load an exported run: in words for the terminal and the report, and as the README beside a LoRA."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from milora.method.files import hash_file, read_json, write_json, write_text
from milora.method.options import Export
from milora.models.embedded import EMBEDDED, GGUF_FILE, GGUF_SHA256, PACKAGE, is_embedded
from milora.models.located import LOCAL
from milora.models.small_llava import SMALL_LLAVA
from milora.run.sections import ModelSection

HERE = "path/to/this/folder"
PACKAGED = (EMBEDDED, SMALL_LLAVA)


def say_how_to_load(model: ModelSection, form: Export, folder: str, *, pictures: bool) -> str:
    """Return the lines of Python that load an export from `folder`, with transformers and peft.

    `pictures`: the model takes some.
    """
    kind = "AutoModelForImageTextToText" if pictures else "AutoModelForCausalLM"
    imports = [f"from transformers import {kind}"]
    if form == "merged":
        return "\n".join([*imports, f"model = {kind}.from_pretrained({folder!r})"])
    base = f"{kind}.from_pretrained({', '.join(_arguments(model))})"
    if model.name in PACKAGED:
        imports.append("from milora.models.located import resolve_model")
    return "\n".join(["from peft import PeftModel", *imports, f"model = PeftModel.from_pretrained({base}, {folder!r})"])


def describe_lora(folder: Path, model: ModelSection, method: str, title: str, *, pictures: bool) -> None:
    """Write the README of an adapter, and give its base a name that means the same on other machines; see `name_base`.

    The README's header has the keys and tags of PEFT's own.
    """
    config = read_json(folder / CONFIG_NAME)
    config["base_model_name_or_path"] = name = name_base(model.name)
    write_json(folder / CONFIG_NAME, config)
    is_on_hub = name not in PACKAGED and not name.startswith(LOCAL)
    task = "image-text-to-text" if pictures else "text-generation"
    tags = sorted({config["peft_type"].lower(), "transformers", *([f"base_model:adapter:{name}"] if is_on_hub else [])})
    header: dict[str, Any] = {"base_model": name} if is_on_hub else {}
    header |= {
        "library_name": "peft",
        "pipeline_tag": task,
        "tags": tags,
    }
    # JSON is YAML too, and quotes whatever a name contains.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()), "---", ""]
    rank, by = f" of rank {config['r']}" if "r" in config else "", f"milora {version('milora')}"
    public = f"path/to/{name.removeprefix(LOCAL)}" if name.startswith(LOCAL) else name
    lines += [
        f"# {title}",
        "",
        f"An adapter{rank} for the base model `{name}`, trained by {by} with the method {method}.",
        _describe_base(model, name),
        "",
        "```python",
        say_how_to_load(model.model_copy(update={"name": public}), "lora", HERE, pictures=pictures),
        "```",
        "",
        "License: to be stated by whoever publishes this adapter. The base and the training data have their own.",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def name_base(name: str) -> str:
    """Return a base's name without a path of this machine: that of a local folder is `local:` and its last part."""
    if is_embedded(name):
        return EMBEDDED
    return f"{LOCAL}{Path(name).resolve().name}" if Path(name).is_dir() else name


def _arguments(model: ModelSection) -> list[str]:
    """What `from_pretrained` needs to load the base as it was trained on, but for its dtype."""
    name = f"resolve_model({model.name!r})" if model.name in PACKAGED else repr(model.name)
    revision = [f"revision={model.revision!r}"] if model.revision else []
    return [name, *revision, *(["trust_remote_code=True"] if model.trust_remote_code else [])]


def _describe_base(model: ModelSection, name: str) -> str:
    said = f"The base was loaded in {model.dtype}"
    said += f", quantized to {model.quantization} by bitsandbytes." if model.quantization else "."
    if name == EMBEDDED:
        return (
            f"{said} It is not on the hub: it is the file {GGUF_FILE} (sha256 {GGUF_SHA256}) of the PyPI package "
            f"{PACKAGE}, which milora converts to full precision."
        )
    if name == SMALL_LLAVA:
        return f"{said} It is not on the hub: milora joins it from two PyPI packages (docs/vision.md)."
    if name.startswith(LOCAL):
        files = {path.name: hash_file(path) for path in sorted(Path(model.name).glob("*.safetensors"))}
        listed = "".join(f"\n- {file}: sha256 {digest}" for file, digest in files.items())
        return f"{said} It is not on the hub, but a folder of the machine that trained the adapter:\n{listed}"
    return said
