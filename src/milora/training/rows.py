"""A recipe → its rows as token ids and labels, prepared once: runs with the same rows and tokenizer share them."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import datasets
from platformdirs import user_cache_path
from transformers import PreTrainedTokenizerBase

from milora.data.cache import digest_preparation, holding, read_entry, write_entry
from milora.data.processor import Pictures
from milora.data.rows import list_files
from milora.data.templates import Template, choose_template, resolve_template
from milora.data.tokens import PICTURES, count_tokens, tokenize_rows
from milora.data.training_rows import TrainingRows, load_training_rows
from milora.method.errors import MiloraError
from milora.method.options import TemplateName
from milora.models.base import count_embedded
from milora.models.vision import load_processor, takes_pictures
from milora.run.recipe import Recipe
from milora.run.records import TokenReport
from milora.run.sections import ModelSection

KEPT_FROM = 20_000  # rows: fewer are prepared in seconds


@dataclass(frozen=True, slots=True)
class Rows:
    """Token ids and labels of the rows to train on, and of the held-out ones, None if there are none.

    `template` is the one they became text with; the reports say what was cut or dropped.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset | None
    template: TemplateName
    report: TokenReport
    held_out_report: TokenReport | None

    @property
    def has_pictures(self) -> bool:
        """Whether a row has pictures, be it held out."""
        return any(PICTURES in table.column_names for table in (self.train, self.held_out) if table)


def find_pictures(section: ModelSection) -> Pictures | None:
    """Return what pictures become for a model that takes some, None of other models."""
    return Pictures(partial(load_processor, section)) if takes_pictures(section) else None


def prepare_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path | None = None,
    pictures: Pictures | None = None,
) -> Rows:
    """Return the rows of a recipe; what was prepared before, by any run, is read.

    Prepared rows are kept in the folder `cache`, and without one, if they are many, in the user's.

    Raises:
        MiloraError: the rows do not exist, cannot be read, or do not fit.
    """
    settings, name = recipe.training, choose_template(recipe.data.template, lambda: tokenizer)
    template = resolve_template(name, lambda: tokenizer, pictures)
    digest = digest_preparation(recipe.data, tokenizer, template.text, settings.max_length, settings.loss_on)

    def describe_pictures() -> list[str]:
        """The folders that pictures are in, and what the model's processor makes of them: it is loaded here."""
        folders = {str(file.parent) for files in list_files(recipe.data) for file in files}
        return [*sorted(folders), pictures.settings if pictures else ""]

    entry = (cache or user_cache_path("milora")) / "rows" / digest
    kept = _read(entry, name, describe_pictures)
    if kept is not None:
        return kept
    with _collecting_new_objects():
        found = load_training_rows(recipe.data, partial(count_tokens, template=template, tokenizer=tokenizer))
        if cache is None and len(found.train) < KEPT_FROM:
            return _tokenize(recipe, found, name, template, tokenizer)
        with holding(entry):
            kept = _read(entry, name, describe_pictures)  # another process may have written it while this one waited
            if kept is None:
                kept = _tokenize(recipe, found, name, template, tokenizer)
                _write(entry, kept, describe_pictures)
    return kept


@contextmanager
def _collecting_new_objects() -> Iterator[None]:
    """Keep garbage collection away from the objects that exist already.

    A row is a dozen Python objects, so collections are frequent, and each full one would visit the half a million
    objects of torch's and transformers' modules.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def check_embedded(rows: datasets.Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if a row contains a token of the tokenizer that the model does not embed."""
    embedded = count_embedded(recipe.model, tokenizer)
    if len(tokenizer) <= embedded:
        return
    for row in rows["input_ids"]:
        if max(row) >= embedded:
            token = tokenizer.convert_ids_to_tokens(max(row))
            raise MiloraError(
                f"the rows contain token {max(row)}, {token!r}, and {recipe.model.name} embeds only {embedded} tokens",
                "name the token in model.added_tokens, or use the tokenizer that the model was trained with",
            )


def _tokenize(
    recipe: Recipe, found: TrainingRows, name: TemplateName, template: Template, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    tokenize = partial(
        tokenize_rows,
        template=template,
        tokenizer=tokenizer,
        max_length=recipe.training.max_length,
        loss_on=recipe.training.loss_on,
    )
    train, report = tokenize(found.train)
    report = replace(report, bad=found.bad, long=found.long, copies=found.copies)
    if not len(found.held_out):
        return Rows(train, None, name, report, None)
    held_out, held_out_report = tokenize(found.held_out, what="held-out rows")
    return Rows(train, held_out, name, report, held_out_report)


def _read(entry: Path, name: TemplateName, describe_pictures: Callable[[], list[str]]) -> Rows | None:
    """The rows of an entry, unless their pictures are elsewhere by now, or another processor's."""
    found = read_entry(entry)
    if found is None:
        return None
    tables, (report, held_out_report, known) = found
    rows = Rows(
        tables["train"],
        tables.get("held_out"),
        name,
        TokenReport(**report),
        TokenReport(**held_out_report) if held_out_report else None,
    )
    return None if rows.has_pictures and known != describe_pictures() else rows


def _write(entry: Path, rows: Rows, describe_pictures: Callable[[], list[str]]) -> None:
    tables = {"train": rows.train, **({"held_out": rows.held_out} if rows.held_out else {})}
    reports = [asdict(rows.report), asdict(rows.held_out_report) if rows.held_out_report else None]
    write_entry(entry, tables, [*reports, describe_pictures() if rows.has_pictures else []])
