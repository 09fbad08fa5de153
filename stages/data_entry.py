"""What a recipe may say of its rows: where samples come from, which views there are, what a model may read of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from stages.source_entry import Section

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=60)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Data(Section):
    """What to learn from: a catalogue name, a folder of pictures, or a table of one's own.

    Of a table, `label` is the column of classes, or `numbers` those of real numbers to answer with, `text` the columns
    of words, `drop` those that no model may see, `groups` one whose groups are compared, and `test_rows` one that says
    which rows are the test, or a second file of them, `translation` a column that the first of `text` is to be
    translated into. Of several sources, which [[source]] describe, `key` is the column that all of them share. Of
    pictures in a folder, `boxes` is a file in COCO's format that says what is where, `test_boxes` that of the test. Of
    texts, those of more than `max_words` are left out.
    """

    name: str | None = None
    folder: str | None = None
    table: str | None = None
    key: str | None = None
    label: str | None = None
    numbers: list[str] = []
    text: list[str] = []
    drop: list[str] = []
    groups: str | None = None
    test_rows: str | None = None
    translation: str | None = None
    boxes: str | None = None
    test_boxes: str | None = None
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    labelled: Count | None = None
    max_train: Count | None = None
    max_test: Count | None = None
    max_words: Count | None = None
    size: Annotated[int, Field(ge=1, le=8192)] | None = None
    channels: Literal[1, 3] | None = None
    memory_gb: Positive = 4.0


class Views(Section):
    """Which versions of each train sample there are."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 8
    transforms: list[dict[str, Any]] = []
    mix: dict[str, Any] | None = None


class Named(BaseModel):
    """An entry with a name, whose unknown keys are options of what it names."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: Name

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the model or strategy it names."""
        return dict(self.model_extra or {})


class InputEntry(Named):
    """What a model may read of a record: its text, its words, a vector of its columns. Unknown keys are its kind's."""

    kind: str
