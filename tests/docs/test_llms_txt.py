"""The site offers its pages as Markdown, for programs that read them."""

from llms_txt import as_markdown, first_sentence, in_reading_order, overview

PAGE = """\
# lmtrain

Trains models.

::::{grid} 1 2
:gutter: 3

:::{grid-item-card} Start
:link: start/index
:link-type: doc

Install it.
:::
::::

```{toctree}
:hidden:

start/index
```
"""


def test_a_page_is_plain_markdown() -> None:
    assert as_markdown(PAGE) == "# lmtrain\n\nTrains models.\n\n- [Start](start/index.md): Install it.\n\n"


def test_generated_text_is_in_place() -> None:
    text = as_markdown("```{config-keys} optimizer\n```\n\n```{python-object} lmtrain.scheduler.constant\n```\n")
    assert "### `optimizer.lr`" in text
    assert "`lmtrain.scheduler.constant(step, *, lr, warmup_steps)`" in text


def test_the_overview_has_sections_and_the_first_sentence_of_each_page() -> None:
    children = {"index": ["start/index", "reference/index"], "start/index": ["start/1-install"]}
    pages = list(in_reading_order(children, "index"))
    assert pages == ["index", "start/index", "start/1-install", "reference/index"]
    titles = dict(zip(pages, ["lmtrain", "Start", "Install", "Reference"], strict=True))
    text = overview(pages, titles, {page: f"About {titles[page]}. And more." for page in pages})
    assert text.startswith("# lmtrain\n\n> About lmtrain. And more.\n")
    assert (
        "\n## Start\n\n- [Start](start/index.md): About Start.\n- [Install](start/1-install.md): About Install.\n"
        in text
    )


def test_a_sentence_ends_at_its_full_stop() -> None:
    assert first_sentence("Rates of 0.5 work. Others do not.") == "Rates of 0.5 work."
    assert first_sentence("Eight runs:") == "Eight runs"
