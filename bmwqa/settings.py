"""The parameters of training.ipynb as one checked object, as it stands in results.json."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, ValidationError

NONE = BeforeValidator(lambda value: None if value == "None" else value)  # `-p X None` sends text
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1)]
MaybePositive = Annotated[Positive | None, NONE]


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What a run is to do. The parameters cell of training.ipynb says what each parameter means."""

    model: str
    revision: Annotated[str | None, NONE]
    offline_model: Annotated[str | None, NONE]
    processed_dir: str
    out_dir: str
    train_kinds: Annotated[Annotated[list[str], Field(min_length=1)] | None, NONE]
    max_steps: Positive
    questions_per_step: MaybePositive
    learning_rate_full: Rate
    learning_rate_lora: Rate
    warmup_steps: Count
    lora_r: Annotated[int, Field(gt=0, le=4096)]
    lora_alpha: PositiveFloat
    lora_targets: str | list[str]
    max_tokens: Positive
    checkpoint_above: MaybePositive
    precision: Literal["auto", "bf16", "fp32"]
    report_to: str
    held_out: Count
    eval_steps: Positive
    early_stopping: MaybePositive
    max_new_tokens: Positive
    max_new_tokens_about: Positive
    benchmark: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # as numpy needs it


def read_settings(names: dict[str, Any]) -> Settings:
    """The settings from a namespace with the parameters in capitals, as `globals()` in a notebook.

    ValueError names a parameter that is missing or wrong, its value, and what is needed.
    """
    values = {name: names[name.upper()] for name in Settings.model_fields if name.upper() in names}
    values = {n: str(v) if isinstance(v, bool) else v for n, v in values.items()}  # True is no 1
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        value = repr(names[name]) if name in names else "missing"
        raise ValueError(f"{name} is {value}. {first['msg']}. Change this parameter.") from error
    measured = settings.held_out and settings.eval_steps <= settings.max_steps
    if settings.early_stopping is not None and not measured:
        raise ValueError(
            f"EARLY_STOPPING is {settings.early_stopping}, but nothing would be measured: HELD_OUT "
            f"is {settings.held_out}, EVAL_STEPS {settings.eval_steps}, MAX_STEPS "
            f"{settings.max_steps}. Set it to None, or hold articles out and measure in time."
        )
    return settings
