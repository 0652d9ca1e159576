"""Talking to what was trained."""

from typing import Annotated

import typer

from milora.cli.options import TrustCode, app
from milora.method.errors import MiloraError
from milora.method.options import Dtype, TemplateName
from milora.run.directory import Permissions


@app.command("chat")
def chat_(
    name: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A run, its checkpoint, an adapter, or a model.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also show the base model's answer, first.")] = False,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="Sample at this temperature; 0: greedy decoding.")] = 0.0,
    template: Annotated[
        TemplateName | None, typer.Option(help="Default: the template of training, else the model's own, else plain.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The model's dtype; default: the run's, else bfloat16.")] = None,
    url: Annotated[str | None, typer.Option(help="The address of a chat server to talk to, ending in /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The model at the server; default: the only one.")] = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Talk to a run, an adapter, or a model, or to a server.

    In a pipe, each line of stdin is a prompt, and each line of stdout is a JSON object with its answer.
    """
    from milora.evaluation.chat.speaker import Sampling
    from milora.evaluation.chat.talk import talk

    sampling = Sampling(max_new_tokens, temperature)
    if url is not None:
        if name or compare or template or dtype or trust_remote_code:
            raise MiloraError(
                "--url: a server has a model and a template of its own; TARGET, --compare, --template, --dtype, and "
                "--trust-remote-code are for a model in this process",
                "leave them out, and name the server's model with --model",
            )
        from milora.evaluation.chat.remote import open_server

        talk([open_server(url, model, sampling)], system)
        return
    if name is None or model is not None:
        raise MiloraError("chat needs a TARGET, or the --url of a server", "milora chat RUN, or milora chat --help")

    from milora.evaluation.chat.local import load_speakers, open_target

    target = open_target(name, dtype, template, Permissions(trust_remote_code, allow_code_execution=False))
    talk(load_speakers(target, sampling, compare=compare, system=system), system)
