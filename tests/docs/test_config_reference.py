"""Every config key is in the reference, with its values, its default and what it means."""

import re

import pytest
from config_files import CONF, choices_of, read_yaml
from config_reference import (
    argument_docs,
    config_choices,
    config_keys,
    experiment_table,
    hydra_keys,
    root_keys,
    sentence,
)
from generated_markdown import expand
from omegaconf import OmegaConf
from support.documentation import DOCS

from lmtrain.config.compose import compose
from lmtrain.config.keys import HYDRA_KEYS, key_paths
from lmtrain.config.shipped import shipped

GROUPS = sorted(str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml") if path.parent != CONF)
PAGES = sorted((DOCS / "reference" / "config").glob("*.md"))


def keys_on(text: str) -> set[str]:
    return set(re.findall(r"^### `([\w.]+)`$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def reference() -> str:
    return "\n".join(expand(page.read_text(encoding="utf-8")) for page in PAGES)


def test_every_key_of_every_file_has_a_section(reference: str) -> None:
    in_files = {key.path for group in GROUPS for choice in choices_of(group) for key in choice.keys}
    in_files |= {key.path for key in read_yaml((CONF / "config.yaml").read_text(encoding="utf-8"))[0]}
    handled_by_commands = {"allow_changes", "trust"}
    assert keys_on(reference) == in_files | handled_by_commands


def test_a_composed_config_has_no_key_without_a_section(reference: str) -> None:
    composed = OmegaConf.to_container(compose(["data=text", "logger=[wandb,trackio]"]))
    leaves = {path for path in key_paths(composed) if path.rpartition(".")[2] not in HYDRA_KEYS}
    inner = {path.rpartition(".")[0] for path in leaves} | {"logger.wandb", "logger.trackio"}
    assert leaves - inner <= keys_on(reference)


def test_every_choice_and_experiment_has_a_row(reference: str) -> None:
    for group in GROUPS:
        for choice in choices_of(group):
            assert f"| `{group}={choice.name}` |" in reference
    for path in shipped("experiments").glob("*.yaml"):
        assert f"| `experiments={path.stem}` |" in experiment_table()


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_says_what_it_means_and_its_default(group: str) -> None:
    for section in re.split(r"^### ", config_keys(group), flags=re.MULTILINE)[1:]:
        assert "- Default: " in section, section
        meaning = section.split("\n\n", 1)[1]
        assert not meaning.startswith(("- Values", "- Default", "- Only")), section
    assert "| choice | what it is |" in config_choices(group)


def test_values_come_from_the_signature_and_the_default_from_the_file() -> None:
    steps = section_of(config_keys("trainer"), "trainer.max_steps")
    assert "- Values: whole number at least 1" in steps
    assert "- Default: `5000`" in steps
    layers = section_of(config_keys("model"), "model.n_layer")
    assert "`4` with `decoder` and `llama_1m`" in layers
    assert "- Only with `model=gpt2`" in section_of(config_keys("model"), "model.gelu")
    assert "- Values: whole number at least 1 or `null`" in section_of(config_keys("model"), "model.vocab_size")
    assert "2^63" in section_of(root_keys(), "seed")
    assert "- Default: `false`" in section_of(hydra_keys(), "hydra.job.chdir")


def section_of(text: str, key: str) -> str:
    return next(part for part in re.split(r"^### ", text, flags=re.MULTILINE) if part.startswith(f"`{key}`"))


def test_a_comment_becomes_a_sentence_of_markdown() -> None:
    assert sentence("null = 4 * d_model") == r"null = 4 \* d_model."
    assert sentence("layers; see `a*b`") == "Layers; see `a*b`."
    assert sentence("") == ""


def test_the_arguments_of_a_docstring_go_to_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def target(size: int, rate: float) -> None:
        """Do it.

        Args:
            size: how large,
                in layers
            rate (float): how fast

        Raises:
            ValueError: never
        """

    monkeypatch.setattr("config_reference.locate", lambda path: target)
    assert argument_docs("lmtrain.target") == {"size": "how large, in layers", "rate": "how fast"}
