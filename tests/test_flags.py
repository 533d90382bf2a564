import textwrap

import pytest
from absl import flags

from jaxad import config as configs
from jaxad import flags as command_line
from jaxad.errors import UserError

GOOD = """
    from jaxad.config import default

    def get_config(variant=""):
        config = default("reverse_distillation")
        config.backbone.weights = "random"
        config.seed = 5 if variant == "five" else 1
        return config
"""


@pytest.fixture
def file(tmp_path):
    def write(text=GOOD):
        path = tmp_path / "c.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def parse(*argv):
    parsed = command_line.parse(["main", *argv], flags.FlagValues(), "usage")
    return parsed and parsed[0]


def refused(*argv) -> str:
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_its_variant_and_overrides_are_read_in_that_order(file):
    path = file()
    assert parse(f"--config={path}").seed == 1
    assert parse(f"--config={path}:five").seed == 5
    config = parse("--config", f"{path}:five", "--config.seed=9", "--config.optim.lr=1")
    assert config.seed == 9
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)


def test_steps_of_a_method_with_one_stage_need_no_stage_name(file):
    assert parse(f"--config={file()}", "--config.train.steps=7").train.steps.distil == 7
    assert parse(f"--config={file()}", "--config.train.steps.distil=8").train.steps.distil == 8


def test_steps_of_a_method_with_two_stages_ask_which(file):
    text = """
        from jaxad.config import default
        def get_config():
            return default("toy", steps={"learn": 1, "bank": 0})
    """
    assert "--config.train.steps.bank=N, --config.train.steps.learn=N" in refused(
        f"--config={file(text)}", "--config.train.steps=7"
    )


def test_an_unknown_key_on_the_command_line_names_the_nearest(file):
    assert refused(f"--config={file()}", "--config.data.imagesize=3").endswith("the nearest is 'data.image_size'")


def test_an_unknown_key_in_a_file_names_the_nearest_and_its_line(file):
    path = file(GOOD.replace("config.seed =", "config.data.batchsize ="))
    message = refused(f"--config={path}")
    assert f"{path}:7: unknown key 'batchsize'; the nearest is 'batch_size'" == message


def test_a_missing_file_names_its_path():
    assert "'no/such.py'" in refused("--config=no/such.py")


def test_a_broken_file_names_its_line(file):
    path = file(GOOD.replace("config.seed = 5 if", "config.seed = undefined + 5 if"))
    assert refused(f"--config={path}:five").startswith(f"{path}:7: name 'undefined'")


@pytest.mark.parametrize(
    "argument, says",
    [
        ("--config.seed=x", "config.seed"),
        ("--wrkdir=3", "wrkdir"),
        ("stray", "'stray'"),
        ("--config.data.dataset=mvtec", "not one of: demo, folder"),
        ("--config.data.dataset=folder", "--config.data.root"),
        ("--config.backbone.weights=none.safetensors", "'none.safetensors' is not a file"),
        ("--config.data.crop_size=100", "short_crop"),
        ("--config.data.holdout=1.5", "[0, 1)"),
        ("--config.data.batch_size=0", "at least 1"),
        ("--config.method=patchcore", "configs/patchcore.py"),
        ("--config.method=no.such.module", "section"),
        ("--config.data.source=none.zip", "materialize"),
        ("--config.start.category=screw", "needs start.run=WORKDIR"),
    ],
)
def test_bad_values_are_one_line(file, argument, says):
    assert says in refused(f"--config={file()}", argument)


def test_no_config_says_what_to_give():
    assert "--config=FILE" in refused()


def test_help_needs_no_config(capsys):
    assert parse("--help") is None
    assert "--config.KEY=VALUE" in capsys.readouterr().out


def test_every_method_has_a_locked_default_and_its_section():
    for method in configs.METHODS:
        config = configs.default(method)
        assert config.is_locked and configs.section(config) is config[method]
        assert list(config.train.steps)


def test_a_method_outside_jaxad_brings_its_own_section():
    config = configs.default("my_package.my_method", steps={"fit": 3}, margin=0.2)
    assert config.my_method.margin == 0.2 and config.train.steps.fit == 3
    with pytest.raises(UserError, match="my_package"):
        configs.check(config)
