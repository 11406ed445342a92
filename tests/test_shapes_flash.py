"""The world of shapes-flash, its scorer, its tokenizers and its committed checkpoint."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.shapes_flash.shapeeval import (
    SIGMAS,
    EvalPrompt,
    evaluate,
    evaluation_prompts,
    score,
    summarize,
)
from benchmarks.shapes_flash.world import (
    BACKGROUNDS,
    CANVAS_PX,
    CATEGORIES,
    COLOURS,
    SHAPES,
    Group,
    Item,
    Scene,
    arrange,
    canonical,
    held_out,
    phrase,
    render,
    sample_scene,
)

CHECKPOINT = Path(__file__).parents[1] / "artifacts" / "shapes-flash"
PER_CATEGORY = 40
LARGEST_BYTES = 40_000_000


def draw_truth(prompt: EvalPrompt) -> NDArray[np.uint8]:
    """A true picture of a prompt."""
    return render(arrange(prompt.scene, Random(prompt.seed)), prompt.scene.background)


@pytest.fixture(scope="module")
def prompts() -> tuple[EvalPrompt, ...]:
    return evaluation_prompts(PER_CATEGORY)


@pytest.fixture(scope="module")
def truths(prompts: tuple[EvalPrompt, ...]) -> list[NDArray[np.uint8]]:
    return [draw_truth(prompt) for prompt in prompts]


# --- the world ----------------------------------------------------------------------------------


def test_same_seed_gives_the_same_text_and_pixels() -> None:
    for category in CATEGORIES:
        pairs = []
        for _ in range(2):
            rng = Random("again " + category)
            scene = sample_scene(category, rng, evaluation=False)
            pairs.append((phrase(scene, rng), render(arrange(scene, rng), scene.background)))
        assert pairs[0][0] == pairs[1][0]
        assert np.array_equal(pairs[0][1], pairs[1][1])


def test_evaluation_scenes_are_never_trained_on(prompts: tuple[EvalPrompt, ...]) -> None:
    rng = Random("disjoint")
    trained = {
        canonical(sample_scene(category, rng, evaluation=False))
        for category in CATEGORIES
        for _ in range(1500)
    }
    evaluated = {canonical(prompt.scene) for prompt in prompts}
    assert len(trained) > 500
    assert not trained & evaluated
    assert all(held_out(prompt.scene) for prompt in prompts)


def test_equal_meanings_have_one_name() -> None:
    first, second = Group("circle", 2, "red"), Group("square", 1, "blue")
    left, right = Scene((first, second), "left of"), Scene((second, first), "right of")
    assert canonical(left) == canonical(right)
    assert canonical(left) != canonical(Scene((second, first), "left of"))
    assert canonical(Scene((first, second))) == canonical(Scene((second, first)))
    assert canonical(Scene((first,))) == canonical(Scene((first,), background="white"))


def test_the_example_of_the_design_can_be_said() -> None:
    scene = Scene((Group("circle", 2, "red"), Group("square", 1, "blue")), "left of")
    texts = {phrase(scene, Random(seed)) for seed in range(300)}
    assert "two red circles left of a blue square" in texts


@pytest.mark.parametrize("category", CATEGORIES)
def test_objects_stay_apart_and_inside(category: str) -> None:
    rng = Random(category)
    for _ in range(200):
        items = arrange(sample_scene(category, rng, evaluation=False), rng)
        for index, item in enumerate(items):
            for middle in (item.x_px, item.y_px):
                assert item.half_px + 3 <= middle <= CANVAS_PX - item.half_px - 3
            for other in items[:index]:
                apart = max(abs(item.x_px - other.x_px), abs(item.y_px - other.y_px))
                assert apart - item.half_px - other.half_px >= 4


def test_palettes_are_far_apart() -> None:
    for palette in (COLOURS, BACKGROUNDS):
        entries = np.array(list(palette.values()), dtype=float)
        distances = np.sqrt(((entries[:, None] - entries[None]) ** 2).sum(-1))
        assert distances[~np.eye(len(entries), dtype=bool)].min() > 85


# --- the scorer ---------------------------------------------------------------------------------


def test_true_pictures_pass(
    prompts: tuple[EvalPrompt, ...], truths: list[NDArray[np.uint8]]
) -> None:
    passed = [score(image, p) for image, p in zip(truths, prompts, strict=True)]
    assert summarize(prompts, passed)["overall"] >= 0.98


def test_pictures_of_other_prompts_fail(
    prompts: tuple[EvalPrompt, ...], truths: list[NDArray[np.uint8]]
) -> None:
    for step in (1, 7, 40, 83):
        passed = [score(truths[(i + step) % len(truths)], p) for i, p in enumerate(prompts)]
        assert summarize(prompts, passed)["overall"] <= 0.35


def scored(scene: Scene, items: tuple[Item, ...], background: str | None = None) -> bool:
    """Score a picture of `items` against a scene."""
    return score(render(items, background), EvalPrompt("", "position", scene, 0))


def test_each_kind_of_mistake_fails() -> None:
    scene = Scene((Group("circle", 1, "red"), Group("square", 1, "blue")), "left of")
    circle, square = (Item("circle", "red", 32, 64, 12), Item("square", "blue", 96, 64, 12))
    assert scored(scene, (circle, square))
    wrong = {
        "missing": (circle,),
        "extra": (circle, square, Item("star", "yellow", 64, 100, 12)),
        "colour": (Item("circle", "purple", 32, 64, 12), square),
        "shape": (Item("star", "red", 32, 64, 12), square),
        "swapped colours": (Item("circle", "blue", 32, 64, 12), Item("square", "red", 96, 64, 12)),
        "order": (Item("circle", "red", 96, 64, 12), Item("square", "blue", 32, 64, 12)),
        "touching": (Item("circle", "red", 60, 64, 12), Item("square", "blue", 80, 64, 12)),
    }
    for mistake, items in wrong.items():
        assert not scored(scene, items), mistake
    assert not scored(scene, (circle, square), "black"), "background"


def test_smeared_shapes_and_mixed_colours_fail() -> None:
    scene = Scene((Group("square"),))
    image = render((Item("square", "blue", 64, 64, 12),), None)
    assert score(image, EvalPrompt("", "single_object", scene, 0))
    mixed = image.copy()
    mixed[64:80, 48:80][mixed[64:80, 48:80].sum(-1) < 500] = COLOURS["red"]
    assert not score(mixed, EvalPrompt("", "single_object", scene, 0))
    smeared = image.copy()
    smeared[44:52, 52:76] = COLOURS["blue"]
    assert not score(smeared, EvalPrompt("", "single_object", scene, 0))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, image.shape, dtype=np.uint8)
    assert not score(noise, EvalPrompt("", "single_object", scene, 0))


def test_evaluation_set_is_fixed_and_complete(prompts: tuple[EvalPrompt, ...]) -> None:
    assert prompts == evaluation_prompts(PER_CATEGORY)
    assert len(prompts) == PER_CATEGORY * len(CATEGORIES)
    assert len({(p.category, p.text) for p in prompts}) == len(prompts)
    assert {g.shape for p in prompts for g in p.scene.groups} == set(SHAPES)
    with pytest.raises(ValueError, match="held-out prompts"):
        evaluation_prompts(100_000)


# --- tokenizers and checkpoint ------------------------------------------------------------------

ODD_TEXTS = ("", "Ünïcode 漢字 \N{SNOWMAN} \N{GRINNING FACE}\x00\n\t", "!!! a " * 200)


def test_tokenizers_take_any_text() -> None:
    from transformers import CLIPTokenizer, T5TokenizerFast

    left = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    right = CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer_2")
    t5 = T5TokenizerFast.from_pretrained(CHECKPOINT / "tokenizer_3")
    assert left.eos_token_id == right.eos_token_id == len(left) - 1  # pooling takes the argmax
    assert (left.pad_token_id, right.pad_token_id) == (left.eos_token_id, 0)
    for text in (*ODD_TEXTS, "two red circles left of a blue square"):
        for tokenizer, length in ((left, 77), (right, 77), (t5, 32)):
            ids = tokenizer(
                text, padding="max_length", max_length=length, truncation=True
            ).input_ids
            assert len(ids) == length
            assert max(ids) < len(tokenizer)
            assert tokenizer.eos_token_id in ids
    assert t5.unk_token_id not in t5("two red circles left of a blue square").input_ids


def test_every_prompt_fits(prompts: tuple[EvalPrompt, ...]) -> None:
    from transformers import CLIPTokenizer, T5TokenizerFast

    for tokenizer in (
        CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
        T5TokenizerFast.from_pretrained(CHECKPOINT / "tokenizer_3"),
    ):
        assert max(len(ids) for ids in tokenizer([p.text for p in prompts]).input_ids) <= 20


def test_checkpoint_is_small_and_safe() -> None:
    packages = [manifest.parent for manifest in CHECKPOINT.glob("*/manifest.json")]
    files = [
        path
        for path in CHECKPOINT.rglob("*")
        if path.is_file() and not any(path.is_relative_to(package) for package in packages)
    ]
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    assert {"README.md", "LICENSE", "samples.png"} <= {path.name for path in files}
    # Whoever writes OpenVINO's and Core ML's weights calls them .bin; they hold numbers alone.
    loose = [
        path
        for path in files
        if not path.with_suffix(".xml").is_file()
        and ".mlpackage" not in {p.suffix for p in path.parents}
    ]
    assert not {path.suffix for path in loose} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def test_four_steps_have_the_students_sigmas() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(CHECKPOINT / "scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert scheduler.sigmas.tolist() == pytest.approx(SIGMAS)


@pytest.mark.parametrize(("t5", "least"), [(True, 0.7), (False, 0.6)])
def test_checkpoint_draws_what_prompts_say(t5: bool, least: float) -> None:
    from benchmarks.shapes_flash.shapeeval import diffusers_drawer

    sample = evaluation_prompts(2)
    passed = evaluate(diffusers_drawer(CHECKPOINT, t5=t5), sample)
    assert summarize(sample, passed)["overall"] >= least
