"""Every shipped recipe is read; every mistake gets one line that says what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.checkpoint.lora import Lora
from exporter.errors import InputError
from exporter.package.manifest import Guidance
from exporter.recipe.recipe import RecipeWarning, read_recipe
from tests.conftest import ROOT

GOOD = """
[model]
checkpoint = "somewhere"
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = 128
height_px = 64
[weights]
scheme = "int4"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda f: f.stem)
def test_shipped_recipes(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.name == file.stem
    assert recipe.cut.steps == (6 if file.stem == "sd3.5-swd-6" else 4)
    assert recipe.scheme("int4").format_of("denoiser", "x.weight", "linear").group_size == 64


def test_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD))
    assert (recipe.mode, recipe.layouts) == ("euler", ("native",))
    assert recipe.backends == ("coreml", "onnx", "openvino")
    assert recipe.cut.t5 and recipe.cut.t5_tokens == 77 and recipe.cut.image_to_image
    assert all(c.schemes == ("int4",) for c in recipe.choices)
    assert recipe.backend("coreml").choices == {"target": "oldest"}
    assert len(recipe.calibration.prompts) == 32 and recipe.calibration.methods == ()


def test_a_backend_has_schemes_and_options_of_its_own(tmp_path: Path) -> None:
    text = GOOD + '[coreml]\nscheme = ["pal4", "int8"]\ntarget = "iOS17"\n'
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.backend("coreml").schemes == ("pal4", "int8")
    assert recipe.backend("coreml").choices == {"target": "iOS17"}
    assert recipe.backend("onnx").schemes == ("int4",)
    unlisted = read_recipe(written(tmp_path, text + '[build]\nbackends = ["onnx"]'))
    assert unlisted.backend("coreml") == recipe.backend("coreml")
    plain = read_recipe(written(tmp_path, GOOD))
    assert plain.digest("onnx") == recipe.digest("onnx")
    assert plain.digest("coreml") != recipe.digest("coreml")


def test_calibration_prompts_are_a_list_or_a_file(tmp_path: Path) -> None:
    listed = read_recipe(written(tmp_path, GOOD + '[calibration]\nprompts = ["a", "b"]'))
    assert listed.calibration.prompts == ("a", "b")
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\n\n  an owl \n")
    text = GOOD + f'[calibration]\nprompts = "{file}"\nseed = 5'
    read = read_recipe(written(tmp_path, text)).calibration
    assert (read.prompts, read.seed) == (("a fox", "an owl"), 5)
    file.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt; write one per line"):
        read_recipe(written(tmp_path, text))
    file.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_recipe(written(tmp_path, text))


def test_the_digest_tells_what_decides_the_bytes(tmp_path: Path) -> None:
    one = read_recipe(written(tmp_path, GOOD))
    moved = read_recipe(written(tmp_path, GOOD.replace("somewhere", "elsewhere")))
    other = read_recipe(written(tmp_path, GOOD.replace("0.5", "0.6")))
    assert one.digest("onnx") == moved.digest("onnx") != other.digest("onnx")


def test_an_override_in_groups(tmp_path: Path) -> None:
    text = GOOD + '[[weights.override]]\nweight = "a.*"\nformat = "int2"\n'
    for more, expected in (
        ("", "int2-g64"),
        ("group_size = 16\n", "int2-g16"),
        ("symmetric = false\n", "int2-g64-asym"),
    ):
        scheme = read_recipe(written(tmp_path, text + more)).scheme("int8")
        assert str(scheme.format_of("denoiser", "a.weight", "linear")) == expected
        for role in ("conv", "embedding"):
            assert str(scheme.format_of("denoiser", "a.weight", role)) == "int8"


def test_overrides(tmp_path: Path) -> None:
    text = GOOD + (
        "group_size = 32\nsymmetric = false\n"
        '[[weights.override]]\ngraph = "denoiser"\nweight = "transformer_blocks.0.*"\n'
        'format = "int8"\n'
    )
    scheme = read_recipe(written(tmp_path, text)).scheme("int4")
    assert str(scheme.format_of("denoiser", "transformer_blocks.0.x.weight", "linear")) == "int8"
    assert str(scheme.format_of("denoiser", "transformer_blocks.1.x.weight", "linear")) == (
        "int4-g32-asym"
    )
    assert str(scheme.format_of("denoiser", "transformer_blocks.0.x.bias", "vector")) == "fp32"


def test_guidance_is_diffusers(tmp_path: Path) -> None:
    """On above 1; off at 1 and below, which is said where it is not plain."""

    def guidance(lines: str) -> Guidance | None:
        text = GOOD.replace("[schedule]", f"[schedule]\n{lines}")
        return read_recipe(written(tmp_path, text)).guidance

    assert guidance("") is guidance("guidance = 1.0") is guidance("guidance = 1") is None
    assert guidance("guidance = 7") == Guidance(7.0, None)
    assert guidance('guidance = 4.5\nnegative_prompt = ""') == Guidance(4.5, "")
    for low in ("0", "0.5", "-2"):
        with pytest.warns(RecipeWarning, match=rf"guidance = {low}: 1 and below is none"):
            assert guidance(f"guidance = {low}") is None


# Of ``GOOD``, before there was guidance.
OF_4_0 = "a2215c9064fb22b799495ea9c4dd28e19eb46402e88c93069568223a2cf82dff"


def test_guidance_decides_the_bytes_where_there_is_some(tmp_path: Path) -> None:
    """A recipe without it has the digest that it had before there was any."""
    plain, known = read_recipe(written(tmp_path, GOOD)), Guidance(4.5, None)
    others = (known, Guidance(5.0, None), Guidance(4.5, ""), Guidance(4.5, "x"))
    digests = [plain.with_guidance(one).digest("onnx") for one in others]
    assert len({plain.digest("onnx"), *digests}) == 5
    assert plain.with_guidance(known).with_guidance(None) == plain
    assert plain.digest("onnx") == OF_4_0


MISTAKES = {
    "unknown section": (GOOD + "[speed]\nfast = true", "unknown section 'speed'; known: build"),
    "unknown key": (
        GOOD.replace("width_px", "width"),
        r"unknown key in \[image\] 'width'; known: decoder, encoder, height_px",
    ),
    "missing key": (GOOD.replace("width_px = 128", ""), r"\[image\] width_px is missing"),
    "unknown scheme": (
        GOOD.replace("int4", "int5"),
        "unknown scheme 'int5'; known: fp16, fp32, int4, int4-a8, int8, int8-w8a8, pal4",
    ),
    "group size": (GOOD + "group_size = 48", "unknown group size '48'; known: 128, 16, 32, 64"),
    "unknown backend": (GOOD + '[build]\nbackends = ["tflite"]', "unknown backend 'tflite'; known"),
    "unknown layout": (
        GOOD + '[build]\nlayout = "comfy"',
        "unknown layout 'comfy'; known: .*diffusers, .*native",
    ),
    "unknown mode": (
        GOOD.replace("[schedule]", '[schedule]\nmode = "heun"'),
        "mode: unknown value 'heun'; known: euler, renoise",
    ),
    "rising sigmas": (GOOD.replace("0.5, 0.0", "1.5, 0.0"), "must fall from at most 1.0 to 0.0"),
    "sigmas without end": (GOOD.replace(", 0.0]", "]"), "must fall from at most 1.0 to 0.0"),
    "steps instead of sigmas": (
        GOOD.replace("sigmas = [1.0, 0.5, 0.0]", "steps = 4"),
        r"unknown key in \[schedule\] 'steps'; known: guidance, mode, negative_prompt, sigmas",
    ),
    "guidance is no number": (
        GOOD.replace("[schedule]", '[schedule]\nguidance = "4.5"'),
        r"\[schedule\] guidance = '4.5': must be a number",
    ),
    "guidance is true": (
        GOOD.replace("[schedule]", "[schedule]\nguidance = true"),
        r"\[schedule\] guidance = True: must be a number",
    ),
    "too much guidance": (
        GOOD.replace("[schedule]", "[schedule]\nguidance = 101"),
        r"\[schedule\] guidance = 101: must be at most 100",
    ),
    "a negative prompt that nothing uses": (
        GOOD.replace("[schedule]", '[schedule]\nnegative_prompt = ""'),
        r"\[schedule\] negative_prompt: is used by guidance above 1 alone, such as guidance = 4.5",
    ),
    "a negative prompt with guidance of 1": (
        GOOD.replace("[schedule]", '[schedule]\nguidance = 1\nnegative_prompt = "x"'),
        "negative_prompt: is used by guidance above 1 alone.* and guidance is 1$",
    ),
    "a negative prompt that is no text": (
        GOOD.replace("[schedule]", "[schedule]\nguidance = 4\nnegative_prompt = 3"),
        r"\[schedule\] negative_prompt = 3: must be a string",
    ),
    "a negative prompt without end": (
        GOOD.replace("[schedule]", f'[schedule]\nguidance = 4\nnegative_prompt = "{"x" * 100001}"'),
        r"a \[schedule\] negative_prompt of 100001 characters: at most 100000",
    ),
    "wrong type": (GOOD.replace("128", '"128"'), "width_px = '128': must be a whole number"),
    "too many tokens": (GOOD + "[text]\nt5_tokens = 1000", "must be from 2 to 512"),
    "no prompt": (GOOD + "[calibration]\nprompts = []", "at least one string"),
    "override format": (
        GOOD + '[[weights.override]]\nformat = "int3"',
        "unknown format 'int3'; known: fp16, fp32, int2, int4, int8, pal4, pal6, w4a16, w8a16, "
        "w8a8",
    ),
    "override graph": (
        GOOD + '[[weights.override]]\ngraph = "unet"\nformat = "int8"',
        "unknown graph 'unet'; known: clip_g, clip_l, conditioner",
    ),
    "override group": (
        GOOD + '[[weights.override]]\nformat = "int8"\ngroup_size = 64',
        "group_size and symmetric apply to int4 and w4a16 and int2, not to int8",
    ),
    "override rounds activations": (
        GOOD + '[[weights.override]]\nformat = "w8a8"',
        "w8a8 applies to graph: denoiser or vae_decoder",
    ),
    "unknown target": (GOOD + '[coreml]\ntarget = "iOS9"', "unknown value 'iOS9'; known: iOS17"),
    "option of another backend": (
        GOOD + '[openvino]\ntarget = "iOS17"',
        r"unknown key in \[openvino\] 'target'; known: scheme",
    ),
    "not TOML": ("[model", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "recipe.toml"))
    assert "\n" not in str(caught.value)


def test_loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the recipe; the weight decides the bytes, and not where the file lies."""
    monkeypatch.setenv("HOME", "/home/user")
    tables = '[[lora]]\nfile = "a.safetensors"\n[[lora]]\nfile = "~/b"\nweight = -1\n'
    recipe = read_recipe(written(tmp_path, GOOD + tables))
    assert recipe.loras == (Lora(tmp_path / "a.safetensors"), Lora(Path("/home/user/b"), -1.0))
    moved = read_recipe(written(tmp_path, GOOD + tables.replace("~/b", "c")))
    assert moved.digest("onnx") == recipe.digest("onnx")
    weaker = read_recipe(written(tmp_path, GOOD + tables.replace("-1", "-0.5")))
    assert weaker.digest("onnx") != recipe.digest("onnx")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[lora]\nfile = "a"', "[[lora]] must be a table, in two pairs of brackets, with a file"),
        ("[[lora]]", "[[lora]] file: the name of a .safetensors file or a folder is expected"),
        ('[[lora]]\nfile = ""', "[[lora]] file: the name of a .safetensors file or a folder"),
        ('[[lora]]\nfile = "a"\nscale = 1', "unknown key in [[lora]] 'scale'; known: file, weight"),
        ('[[lora]]\nfile = "a"\nweight = "1"', "[[lora]] weight = '1': must be a number"),
        ('[[lora]]\nfile = "a"\nweight = true', "[[lora]] weight = True: must be a number"),
        ('[[lora]]\nfile = "a"\nweight = 0', "[[lora]] weight = 0: a would change nothing; leave"),
        ('[[lora]]\nfile = "a"\nweight = nan', "nan is not a number"),
    ],
)
def test_mistakes_in_loras(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(InputError) as told:
        read_recipe(written(tmp_path, GOOD + table))
    assert message in str(told.value)


def test_no_such_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such recipe; recipes here: recipes/sd3.5-flash.toml"):
        read_recipe(tmp_path / "none.toml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such recipe; make one of a checkpoint: fourstep rec"):
        read_recipe(tmp_path / "none.toml")


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, home = tmp_path / "recipes", tmp_path / "home"
    for place in (folder / "weights", home / "weights"):
        place.mkdir(parents=True)
    (folder / "a.plan.toml").write_text("[plan]\n")
    (folder / "some.txt").write_text("a red star\n")
    monkeypatch.chdir(home)
    text = GOOD.replace('"somewhere"', '"weights"').replace('"int4"', '["int4", "a.plan.toml"]')
    recipe = read_recipe(written(folder, text + '[calibration]\nprompts = "some.txt"\n'))
    assert recipe.checkpoint == str(folder / "weights")
    assert recipe.backend("onnx").schemes == ("int4", str(folder / "a.plan.toml"))
    assert recipe.calibration.prompts == ("a red star",)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    found = read_recipe(written(folder, text.replace('"weights"', '"~/weights"')))
    assert found.checkpoint == str(home / "weights")


def test_a_path_from_the_working_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("recipes", "art/weights"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"relative to its folder: '\.\./art/weights' would be"):
        read_recipe(written(Path("recipes"), GOOD.replace("somewhere", "art/weights")))


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    text = GOOD.replace('"somewhere"', '"someone/some-model"\nrevision = "v2"')
    recipe = read_recipe(written(tmp_path, text))
    assert (recipe.checkpoint, recipe.revision) == ("someone/some-model", "v2")
    assert read_recipe(written(tmp_path, GOOD)).digest("onnx") == recipe.digest("onnx")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"somewhere"', '"C:\\models"', "write a path of Windows in single quotes"),
        ("width_px = 128", "width_px = 1" + "0" * 30, "a number of 100 bits"),
        ("0.5", "nan", "nan is not a number"),
        ("[1.0, 0.5, 0.0]", "[" * 5000, "nested more than 64 deep"),
        ("[1.0, 0.5, 0.0]", "[" * 70 + "]" * 70, "nested more than 64 deep"),
        ('"int4"', '"int4"\ngroup_size = [64]', "unknown group size"),
        ('"int4"', '"int4"\n[[weights.override]]\nformat = []', "unknown format"),
    ],
)
def test_hostile_toml(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_recipe(written(tmp_path, GOOD.replace(old, new)))
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.toml'}: ")
