import pytest

from finetune.errors import RecipeError
from finetune.recipe import SMALL_MODELS, Recipe, load_recipe, parse_assignment, parse_duration, save_recipe


@pytest.fixture
def write(tmp_path):
    def write_recipe(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, "utf-8")
        return path

    return write_recipe


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120), ("0.5s", 0.5)],
)
def test_durations_are_read_in_seconds_minutes_and_hours(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "10 d", "-5m", "1h30m", "", "1.5.2s"])
def test_a_text_that_is_no_duration_is_refused(text):
    with pytest.raises(RecipeError, match=r"time_budget: expected a duration like 90s, 10m or 1\.5h"):
        load_recipe(data="x", time_budget=text)


def test_a_number_is_a_duration_in_seconds():
    assert load_recipe(data="x", time_budget=90).time_budget == 90.0


def test_data_alone_makes_a_recipe_that_leaves_everything_open():
    recipe = load_recipe(data="./imgs")
    assert (recipe.model, recipe.strategy, recipe.prefer, recipe.seed) == ("auto", "auto", "balanced", 0)
    assert (recipe.steps, recipe.image_size, recipe.training.learning_rate, recipe.refit) == (None,) * 4


def test_a_recipe_without_data_says_how_to_give_it():
    with pytest.raises(RecipeError, match="no data was given; say --data PATH"):
        load_recipe(seed=1)


def test_a_recipe_is_read_from_yaml_with_its_sections(write):
    path = write("data: ./bücher\nepochs: 3\ntraining:\n  learning_rate: 0.001\naugmentation: {horizontal_flip: no}\n")
    recipe = load_recipe(path)
    assert (recipe.data, recipe.epochs, recipe.training.learning_rate) == ("./bücher", 3.0, 0.001)
    assert recipe.augmentation.horizontal_flip is False


def test_overrides_lie_over_the_file_and_leave_the_rest(write):
    path = write("data: ./a\nseed: 1\ntraining: {weight_decay: 0.5, clip_norm: 2.0}\n")
    recipe = load_recipe(path, seed=2, training__weight_decay=0.1)
    assert (recipe.data, recipe.seed) == ("./a", 2)
    assert (recipe.training.weight_decay, recipe.training.clip_norm) == (0.1, 2.0)


def test_overrides_reach_into_sections_with_dots_too():
    recipe = load_recipe(data="x", **{"columns.label": "kind"})
    assert recipe.columns.label == "kind"


def test_an_override_into_a_key_that_is_not_a_section_is_refused():
    with pytest.raises(RecipeError, match="'data' is not a section of the recipe, so it has no key 'seed'"):
        load_recipe(data="x", data__seed=1)


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.e-5", "+2e-5"])
def test_exponents_without_a_dot_are_numbers(write, text):
    assert load_recipe(write(f"data: x\ntraining:\n  learning_rate: {text}\n")).training.learning_rate == 2e-5


def test_a_name_that_only_starts_like_an_exponent_stays_a_name():
    assert load_recipe(data="2e5x").data == "2e5x"


def test_an_unknown_key_is_refused_with_the_nearest_one(write):
    with pytest.raises(RecipeError, match=r"recipe\.yaml: unknown key 'stratgy'; did you mean 'strategy'"):
        load_recipe(write("data: x\nstratgy: full\n"))


def test_an_unknown_key_of_a_section_is_refused_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"unknown key 'training\.learning_rat'; did you mean 'learning_rate'"):
        load_recipe(data="x", training__learning_rat=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy", "fulll"),
        ("seed", -1),
        ("steps", -1),
        ("batch_size", 0),
        ("image_size", 8),
        ("time_budget", 0),
        ("limit", 0),
        ("training__learning_rate", 0),
        ("training__warmup_fraction", 1),
        ("augmentation__smallest_crop", 0),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(key, value):
    with pytest.raises(RecipeError, match=rf"recipe: {key.replace('__', '.')}: .* but {value!r} was given"):
        load_recipe(data="x", **{key: value})


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(RecipeError, match="epochs and steps are two names for one length"):
        load_recipe(data="x", steps=10, epochs=1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no recipe .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_yaml_is_refused_in_one_line(write):
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not valid YAML") as caught:
        load_recipe(write("data: [1, 2\nseed: 1\n"))
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_a_file_without_keys_is_no_recipe(write, text):
    with pytest.raises(RecipeError, match=r"holds no recipe; expected lines like 'data: \./imgs'"):
        load_recipe(write(text))


@pytest.mark.parametrize(
    ("text", "assignment"),
    [
        ("seed=3", ("seed", 3)),
        ("refit=no", ("refit", False)),
        (" training.clip_norm = 0.5", ("training.clip_norm", 0.5)),
        ("columns.label=a=b", ("columns.label", "a=b")),
    ],
)
def test_an_assignment_is_read_as_yaml(text, assignment):
    assert parse_assignment(text) == assignment


@pytest.mark.parametrize("text", ["seed", "=3", " =3"])
def test_an_assignment_without_key_or_value_is_refused(text):
    with pytest.raises(RecipeError, match="--set expects key=value"):
        parse_assignment(text)


def test_an_assignment_that_is_no_yaml_is_refused_with_its_key():
    with pytest.raises(RecipeError, match="--set seed: '\\[1' cannot be read as a value"):
        parse_assignment("seed=[1")


def test_a_saved_recipe_is_read_back_the_same(tmp_path):
    overrides = {"time_budget": "10m", "training__learning_rate": 2e-5, "columns__label": "kind", "strategy": "full"}
    recipe = load_recipe(data="./ä b", **overrides)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_saved_recipe_holds_no_empty_section_and_no_open_key(tmp_path):
    save_recipe(Recipe(data="x"), tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    assert text.splitlines() == [
        "data: x",
        "groups: auto",
        "model: auto",
        "strategy: auto",
        "prefer: balanced",
        "seed: 0",
    ]


@pytest.mark.parametrize(
    ("model", "models"),
    [
        ("auto", ("auto",)),
        ("resnet18, resnet34", ("resnet18", "resnet34")),
        (["resnet18", "resnet34"], ("resnet18", "resnet34")),
        ("auto:small", SMALL_MODELS),
    ],
)
def test_several_networks_are_a_list_or_have_commas_between_them(model, models):
    assert Recipe(data="x", model=model).models == models


@pytest.mark.parametrize("model", [[], ",", "resnet18,resnet18"])
def test_no_network_or_one_twice_is_refused(model):
    with pytest.raises(RecipeError, match="give one network, or several different ones"):
        Recipe(data="x", model=model)


def test_a_file_of_weights_is_for_one_network():
    with pytest.raises(RecipeError, match="a file holds those of one network"):
        Recipe(data="x", model="resnet18,resnet34", weights="w.pt")


def test_a_number_is_fixed_or_searched_for_but_not_both():
    with pytest.raises(RecipeError, match=r"training\.weight_decay fixes what tuning\.weight_decay searches for"):
        load_recipe(data="x", training__weight_decay=0.1, tuning__weight_decay=[0.01, 0.1])


@pytest.mark.parametrize(
    ("name", "limits", "said"),
    [
        ("learning_rate", [1e-2, 1e-4], "expected the lower end first"),
        ("learning_rate", [0, 1e-4], "greater than 0"),
        ("lowest_rate_fraction", [0.1, 2], r"2 is more than training\.lowest_rate_fraction may be"),
    ],
)
def test_an_impossible_range_is_named(name, limits, said):
    with pytest.raises(RecipeError, match=rf"tuning\.{name}.*{said}"):
        load_recipe(data="x", **{f"tuning__{name}": limits})


def test_the_ends_of_a_range_may_have_exponents():
    assert load_recipe(data="x", tuning__learning_rate=["1e-4", "1e-2"]).tuning.ranges == {
        "learning_rate": (1e-4, 1e-2)
    }


@pytest.mark.parametrize("ensemble", ["seeds", "seeds:1", "seeds:20", "snapshots:x", "folds:3", ""])
def test_an_ensemble_that_is_none_says_which_there_are(ensemble):
    with pytest.raises(RecipeError, match=r"ensemble: expected seeds:N or snapshots:N with 2 to 19 for N, folds, back"):
        load_recipe(data="x", ensemble=ensemble)


@pytest.mark.parametrize("ensemble", ["seeds:2", "snapshots:19", "folds", "backbones", "auto"])
def test_an_ensemble_may_be_asked_for(ensemble):
    assert load_recipe(data="x", ensemble=ensemble).ensemble == ensemble


def test_an_ensemble_of_backbones_has_the_small_networks_unless_others_are_named():
    assert load_recipe(data="x", ensemble="backbones").models == SMALL_MODELS
    assert load_recipe(data="x", ensemble="backbones", model="a,b").models == ("a", "b")
