"""What may be asked for: schemes, and forms of model names."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.contracts.request import SAMPLE
from service.contracts.schemes import SCHEMES, Scheme

router = APIRouter(prefix="/v1")


class ModelForm(BaseModel):
    """One way of naming a model in a job."""

    form: str
    """What to write; capitals stand for the reader's own values."""
    meaning: str


class ModelForms(BaseModel):
    """Every way of naming a model."""

    models: list[ModelForm]


class SchemeList(BaseModel):
    """Every scheme, in the order in which reports list them."""

    schemes: list[Scheme]


@router.get("/models")
def models() -> ModelForms:
    """Return the forms that a job's `model` may take."""
    return ModelForms(
        models=[
            ModelForm(form=SAMPLE, meaning="the small model bundled with Headroom"),
            ModelForm(form="/ABSOLUTE/PATH", meaning="a checkpoint directory on the worker's machine"),
            ModelForm(form="ORG/NAME", meaning="a model on the hub, at its default revision"),
            ModelForm(form="ORG/NAME@REVISION", meaning="a model on the hub, at a branch, tag or commit"),
        ]
    )


@router.get("/schemes")
def schemes() -> SchemeList:
    """Return the schemes that a job's `schemes` may name."""
    return SchemeList(schemes=list(SCHEMES.values()))
