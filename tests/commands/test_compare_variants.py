"""What is compared: options to vary, files of variants, the plan and its directory, and mistakes found before any run."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpokit.commands.cli import main, parse
from grpokit.commands.compare.plan import FILE, load_plan, make_plan
from grpokit.commands.compare.variants import Variant, grid, labels_of, make_variants, read_variants
from grpokit.config.commands import CompareConfig
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from helpers.tiny import tiny_config


@pytest.fixture
def base(tmp_path):
    return tiny_config(tmp_path)


def compare(base, *words: str) -> list[str]:
    """The words of a comparison of the base, beside its model."""
    file = f"{base.output_dir}.yaml"
    with open(file, "w") as opened:
        opened.write(to_yaml(base))
    return ["compare", "--config", file, "--output_dir", f"{base.output_dir}s", *words]


# --------------------------------------------------------------------------- options


def test_several_options_make_a_grid():
    variants = grid(["loss_type=grpo,dapo", "learning_rate=1e-5,1e-6"], TrainConfig())
    assert [variant.name for variant in variants] == [
        "loss_type=grpo,learning_rate=1e-05",
        "loss_type=grpo,learning_rate=1e-06",
        "loss_type=dapo,learning_rate=1e-05",
        "loss_type=dapo,learning_rate=1e-06",
    ]
    assert variants[3].config(TrainConfig()) == TrainConfig(loss_type="dapo", learning_rate=1e-6)


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ("shuffle=true,off", [True, False]),
        ("epsilon=none,0.3", [None, 0.3]),
        ("num_iterations=1,2", [1, 2]),
        ("scale_rewards=none,batch", ["none", "batch"]),
        ("stop=,END", [(), ("END",)]),
        ("--learning-rate=1e-3", [0.001]),
    ],
)
def test_values_are_read_as_flags_are(item, values):
    name = item.split("=")[0].removeprefix("--").replace("-", "_")
    found = [variant.options[name] for variant in grid([item], TrainConfig())]
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_a_file_names_its_variants(tmp_path):
    file = tmp_path / "v.yaml"
    file.write_text("as-it-is:\nwide clip: {epsilon-high: 0.4, loss_type: dapo}\n")
    first, second = read_variants(str(file), TrainConfig())
    assert first == Variant("as-it-is", {})
    assert second == Variant("wide clip", {"epsilon_high": 0.4, "loss_type": "dapo"})
    assert second.folder == "wide_clip"
    assert labels_of({"as-it-is": {}, "wide clip": second.options})["wide clip"] == "wide clip"


def test_the_label_is_the_value_where_one_option_varies():
    one = {v.name: v.options for v in grid(["beta=0.0,0.1"], TrainConfig())}
    assert list(labels_of(one).values()) == ["0.0", "0.1"]
    two = one | {v.name: v.options for v in grid(["loss_type=dapo"], TrainConfig())}
    assert list(labels_of(two).values()) == ["beta=0.0", "beta=0.1", "loss_type=dapo"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "los_type=grpo"], "--vary los_type=grpo: no option 'los_type' of grpokit train (did you"),
        (["--vary", "loss_type"], "--vary loss_type: expected option=value,value"),
        (["--vary", "beta=0.1", "beta=0.2"], "--vary beta=0.2: beta is varied twice"),
        (["--vary", "learning_rate=1e-5,fast"], "learning_rate: expected a number, got 'fast'"),
        (["--vary", "dtype=float31"], "dtype: 'float31' is not one of"),
        (["--vary", "seed=1,2"], "seed cannot vary: all variants share the seeds; --seeds N"),
        (["--vary", "output_dir=a,b"], "output_dir cannot vary: each run gets its own directory"),
        (["--vary", "resume_from_checkpoint=auto"], "resume_from_checkpoint cannot vary"),
        (["--vary", "epsilon=0.2,0.20"], "variants epsilon=0.2 and epsilon=0.2: are the same run"),
        (["--vary", "num_generations=1,4"], "variant num_generations=1: --num_generations 1"),
        (["--vary", "loss_type=grpo,dappo"], "variant loss_type=dappo: "),
        (["--vary", "beta=0,0.1", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--vary", "beta=0,0.1", "--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--vary", "beta=0,0.1", "--alpha", "5"], "--alpha 5.0: must lie between 0 and 1"),
        (
            ["--vary", "beta=0,0.1", "--baseline", "grpo"],
            "--baseline grpo: no such variant; there are 0.0, 0.1",
        ),
        (["--vary", "beta=0,0.1", "--push_to_hub", "a/b"], "--push_to_hub a/b: leave it out"),
        (
            ["--vary", "beta=0,0.1", "--sedes", "3"],
            "--sedes: no such option of grpokit compare or grpokit train",
        ),
        (["--vary", "beta=0,0.1", "--bf16"], "(of TRL or ms-swift: --dtype bfloat16"),
        (["--variants", "none.yaml"], "--variants none.yaml: no such file"),
        ([], "--vary: is missing"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(words, said, base, capsys):
    assert main(compare(base, *words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path(f"{base.output_dir}s").exists()


def test_a_file_of_variants_that_is_none(tmp_path, base):
    file = tmp_path / "v.yaml"
    for text, said in [
        ("a: 3\n", "a: expected the options that differ"),
        ("a: {sed: 3}\n", "no option 'sed'"),
        ("- a\n", "expected `name: value` lines"),
        ("a b: {beta: 0.1}\na_b: {beta: 0.2}\n", "would have the same directory"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            make_variants((), str(file), base)


def test_options_of_training_are_for_all_variants():
    config = parse(
        ["compare", "--vary", "beta=0,1", "--model", "m", "--no_shuffle", "--jobs=2", "--stop", "a", "b"]
    )
    assert isinstance(config, CompareConfig)
    assert config.training == ("--model", "m", "--no_shuffle", "--stop", "a", "b")
    assert (config.jobs, config.vary) == (2, ("beta=0,1",))


def test_help_needs_no_torch():
    program = (
        "import sys; from grpokit.commands.cli import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules), sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "--baseline" in shown.stdout
    assert "--training" not in shown.stdout


# --------------------------------------------------------------------------- the plan


def test_runs_are_seed_by_seed_and_differ_in_their_own_options_alone(base, tmp_path):
    plan = make_plan(base, grid(["loss_type=grpo,dapo"], base), 2, tmp_path / "c")
    assert [(run.label, run.seed) for run in plan.runs()] == [
        ("grpo", 42),
        ("dapo", 42),
        ("grpo", 43),
        ("dapo", 43),
    ]
    run = plan.runs()[3]
    assert run.directory == tmp_path / "c" / "loss_type=dapo" / "seed-43"
    own = {"seed": 43, "output_dir": str(run.directory), "run_name": "loss_type=dapo, seed 43"}
    assert run.config == dataclasses.replace(base, loss_type="dapo", **own)


def test_a_plan_is_read_as_it_was_written(base, tmp_path):
    variants = grid(["stop=none,END", "epsilon=none,0.3"], base)
    plan = make_plan(base, variants, 3, tmp_path / "c")
    plan.save()
    again = load_plan(tmp_path / "c")
    assert [run.config for run in again.runs()] == [run.config for run in plan.runs()]


def test_more_seeds_and_variants_extend_a_plan_and_another_base_is_refused(base, tmp_path):
    output = tmp_path / "c"
    make_plan(base, grid(["beta=0.0,0.1"], base), 2, output).save()
    wider = make_plan(base, grid(["beta=0.1,0.2"], base), 3, output)
    assert [variant.name for variant in wider.variants] == ["beta=0.0", "beta=0.1", "beta=0.2"]
    assert wider.seeds == (42, 43, 44)
    assert make_plan(base, grid(["beta=0.0"], base), None, output).seeds == (42, 43)
    make_plan(
        dataclasses.replace(base, num_threads=2), grid(["beta=0.0"], base), 2, output
    )  # changes no result
    with pytest.raises(ValueError, match=r"another base \(learning_rate: 0.001 → 0.1\)"):
        make_plan(dataclasses.replace(base, learning_rate=0.1), grid(["beta=0.0"], base), 2, output)
    with pytest.raises(ValueError, match=r"has a variant beta=0\.1 with other options"):
        make_plan(base, [Variant("beta=0.1", {"beta": 0.5})], 2, output)


def test_a_directory_with_something_else_is_left_alone(base, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"is not empty and holds no comparison \\({FILE}\\)"):
        make_plan(base, grid(["beta=0.0,0.1"], base), 2, tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / FILE).write_text(yaml.safe_dump({"seeds": 3}))
    with pytest.raises(ValueError, match="expected seeds, variants and base"):
        load_plan(tmp_path / "d")
