"""Tests that a signature read from source equals the imported one, and that nothing is imported needlessly."""

import dataclasses
import functools
import importlib
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval
from omegaconf import OmegaConf
from pydantic import PositiveInt

from lmtrain.config.signature import Parameter, Signature, TargetError, locate, signature_of

CONF = Path(__file__).parents[2] / "conf"


def targets_in(node: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield each `_target_` with the keys beside it that are values, not parts."""
    if isinstance(node, dict):
        if "_target_" in node:
            values = [key for key, value in node.items() if not isinstance(value, dict) and not key.startswith("_")]
            yield node["_target_"], values
        for value in node.values():
            yield from targets_in(value)


def shipped() -> dict[str, set[str]]:
    """Return all targets in conf/ with the keys that their choices set, except conf/hydra, which Hydra instantiates."""
    found: dict[str, set[str]] = {}
    for file in CONF.rglob("*.yaml"):
        if "hydra" not in file.relative_to(CONF).parts:
            for target, values in targets_in(OmegaConf.to_container(OmegaConf.load(file))):
                found.setdefault(target, set()).update(values)
    return found


# Reads every target from its source, then imports it and reads it again; prints the differences.
COMPARE = """
import importlib, json, sys
from lmtrain.config import signature
shipped = json.loads(sys.argv[1])
static, heavy = {}, []
for target, typed in shipped.items():
    before = "torch" in sys.modules
    static[target] = signature.signature_of(target, typed)
    if "torch" in sys.modules and not before:
        heavy.append(target)
loaded = [target for target in shipped if target.rpartition(".")[0] in sys.modules]
differences = []
for target, read in static.items():
    importlib.import_module(target.rpartition(".")[0])
    seen = signature.signature_of(target, read.parameters)
    if [*read.parameters] != [*seen.parameters] or read.open != seen.open:
        differences.append(f"{target}: {read} {seen}")
        continue
    for name, parameter in read.parameters.items():
        other = seen.parameters[name]
        unknown = parameter.annotation is signature._UNKNOWN
        if parameter.required != other.required or not unknown and parameter.annotation != other.annotation:
            differences.append(f"{target}.{name}: {parameter} {other}")
        if unknown and name in shipped[target]:
            differences.append(f"{target}.{name}: asked for, not told")
print(json.dumps({"heavy": heavy, "loaded": loaded, "differences": differences}))
"""


@pytest.fixture(scope="module")
def compared() -> dict[str, list[str]]:
    """Run the comparison in a fresh interpreter, because other tests have imported the targets here."""
    arguments = {target: sorted(values) for target, values in shipped().items()}
    command = [sys.executable, "-c", COMPARE, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def test_conf_names_the_known_targets():
    known = {
        "lmtrain.model.llama.Llama",
        "lmtrain.model.gpt2.GPT2",
        "lmtrain.optimizer.adamw.adamw",
        "lmtrain.trainer.Trainer",
    }
    assert known < shipped().keys()
    assert "d_model" in shipped()["lmtrain.model.llama.Llama"]


def test_reading_gives_the_same_signature_as_importing(compared):
    assert compared["differences"] == []


def test_reading_does_not_import_torch(compared):
    assert compared["heavy"] == []


def test_models_optimizer_and_trainer_are_read_without_importing_them(compared):
    plain = {
        "lmtrain.model.llama.Llama",
        "lmtrain.model.gpt2.GPT2",
        "lmtrain.optimizer.adamw.adamw",
        "lmtrain.trainer.Trainer",
    }
    assert plain.isdisjoint(compared["loaded"])


# A user's own modules


Module = Callable[..., None]


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[Module]:
    """Return a function that writes an importable module; dots in its name are folders."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, source: str, *, package: bool = False) -> None:
        path = tmp_path / name.replace(".", "/")
        file = path / "__init__.py" if package else path.with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0].startswith("own"):
            del sys.modules[name]


def both(target: str) -> Signature:
    """Return the signature read from the source, after asserting that it equals that of the imported module."""
    typed = signature_of(target, typed=()).parameters
    read = signature_of(target, typed=typed)
    importlib.import_module(target.rpartition(".")[0])
    assert read == signature_of(target, typed=typed)
    return read


def imported(name: str) -> bool:
    return name in sys.modules


def test_a_plain_function_is_not_imported(module):
    module(
        "own_function",
        """
        from typing import Annotated
        from annotated_types import Interval
        import nowhere_to_be_found

        Share = Annotated[float, Interval(ge=0)]

        def build(lr: float, name="x", *, n: int | None = None, share: Share, free, a=1.5): ...
        """,
    )
    read = signature_of("own_function.build", typed=["lr", "share"])
    assert not imported("own_function")
    assert read == Signature(
        {
            "lr": Parameter(float, required=True),
            "name": Parameter(str, required=False),
            "n": Parameter(int | None, required=False),
            "share": Parameter(Annotated[float, Interval(ge=0)], required=True),
            "free": Parameter(Any, required=True),
            "a": Parameter(float, required=False),
        },
        open=False,
    )
    assert [*read.parameters] == ["lr", "name", "n", "share", "free", "a"]


def test_a_plain_class_is_not_imported(module):
    module(
        "own_class",
        """
        import nowhere_to_be_found
        from pydantic import PositiveInt

        class Model(nowhere_to_be_found.Base):
            def __init__(self, width: PositiveInt, depth: "int" = 2, **rest: float) -> None: ...
        """,
    )
    read = signature_of("own_class.Model", typed=["width", "depth"])
    assert not imported("own_class")
    assert read.open
    assert read.parameters == {"width": Parameter(PositiveInt, True), "depth": Parameter(int, False)}


def test_a_signature_with_keyword_arguments_is_open(module):
    module("own_open", "def f(a: int, *args: str, **kwargs: float): ...\ndef g(a: int, *args: str): ...")
    assert both("own_open.f") == Signature({"a": Parameter(int, required=True)}, open=True)
    assert not signature_of("own_open.g", typed=()).open


def test_a_type_alias_in_the_module_is_followed(module):
    module(
        "own_alias",
        """
        from typing import Annotated, Literal
        from annotated_types import Interval

        Kind = Literal["a", "b"]
        Share = Annotated[float, Interval(ge=0, le=1)]

        def f(kind: Kind, share: Share, kinds: tuple[Kind, ...] = (), maybe: Kind | None = None): ...
        """,
    )
    read = signature_of("own_alias.f", typed=["kind", "share", "kinds", "maybe"])
    assert not imported("own_alias")
    assert read.parameters["kind"].annotation == Literal["a", "b"]
    assert read.parameters["maybe"].annotation == Literal["a", "b"] | None
    assert read == both("own_alias.f")


def test_a_type_alias_in_another_module_of_the_package_is_followed(module):
    module("own_parts", "", package=True)
    module(
        "own_parts.shares",
        """
        import nowhere_to_be_found
        from typing import Annotated
        from annotated_types import Interval

        LARGEST = 1
        Share = Annotated[float, Interval(ge=0, le=LARGEST)]
        """,
    )
    module("own_parts.again", "from own_parts.shares import Share as Part\nfrom own_parts.user import Odd\n")
    module("own_parts.user", "from own_parts.again import Odd, Part\ndef f(share: Part, odd: Odd): ...")
    read = signature_of("own_parts.user.f", typed=["share"])
    assert not imported("own_parts.user")
    assert not imported("own_parts.shares")
    assert read.parameters["share"] == Parameter(Annotated[float, Interval(ge=0, le=1)], required=True)
    with pytest.raises(TargetError, match="nowhere_to_be_found"):  # two modules that import a name from each other
        signature_of("own_parts.user.f", typed=["share", "odd"])


def test_a_class_without_init_takes_nothing_and_is_not_imported(module):
    module("own_empty", "import nowhere_to_be_found\n\nclass Empty:\n    def fit(self, a): ...\n")
    assert signature_of("own_empty.Empty", typed=()) == Signature({}, open=False)
    assert not imported("own_empty")
    module("own_alike", "class A:\n    def __init__(self, n: int): ...\nclass B(A): ...\nclass C: ...")
    assert [*both("own_alike.B").parameters] == ["n"]
    assert both("own_alike.C") == Signature({}, open=False)


def test_an_annotation_from_elsewhere_is_imported_only_where_it_is_needed(module):
    module("own_types", "class Shape: ...\nWidth = int")
    module("own_user", "from own_types import Shape, Width\ndef f(shape: Shape, width: Width, n: int): ...")
    assert signature_of("own_user.f", typed=["n"]).parameters["n"] == Parameter(int, required=True)
    assert not imported("own_user")
    assert signature_of("own_user.f", typed=["width"]).parameters["width"] == Parameter(int, required=True)
    assert imported("own_user")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("from typing import Optional\ndef f(a: Optional['int']): ...", id="quoted inside"),
        pytest.param("class Here: ...\ndef f(a: list['Here']): ...", id="a later name quoted inside"),
        pytest.param("from own_types import float\ndef f(a: float): ...", id="a builtin's name imported"),
        pytest.param("class float: ...\ndef f(a: float): ...", id="a builtin's name defined"),
        pytest.param("Kind = int\nif True:\n    Kind = str\ndef f(a: Kind): ...", id="an alias bound again"),
        pytest.param("import collections.abc\ndef f(a: collections.abc.Sequence[int]): ...", id="a submodule"),
    ],
)
def test_an_annotation_that_is_easily_misread(module, source):
    module("own_types", "class float: ...")
    module("own_annotated", source)
    both("own_annotated.f")


def test_a_target_with_a_computed_default_is_imported_for_its_type(module):
    module("own_default", "def f(a=1 / 3, b=-1, c=None, d=(1, 2), e=True): ...")
    assert {name: each.annotation for name, each in both("own_default.f").parameters.items()} == {
        "a": float,
        "b": int,
        "c": Any,
        "d": Any,
        "e": bool,
    }


def test_a_decorated_function_is_inspected(module):
    module(
        "own_decorated",
        """
        import functools

        def twice(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs), function(*args, **kwargs)
            return wrapper

        def hidden(function):
            return lambda **anything: function(**anything)

        @twice
        def wrapped(lr: float, n: int = 1): ...

        @hidden
        def replaced(lr: float): ...
        """,
    )
    expected = {"lr": Parameter(float, required=True), "n": Parameter(int, required=False)}
    assert both("own_decorated.wrapped") == Signature(expected, open=False)
    assert both("own_decorated.replaced") == Signature({}, open=True)


def test_a_decorated_class_or_init_is_inspected(module):
    module(
        "own_init",
        """
        import functools

        def ignoring(init):
            def other(self, lr: float): ...
            return other

        class Decorated:
            @ignoring
            def __init__(self, nothing: str): ...

        def emptied(cls):
            return lambda lr: cls(lr)

        @emptied
        class Replaced:
            def __init__(self, nothing: str): ...
        """,
    )
    assert both("own_init.Decorated") == Signature({"lr": Parameter(float, required=True)}, open=False)
    assert both("own_init.Replaced") == Signature({"lr": Parameter(Any, required=True)}, open=False)


def test_an_inherited_init_is_inspected(module):
    module("own_base", "class Base:\n    def __init__(self, lr: float, n: int = 2): ...")
    module("own_child", "from own_base import Base\nclass Child(Base): ...\nclass Grandchild(Child):\n    size = 3")
    for name in ("Child", "Grandchild"):
        read = both(f"own_child.{name}")
        assert read.parameters == {"lr": Parameter(float, required=True), "n": Parameter(int, required=False)}


def test_dataclasses_and_named_tuples_are_inspected(module):
    module(
        "own_data",
        """
        from dataclasses import dataclass, field
        from typing import NamedTuple

        @dataclass
        class Point:
            x: int
            y: float = 0.5
            names: list[str] = field(default_factory=list)
            hidden: int = field(default=0, init=False)

        class Pair(NamedTuple):
            a: int
            b: str = ""
        """,
    )
    assert both("own_data.Point").parameters == {
        "x": Parameter(int, required=True),
        "y": Parameter(float, required=False),
        "names": Parameter(list[str], required=False),
    }
    assert {name: each.required for name, each in both("own_data.Pair").parameters.items()} == {"a": True, "b": False}


def test_a_class_with_new_is_inspected(module):
    module("own_new", "class C:\n    def __new__(cls, lr: float): return super().__new__(cls)")
    assert [*both("own_new.C").parameters] == ["lr"]


@pytest.mark.parametrize(
    "line", ["from own_package.inner import Model", "from .inner import *", "from . import inner\nModel = inner.Model"]
)
def test_a_re_export_is_found(module, line):
    module("own_package", line, package=True)
    module("own_package.inner", "class Model:\n    def __init__(self, width: int): ...")
    assert both("own_package.Model") == Signature({"width": Parameter(int, required=True)}, open=False)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            "import functools\ndef f(lr: float, n: int): ...\nf = functools.partial(f, n=2)",
            id="assigned again",
        ),
        pytest.param("def f(lr: float): ...\ndef f(n: int): ...", id="defined again"),
        pytest.param(
            "try:\n    import nowhere_to_be_found\nexcept ImportError:\n    def f(n: int): ...", id="in a branch"
        ),
        pytest.param("def f(lr: float): ...\nif True:\n    def f(n: int): ...", id="again in a branch"),
        pytest.param("def f(lr: float): ...\nfrom own_other import f", id="imported over"),
        pytest.param("f = lambda lr: lr", id="a lambda"),
        pytest.param("def __getattr__(name):\n    return lambda lr: lr", id="made on demand"),
    ],
)
def test_a_name_that_is_bound_in_other_ways_has_the_signature_it_ends_with(module, source):
    module("own_other", "def f(other: str): ...")
    module("own_bound", source)
    first = signature_of("own_bound.f", typed=())
    actual = inspect.signature(locate("own_bound.f"))
    assert [*first.parameters] == [*actual.parameters]
    assert [each.required for each in first.parameters.values()] == [
        each.default is inspect.Parameter.empty for each in actual.parameters.values()
    ]


def test_methods_of_classes_are_found(module):
    module(
        "own_method",
        """
        class Model:
            @classmethod
            def small(cls, depth: int = 2): ...

            @staticmethod
            def large(width: int): ...
        """,
    )
    assert signature_of("own_method.Model.small", typed=()).parameters == {"depth": Parameter(int, required=False)}
    assert signature_of("own_method.Model.large", typed=()).parameters == {"width": Parameter(int, required=True)}


def test_a_callable_written_in_c_accepts_anything():
    assert signature_of("builtins.dict", typed=()) == Signature({}, open=True)


def test_the_standard_library_is_read_in_the_same_way():
    assert both("textwrap.TextWrapper").parameters["width"] == Parameter(int, required=False)
    assert [*both("dataclasses.field").parameters] == [*inspect.signature(dataclasses.field).parameters]
    assert [*both("functools.singledispatch").parameters] == [*inspect.signature(functools.singledispatch).parameters]


# Mistakes


@pytest.mark.parametrize("target", ["nowhere_to_be_found.Model", "nowhere_to_be_found.sub.Model", "Model", ""])
def test_a_missing_module_is_named(target):
    with pytest.raises(TargetError, match="no module") as caught:
        signature_of(target, typed=())
    assert target.rpartition(".")[0] in str(caught.value)


def test_a_missing_submodule_is_named():
    with pytest.raises(TargetError, match=r"lmtrain\.modl|modl"):
        signature_of("lmtrain.modl.llama.Llama", typed=())


@pytest.mark.parametrize("loaded", [False, True])
def test_a_missing_attribute_has_a_suggestion(module, loaded):
    module("own_names", "def build_model(lr: float): ...\nclass Other: ...")
    if loaded:
        importlib.import_module("own_names")
    with pytest.raises(TargetError, match=r"own_names has no 'bild_model'; did you mean 'build_model'\?"):
        signature_of("own_names.bild_model", typed=())
    assert imported("own_names") == loaded
    with pytest.raises(TargetError, match=r"own_names has no 'zzz'$"):
        signature_of("own_names.zzz", typed=())


def test_a_missing_attribute_whose_name_the_source_mentions_has_a_suggestion(module):
    module("own_mention", "def build_model(lr: float):\n    model = lr")
    with pytest.raises(TargetError, match=r"own_mention has no 'model'"):
        signature_of("own_mention.model", typed=())


@pytest.mark.parametrize("name", ["own_broken.Model", "own_broken.sub.Model"])
def test_a_syntax_error_is_reported_with_its_line(module, name):
    """The error may be in the module itself or in its package."""
    module("own_broken", "x = 1\nclass Model\n    pass", package=True)
    module("own_broken.sub", "class Model:\n    def __init__(self, lr: float): ...")
    with pytest.raises(TargetError, match=r"own_broken.*line 2"):
        signature_of(name, typed=())


@pytest.mark.parametrize("name", ["own_raises.Model", "own_raises.sub.Model"])
def test_a_module_that_fails_to_import_is_reported_with_its_error(module, name):
    module("own_raises", "raise RuntimeError('no licence')\nfrom own_raises.sub import Model", package=True)
    module("own_raises.sub", "class Model:\n    def __init__(self, lr: float): ...")
    with pytest.raises(TargetError, match=r"own_raises.*RuntimeError: no licence"):
        signature_of(name, typed=())


def test_a_missing_module_imported_by_the_target_is_named(module):
    module("own_needs", "import nowhere_to_be_found\nModel = nowhere_to_be_found.Model")
    with pytest.raises(TargetError, match=r"needs the module 'nowhere_to_be_found', which is missing"):
        signature_of("own_needs.Model", typed=())


def test_a_module_or_a_value_is_not_a_target(module):
    module("own_value", "import json\nlimit = 3")
    for name in ("json", "limit"):
        with pytest.raises(TargetError, match=rf"own_value\.{name} is not a class or a function"):
            signature_of(f"own_value.{name}", typed=())
