"""Blocks of a page that become generated Markdown."""

from generated_markdown import expand, slug


def test_a_block_becomes_what_its_generator_writes() -> None:
    generators = {"config-keys": lambda group: f"keys of {group}", "config-root": lambda: "root"}
    page = "# Title\n\n```{config-keys} model\n```\n\n```{config-root}\n```\n\n```python\nx\n```\n"
    assert expand(page, generators) == "# Title\n\nkeys of model\n\nroot\n\n```python\nx\n```\n"


def test_a_config_key_is_its_own_anchor() -> None:
    assert slug("trainer.max_steps") == "trainer.max_steps"
    assert slug("hydra.sweeper.sampler.x0") == "hydra.sweeper.sampler.x0"
    assert slug("What is a run?") == "what-is-a-run"
    assert slug("result.json") == "result.json"
