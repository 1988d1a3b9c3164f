"""Variants of a scheme: how they are written, what they are called, what they set, what is refused."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contracts.request import Analysis, JobRequest, schemes_for
from service.contracts.scheme_settings import written
from service.contracts.schemes import SCHEMES
from service.contracts.variants import Variant

STORED = Path(__file__).parents[2] / "workers/reporting/stored/schema_1_0/report.json"


def analysis(*schemes: object, **settings: object) -> Analysis:
    return Analysis.model_validate({"schemes": schemes, **settings})


def refused(*schemes: object) -> str:
    """What is said of the first thing that is wrong with these schemes, which must be wrong."""
    with pytest.raises(ValidationError) as error:
        analysis(*schemes)
    return error.value.errors()[0]["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize(
    ("text", "name", "settings", "keep"),
    [
        ("nf4", "nf4", {}, ()),
        ("nf4:compute_dtype=float32", "nf4-compute-dtype-float32", {"compute_dtype": "float32"}, ()),
        ("int8:threshold=0.5", "int8-threshold-0-5", {"threshold": 0.5}, ()),
        ("int8:threshold=0", "int8-threshold-0", {"threshold": 0.0}, ()),
        ("lossless=int8:threshold=4", "lossless", {"threshold": 4.0}, ()),
        ("a-1=nf4", "a-1", {}, ()),
        ("nf4=nf4:block_size=128", "nf4", {"block_size": 128}, ()),
        ("fp4:double_quantisation=true", "fp4-double-quantisation-true", {"double_quantisation": True}, ()),
        ("int4-group128:weight_group=64", "int4-group128-weight-group-64", {"weight_group": 64}, ()),
        ("w8a8-token:weight_group=channel", "w8a8-token-weight-group-channel", {"weight_group": "channel"}, ()),
        ("nf4:keep=attn.v", "nf4-keep-attn-v", {}, ("attn.v",)),
        ("x=nf4:keep=attn.v,keep=layers.3.mlp.down", "x", {}, ("attn.v", "layers.3.mlp.down")),
    ],
)  # fmt: skip
def test_a_text_is_a_label_a_scheme_and_its_settings(text, name, settings, keep):
    (variant,) = analysis(text).schemes
    assert (variant.name, variant.settings, variant.keep) == (name, settings, keep)
    assert [type(value) for value in variant.settings.values()] == [type(value) for value in settings.values()]
    (scheme,) = schemes_for(analysis(text))
    base = SCHEMES[variant.scheme]
    assert (scheme.name, scheme.kernel, scheme.settings) == (name, base.kernel, base.settings | settings)


def test_settings_keep_their_order_in_the_name():
    keeping = "nf4:keep=b,block_size=32"
    assert analysis(keeping).scheme_names == ("nf4-block-size-32-keep-b",)  # settings first, as in an object
    assert "'nf4-block-size-32-compute-dtype-float16'" in refused("nf4:block_size=32,compute_dtype=float16")
    assert "'nf4-compute-dtype-float16-block-size-32'" in refused("nf4:compute_dtype=float16,block_size=32")


def test_an_object_says_the_same_as_a_text():
    objects = [
        {"scheme": "nf4"},
        {"scheme": "nf4", "settings": {"compute_dtype": "float32"}},
        {"name": "lossless", "scheme": "int8", "settings": {"threshold": 4}},
        {"scheme": "nf4", "keep": ["mlp.down"]},
    ]
    texts = ["nf4", "nf4:compute_dtype=float32", "lossless=int8:threshold=4", "nf4:keep=mlp.down"]
    assert analysis(*objects) == analysis(*texts)
    assert [str(variant) for variant in analysis(*objects).schemes] == texts


def test_what_a_name_says_all_of_is_stored_as_that_name():
    asked = analysis("int8", "lossless=int8:threshold=4", "b=nf4", "nf4:keep=mlp.down", "nf4")
    stored = json.loads(asked.model_dump_json())["schemes"]
    assert [one if isinstance(one, str) else one["name"] for one in stored] == list(asked.scheme_names)
    assert [one for one in stored if isinstance(one, str)] == ["int8", "nf4"]
    assert stored[1] == {"name": "lossless", "scheme": "int8", "settings": {"threshold": 4.0}, "keep": []}
    assert Analysis.model_validate_json(asked.model_dump_json()) == asked
    assert Analysis.model_validate(asked.model_dump()) == asked
    assert json.loads(Analysis().model_dump_json())["schemes"] == ["int8", "nf4"]


def test_rows_and_reports_of_earlier_versions_read_as_before():
    row = {"model": "sample", "schemes": ["int8", "w8a8-token"], "int8_threshold": 4.5}
    request = JobRequest.model_validate(row)
    assert request.scheme_names == ("int8", "w8a8-token")
    assert json.loads(request.model_dump_json())["schemes"] == row["schemes"]
    stored = json.loads(STORED.read_text(encoding="utf-8"))["analysis"]
    assert json.loads(Analysis.model_validate(stored).model_dump_json())["schemes"] == stored["schemes"]


@given(st.data())
def test_a_variant_as_it_is_typed_reads_as_itself(data: st.DataObject):
    scheme = data.draw(st.sampled_from([scheme for scheme in SCHEMES.values() if scheme.takes]))
    settings = {}
    for setting in data.draw(st.lists(st.sampled_from(scheme.takes), unique=True)):
        numbers = st.floats(0, 1e300) if setting.minimum is not None else st.nothing()
        listed = st.sampled_from(setting.values) if setting.values else st.nothing()
        settings[setting.name] = data.draw(numbers | listed)
    keep = data.draw(st.lists(st.from_regex(r"\A[A-Za-z0-9_.-]{1,9}\Z")))
    name = data.draw(st.from_regex(r"\A[a-z0-9-]{1,32}\Z").filter(lambda label: label not in {"reference", *SCHEMES}))
    variant = Variant(scheme=scheme.name, settings=settings, keep=keep, name=name)
    assert analysis(str(variant)).schemes == (variant,)


def test_int8_threshold_is_the_default_of_every_variant_of_int8():
    asked = analysis("int8", "b=int8", "int8:threshold=0", "nf4", int8_threshold=2.5)
    assert [scheme.settings.get("threshold") for scheme in schemes_for(asked)] == [2.5, 2.5, 0.0, None]


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("int9", "Unknown scheme 'int9'. Available: int8, nf4, fp4"),
        ("int9", "Did you mean 'int8'?"),
        ("nf4:compute_dtyp=float32", "nf4 has no setting 'compute_dtyp'. Available: compute_dtype, block_size"),
        ("nf4:compute_dtyp=float32", "Did you mean 'compute_dtype'?"),
        ("int8:compute_dtype=float32", "int8 has no setting 'compute_dtype'. Available: threshold, keep"),
        (
            "nf4:compute_dtype=float31",
            "nf4: compute_dtype='float31' is not allowed; allowed: bfloat16, float16, float32",
        ),
        ("nf4:compute_dtype=float31", "Did you mean 'float32'?"),
        ("nf4:compute_dtype=auto", "nf4: compute_dtype='auto' is not allowed; allowed: bfloat16, float16, float32"),
        ("nf4:block_size=65", "nf4: block_size='65' is not allowed; allowed: 32, 64, 128, 256, 512, 1024, 2048, 4096"),
        ("nf4:double_quantisation=1", "nf4: double_quantisation='1' is not allowed; allowed: true or false"),
        ("int8:threshold=-1", "int8: threshold='-1' is not allowed; allowed: a finite number, 0 or more"),
        ("int8:threshold=nan", "int8: threshold='nan' is not allowed; allowed: a finite number, 0 or more"),
        ("int8:threshold=1e999", "int8: threshold='1e999' is not allowed; allowed: a finite number, 0 or more"),
        ("int8:threshold=1,threshold=2", "'int8:threshold=1,threshold=2' sets 'threshold' twice; allowed: once"),
        ("mxfp4:weight_group=64", "mxfp4 has no setting 'weight_group'. Available: keep"),
        ("int8=nf4", "'int8' cannot be the label of nf4: it is the name of another scheme. Give another label"),
        ("reference=nf4", "'reference' cannot be the label of nf4: it is the name of the unquantized model"),
        ("Label=nf4", "'Label' is not a label; allowed: 1 to 32 of a-z, 0-9 and -"),
        (f"{'a' * 33}=nf4", "allowed: 1 to 32 of a-z, 0-9 and -"),
        ("=nf4", "no label before '='"),
        ("nf4:", "'nf4:': '' is not KEY=VALUE; allowed: [LABEL=]SCHEME[:KEY=VALUE,...]"),
        ("nf4:block_size", "'nf4:block_size': 'block_size' is not KEY=VALUE; allowed: [LABEL=]SCHEME[:KEY=VALUE,"),
        ("nf4:block_size=", "'nf4:block_size=': 'block_size=' is not KEY=VALUE; allowed: [LABEL=]SCHEME[:KEY=VAL"),
        ("nf4:keep=a b", "String should match pattern"),
        ("", "Unknown scheme ''"),
        (
            {"scheme": "int8", "settings": {"threshold": True}},
            "int8: threshold=true is not allowed; allowed: a finite number, 0 or more",
        ),
        (
            {"scheme": "int8", "settings": {"threshold": math.inf}},
            "int8: threshold=inf is not allowed; allowed: a finite number, 0 or more",
        ),
        (
            {"scheme": "int8", "settings": {"threshold": 10**400}},
            f"int8: threshold=1{'0' * 119}... is not allowed; allowed: a finite number, 0 or more",
        ),
        (
            {"scheme": "int8", "settings": {"threshold": [1]}},
            "int8: threshold=[1] is not allowed; allowed: a finite number, 0 or more",
        ),
        (
            {"scheme": "nf4", "settings": {"double_quantisation": 1}},
            "nf4: double_quantisation=1 is not allowed; allowed: true or false",
        ),
        (
            {"scheme": "nf4", "settings": {"block_size": True}},
            "nf4: block_size=true is not allowed; allowed: 32, 64, 128, 256, 512, 1024, 2048, 4096",
        ),
        ({"scheme": "nf4", "settings": [64]}, "valid dictionary"),
        ({"scheme": "nf4", "keep": "attn.v"}, "valid tuple"),
        ({"scheme": "nf4", "labels": "a"}, "Extra inputs"),
        ({"settings": {}}, "Field required"),
        (7, "valid dictionary"),
    ],
)
def test_what_no_job_may_ask_for_is_said_with_what_it_may(scheme, said):
    assert said in refused(scheme)


@pytest.mark.parametrize(
    "scheme",
    ["x" * 100_000, f"{'x' * 100_000}=nf4", f"nf4:{'x' * 100_000}=1", f"nf4:{'x' * 100_000}",
     f"nf4:block_size={'6' * 100_000}", {"scheme": "int8", "settings": {"threshold": "x" * 100_000}}],
)  # fmt: skip
def test_what_is_long_is_shown_cut(scheme):
    assert len(refused(scheme)) < 500


def test_two_variants_of_one_name_are_refused():
    assert "int8 and int8 have the same name 'int8'. Give one of them another label: LABEL=int8" in refused(
        "int8", "int8"
    )
    both = (
        "b=int8 and b=nf4:block_size=32 have the same name 'b'. Give one of them another label: LABEL=nf4:block_size=32"
    )
    assert both in refused("b=int8", "int8", "b=nf4:block_size=32")


def test_a_name_that_is_too_long_asks_for_a_label():
    said = refused("nf4:compute_dtype=bfloat16,block_size=128")
    assert "'nf4-compute-dtype-bfloat16-block-size-128' has 41 characters; allowed: at most 32" in said
    assert said.endswith("Give a label: LABEL=nf4:compute_dtype=bfloat16,block_size=128")
    assert analysis("b=nf4:compute_dtype=bfloat16,block_size=128").scheme_names == ("b",)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_setting_of_a_scheme_takes_the_values_that_it_lists(name):
    scheme = SCHEMES[name]
    for setting in scheme.takes:
        assert setting.name in scheme.settings
        assert setting.meaning
        values = [*setting.values, *([setting.minimum] if setting.minimum is not None else [])]
        assert values
        for value in values:
            (typed,) = schemes_for(analysis(f"x={name}:{setting.name}={written(value)}"))
            (given_,) = schemes_for(analysis({"name": "x", "scheme": name, "settings": {setting.name: value}}))
            assert typed.settings == given_.settings == scheme.settings | {setting.name: value}


@pytest.mark.parametrize(
    ("text", "only"),
    [("nf4", False), ("nf4:block_size=64", False), ("nf4:block_size=128", True), ("fp4-dq:block_size=32", True),
     ("nf4:compute_dtype=float16", False), ("int8:threshold=0", False), ("int4-group128:weight_group=64", False)],
)  # fmt: skip
def test_only_what_no_config_expresses_is_for_analysis_only(text, only):
    (scheme,) = schemes_for(analysis(text))
    assert scheme.analysis_only is only
