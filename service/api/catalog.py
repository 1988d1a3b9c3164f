"""Lists the schemes, and the forms of model names, that a job may use."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.contracts.request import SAMPLE
from service.contracts.schemes import SCHEMES, Scheme

router = APIRouter(prefix="/v1")


class ModelForm(BaseModel):
    """One way of naming a model in a job."""

    form: str
    """The form; replace the words in capitals."""
    meaning: str


class ModelForms(BaseModel):
    """Every way of naming a model."""

    models: list[ModelForm]


class SchemeList(BaseModel):
    """Every scheme, in the order in which reports list them."""

    schemes: list[Scheme]


@router.get("/models")
def models() -> ModelForms:
    """Return the forms of a job's `model`."""
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
    """Return the schemes that a job may use, each with its settings."""
    return SchemeList(schemes=list(SCHEMES.values()))
