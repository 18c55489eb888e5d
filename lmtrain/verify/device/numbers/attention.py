"""Checks every kind of attention that the device has, with and without masked documents, against float64."""

from collections.abc import Iterator
from typing import get_args, get_type_hints

from lmtrain.model.llama import Llama
from lmtrain.verify.device.finding import NOT_APPLICABLE, Finding, judged
from lmtrain.verify.device.numbers.precision import FORMATS, NumberFormat, Reference, compare_pass, missing_format
from lmtrain.verify.device.setting import Setting

DOCUMENTS = ("model.mask_documents=true", "model.end_of_text=0")


def of_each_kind(setting: Setting) -> Iterator[Finding]:
    """Compare a pass of the Llama with grouped queries for each kind that can do the task here.

    16-bit kernels are compared where the device has them; on a GPU, those are the ones that count.
    """
    if not kinds():
        yield Finding(NOT_APPLICABLE, "the model has no model.attention")
        return
    bfloat16 = FORMATS[2]
    is_16_bit = setting.is_cuda and not missing_format(bfloat16, setting.device)
    for documents in (False, True):
        own = DOCUMENTS if documents else ()
        reference = Reference(setting.small("llama", *own, "model.attention=math"))
        for kind in kinds():
            # flex is compiled, which takes time, so only for the format in which it trains.
            both = (bfloat16,) if kind == "flex" else (FORMATS[0], bfloat16)
            for number_format in both if is_16_bit else (FORMATS[0],):
                what = f"{kind}{', documents masked' if documents else ''}, {number_format.name}"
                yield compare_kind(setting, reference, kind, own, number_format, what)


def compare_kind(
    setting: Setting, reference: Reference, kind: str, own: tuple[str, ...], number_format: NumberFormat, what: str
) -> Finding:
    cfg = setting.small(
        "llama",
        *own,
        *number_format.overrides,
        f"model.attention={kind}",
        "system.compile=false",
        # Some kernels have no deterministic backward; `repeat` checks the default.
        f"system.deterministic={'true' if kind == 'auto' else 'false'}",
    )
    try:
        return compare_pass(reference, cfg, number_format, what)
    except Exception as error:  # torch has no kernel, for example; the other kinds must still be checked
        if isinstance(error, ValueError) and "model.attention" in str(error):  # the model says what it cannot do here
            return Finding(NOT_APPLICABLE, str(error), what)
        return judged(False, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", what)


def kinds() -> tuple[str, ...]:
    """Return the kinds of attention that a config can name; none if the model has no choice of them."""
    return get_args(get_type_hints(Llama.__init__).get("attention"))
