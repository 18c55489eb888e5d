"""The keys and comments that the reference takes from YAML files."""

from config_files import Key, choices_of, first_comment, read_yaml

TEXT = """\
# A model.
# @package _global_
# It has two lines.
_target_: mine.Model
size: 4          # layers
# A line above.
rate: "1 # 2"    # a text
mode: [a, b]     # one of them; this
                 # goes on
plain: 1
inner:
  _target_: mine.Part
  width: 3       # of the part
"""


def test_each_key_has_its_value_and_the_comment_on_it() -> None:
    keys, targets = read_yaml(TEXT, "model")
    assert keys == [
        Key("model.size", "4", "layers"),
        Key("model.rate", '"1 # 2"', "A line above. a text"),
        Key("model.mode", "[a, b]", "one of them; this goes on"),
        Key("model.plain", "1", ""),
        Key("model.inner.width", "3", "of the part"),
    ]
    assert targets == {"model": "mine.Model", "model.inner": "mine.Part"}


def test_the_comment_at_the_top_of_a_file_is_about_the_file() -> None:
    assert first_comment(TEXT) == "A model. It has two lines."
    keys, _ = read_yaml("# About the file.\nfirst: 1\n")
    assert keys == [Key("first", "1", "")]


def test_a_choice_has_the_keys_of_the_files_that_it_builds_on() -> None:
    choices = {choice.name: choice for choice in choices_of("data")}
    assert {"data.path", "data.batch_size", "prepare.workers"} <= {key.path for key in choices["text"].keys}
    (path,) = (key for key in choices["text"].keys if key.path == "data.path")
    assert path.value.endswith("/text")
    assert choices["text"].targets["data"] == choices["tokens"].targets["data"]
