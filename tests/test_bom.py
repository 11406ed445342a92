"""What a package is made of: an ML-BOM of CycloneDX, licences by SPDX, and what they oblige to."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.bom.check import SBOM, disagreements
from exporter.bom.evidence import evidence_in
from exporter.bom.licence import STABILITY, named_by, named_by_card, parse, together
from exporter.bom.write import bill_of, check_schema
from exporter.build.licence import LicenceWarning, licence_of
from exporter.bundle.target import Target
from exporter.bundle.write import write_bundle
from exporter.checkpoint.open import open_checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import Manifest, to_json
from exporter.package.read import read_manifest
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import verify
from tests.conftest import AGREEMENT, ROOT, seal
from tests.test_bundle import TARGETS, fitting
from tests.test_cli import fourstep

OLD = ROOT / "tests" / "packages" / "4.0" / "onnx-int8"
LIBRARY_SENTENCE = (
    "This Stability AI Model is licensed under the Stability AI Community License, Copyright © "
    "Stability AI Ltd. All Rights Reserved"
)


def bill(package: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((package / SBOM).read_text("utf-8"))
    return raw


def components(raw: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for part in raw.get("components", []):
        yield part
        yield from components(part)


def said(raw: Mapping[str, Any]) -> dict[str, str]:
    """The properties of the package itself."""
    properties = raw["metadata"]["component"]["properties"]
    return {p["name"].removeprefix("fourstep:"): p["value"] for p in properties}


def test_it_is_valid_and_the_library_reads_it_back(tiny_package: Path, stability: Path) -> None:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import ComponentType

    for package in (tiny_package, stability):
        text = (package / SBOM).read_text("utf-8")
        check_schema(text)
        found: Any = Bom.from_json(json.loads(text))  # type: ignore[attr-defined]
        assert found.metadata.component.type is ComponentType.MACHINE_LEARNING_MODEL
        assert {c.name for c in found.components} >= {"recipe.json", "graph denoiser"}
    with pytest.raises(InputError, match=r"sbom\.cdx\.json: not as the schema of CycloneDX 1\.7"):
        check_schema(text.replace('"task"', '"tusk"'))


def test_digests_are_the_packages(tiny_package: Path) -> None:
    """Of every file but the bill itself and what holds its digest."""
    listed = {
        part["name"]: part["hashes"][0]["content"]
        for part in components(bill(tiny_package))
        if part["type"] == "file"
    }
    files = {
        file.relative_to(tiny_package).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in tiny_package.rglob("*")
        if file.is_file()
    }
    assert files.keys() - listed.keys() == {SBOM, "manifest.json", "manifest.sha256"}
    assert listed.items() <= files.items()


def test_it_says_what_the_package_is_made_of(stability: Path) -> None:
    raw, manifest = bill(stability), read_manifest(stability)
    facts = said(raw)
    assert (facts["quantization:scheme"], facts["quantization:methods"]) == ("int8", "to nearest")
    assert facts["size_px"] == "64x48" and facts["steps"] == str(manifest.schedule.steps)
    assert "payload 1a2b3c4d" in facts["mark"] and facts["mark:payload"] == "1a2b3c4d"
    assert facts["filter"] == "none" and facts["attribution"] == "Powered by Stability AI"
    by_ref = {part["bom-ref"]: part for part in components(raw)}
    checkpoint = by_ref["checkpoint"]
    assert checkpoint["hashes"][0]["content"] == manifest.origin.checkpoint_sha256
    assert checkpoint["licenses"] == [{"expression": STABILITY}]
    assert raw["metadata"]["component"]["licenses"] == [{"expression": STABILITY}]
    assert "calibration-prompts" not in by_ref  # nothing was measured
    tools = {t["name"]: t["version"] for t in raw["metadata"]["tools"]["components"]}
    assert tools == manifest.origin.tools
    assert tools["cyclonedx-python-lib"] == "11.12.0" and "onnx" in tools and "torch" in tools
    card = raw["metadata"]["component"]["modelCard"]
    (metric,) = card["quantitativeAnalysis"]["performanceMetrics"]
    assert 20 < float(metric["value"]) < 100 and "a red circle" in metric["slice"]
    formats = [
        p["value"] for p in by_ref["graph-denoiser"]["properties"] if p["name"] == "fourstep:format"
    ]
    assert any(text.startswith("int8, 8 bits: ") for text in formats)


def test_prompts_that_decided_codes_are_named(stability: Path) -> None:
    manifest = read_manifest(stability)
    origin = replace(manifest.origin, statistics_sha256="ab" * 32, methods=("feedback",))
    measured = replace(manifest, origin=origin)
    text = bill_of(measured, evidence_in(stability, measured))
    check_schema(text)
    raw = json.loads(text)
    assert said(raw)["quantization:methods"] == "feedback"
    (data,) = next(p for p in raw["components"] if p["bom-ref"] == "calibration-prompts")["data"]
    assert data["contents"]["attachment"]["content"] == "a red circle"
    parameters = raw["metadata"]["component"]["modelCard"]["modelParameters"]
    assert parameters["datasets"] == [{"ref": "calibration-prompts"}]


def test_a_lora_is_named_by_its_digest(tiny_package: Path) -> None:
    from exporter.package.manifest import LoraEntry

    manifest = read_manifest(tiny_package)
    origin = replace(manifest.origin, loras=(LoraEntry("ab" * 32, 0.5), LoraEntry("cd" * 32, 1.0)))
    text = bill_of(replace(manifest, origin=origin, bom=""), evidence_in(tiny_package, manifest))
    check_schema(text)
    parts = {part["bom-ref"]: part for part in components(json.loads(text))}
    assert parts["lora-1"]["hashes"][0]["content"] == "ab" * 32
    assert {"name": "fourstep:weight", "value": "0.5"} in parts["lora-1"]["properties"]
    assert parts["lora-2"]["hashes"][0]["content"] == "cd" * 32


def test_it_has_no_time_and_its_number_is_the_packages(tiny_package: Path) -> None:
    raw, manifest = bill(tiny_package), read_manifest(tiny_package)
    assert "timestamp" not in raw["metadata"]
    evidence = evidence_in(tiny_package, manifest)
    assert bill_of(manifest, evidence) == (tiny_package / SBOM).read_text("utf-8")
    other = replace(manifest, name="another")
    assert json.loads(bill_of(other, evidence))["serialNumber"] != raw["serialNumber"]


def test_the_command_writes_the_same_and_for_older_packages(
    tiny_package: Path, tmp_path: Path
) -> None:
    for package in (tiny_package, OLD):
        out = tmp_path / f"{package.name}.json"
        done = fourstep("bom", str(package), "-o", str(out), "--json")
        assert done.exit_code == 0, done.stderr
        row = json.loads(done.stdout)
        assert row["spec_version"] == "1.7" and row["serial_number"].startswith("urn:uuid:")
        assert disagreements(out.read_bytes(), read_manifest(package)) == []
    assert (tmp_path / f"{tiny_package.name}.json").read_bytes() == (
        tiny_package / SBOM
    ).read_bytes()
    again = fourstep("bom", str(OLD), "-o", str(out))
    assert again.exit_code == 2 and "is there already" in again.stderr
    inside = fourstep("bom", str(OLD), "-o", str(OLD / "sbom.json"))
    assert inside.exit_code == 2 and "lies in the package" in inside.stderr


def changed(package: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a package whose bill was changed, and whose digests were made right."""
    copy = Path(shutil.copytree(package, place / "changed"))
    raw = bill(copy)
    change(raw)
    content = json.dumps(raw).encode()
    (copy / SBOM).write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = [f for f in manifest["files"] if f["path"] == SBOM]
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(copy, manifest)
    return copy


def licence_entry(raw: Mapping[str, Any]) -> dict[str, Any]:
    return next(part for part in raw["components"] if part["name"] == "LICENSE")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda raw: licence_entry(raw)["hashes"][0].update(content="0" * 64),
            "says another digest of LICENSE than the manifest",
        ),
        (lambda raw: raw["components"].remove(licence_entry(raw)), "does not list LICENSE"),
        (
            lambda raw: raw["components"].append(licence_entry(raw) | {"name": "more"}),
            "lists more, which the package has not",
        ),
        (lambda raw: raw["components"].append({"type": "file"}), "not a CycloneDX bill"),
        (lambda raw: raw.clear(), "not a CycloneDX bill"),
    ],
)
def test_verify_compares_it_with_the_package(
    change: Callable[[dict[str, Any]], None], said: str, tiny_package: Path, tmp_path: Path
) -> None:
    copy = changed(tiny_package, tmp_path, change)
    manifest = read_manifest(copy)
    try:
        found = disagreements((copy / SBOM).read_bytes(), manifest)
    except CheckFailed as error:
        found = [str(error)]
    assert len(found) == 1 and said in found[0]


def test_a_changed_bill_fails_verify(tiny_package: Path, tmp_path: Path) -> None:
    copy = changed(
        tiny_package, tmp_path, lambda raw: licence_entry(raw)["hashes"][0].update(content="0" * 64)
    )
    assert verify(open_package(copy)).failures == (
        f"{SBOM}: says another digest of LICENSE than the manifest",
    )


def test_golden_files_may_be_left_out(tiny_package: Path) -> None:
    """As a bundle without them does."""
    manifest = read_manifest(tiny_package)
    less = tuple(file for file in manifest.files if not file.path.startswith("golden/"))
    assert len(less) < len(manifest.files)
    content = (tiny_package / SBOM).read_bytes()
    assert disagreements(content, replace(manifest, files=less)) == []
    assert disagreements(content, replace(manifest, files=less[1:])) != []


def test_inspect_and_build_say_it(stability: Path, tiny_package: Path) -> None:
    shown = fourstep("inspect", str(stability)).stdout
    assert f"licence of the weights: {STABILITY}; to be shown: 'Powered by Stability AI'" in shown
    assert "bill of materials in sbom.cdx.json, recipe in recipe.json, notice in NOTICE" in shown
    assert "licence of the weights: not known" in fourstep("inspect", str(tiny_package)).stdout
    assert json.loads(fourstep("inspect", str(stability), "--json").stdout)["bom"] == SBOM


def test_what_stability_asks_for_travels(stability: Path) -> None:
    origin = read_manifest(stability).origin
    assert (origin.licence, origin.licence_id, origin.notice) == ("LICENSE.md", STABILITY, "NOTICE")
    assert origin.attribution == "Powered by Stability AI"
    notice = (stability / "NOTICE").read_text("utf-8")
    assert LIBRARY_SENTENCE in notice and "Powered by Stability AI" in notice
    assert "changed" in notice and "int8" in notice
    assert (stability / "LICENSE.md").read_text() == AGREEMENT


SEEN = {  # the file of a bundle that people see
    "android": "app/src/main/res/values/strings.xml",
    "swift": "Sample/DrawingView.swift",
    "web": "index.html",
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_it_travels_with_every_bundle(target: Target, stability: Path, tmp_path: Path) -> None:
    """Its NOTICE and its licence, the README, and what people see; without golden files too."""
    package = open_package(stability)
    write_bundle(package, fitting(target, package), tmp_path / "out", golden=False)
    notice = (tmp_path / "out" / "NOTICE").read_text("utf-8")
    assert notice == (stability / "NOTICE").read_text("utf-8") and LIBRARY_SENTENCE in notice
    readme = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "**Powered by Stability AI**" in readme and STABILITY in readme
    copied = tmp_path / "out" / target.place
    assert {"NOTICE", "LICENSE.md", SBOM, "recipe.json"} <= {f.name for f in copied.iterdir()}
    assert target.name in (*SEEN, "cpp")
    for name in [SEEN[target.name]] if target.name in SEEN else []:
        assert "Powered by Stability AI" in (tmp_path / "out" / name).read_text("utf-8")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_bundles_of_others_say_nothing_of_it(
    target: Target, tiny_package: Path, tmp_path: Path
) -> None:
    package = open_package(tiny_package)
    write_bundle(package, fitting(target, package), tmp_path / "out", golden=False)
    assert not (tmp_path / "out" / "NOTICE").exists()
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"Powered by" not in file.read_bytes(), file


def test_nothing_is_claimed_of_others(tiny_package: Path) -> None:
    origin = read_manifest(tiny_package).origin
    assert (origin.licence_id, origin.attribution, origin.notice) == ("", "", "")
    assert not (tiny_package / "NOTICE").exists()
    assert "Stability AI" not in (tiny_package / SBOM).read_text()


def test_the_model_in_the_box_is_ours() -> None:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    found = licence_of(recipe, open_checkpoint(recipe.checkpoint))
    assert (found.id, found.owed) == ("Apache-2.0", ())


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        (AGREEMENT, STABILITY),
        ("**Stability AI Community License Agreement**\n", STABILITY),
        ("STABILITY AI NON-COMMERCIAL RESEARCH COMMUNITY LICENSE AGREEMENT\n", ""),
        ("Apache License\n   Version 2.0, January 2004\n", "Apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person\n"
         "obtaining a copy", "MIT"),
        ("in the public domain (CC0 1.0, https://...)", "CC0-1.0"),
        ("All rights reserved.", ""),
        ("x" * 3000 + AGREEMENT, ""),
    ],
)  # fmt: skip
def test_licences_are_known_by_how_they_begin(text: str, spdx: str) -> None:
    assert named_by(text) == spdx


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n", "Apache-2.0"),
        ("---\nlicense: other\nlicense_name: stabilityai-ai-community\n---\n", STABILITY),
        ('---\nlicense: "mit"\n---\n', "MIT"),
        ("---\nlicense: other\n---\n", ""),
        ("# A model\nlicense: mit\n", ""),
    ],
)
def test_licences_are_known_by_model_cards(text: str, spdx: str) -> None:
    assert named_by_card(text) == spdx


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("LicenseRef-mine", "LicenseRef-mine"),
        (STABILITY, STABILITY),
        ("mit and LicenseRef-mine", "MIT AND LicenseRef-mine"),
        ("(MIT OR Apache-2.0) AND CC0-1.0", "(MIT OR Apache-2.0) AND CC0-1.0"),
    ],
)
def test_identifiers_are_spelled_as_spdx_does(given: str, spelled: str) -> None:
    assert parse(given, "[model] licence") == spelled


@pytest.mark.parametrize(
    "given", ["", " ", "free", "MIT AND", "MIT MIT", "LicenseRef-", "Stability"]
)
def test_what_is_no_identifier_is_refused(given: str) -> None:
    with pytest.raises(
        InputError, match=r"^\[model\] licence = .*: an SPDX identifier is expected"
    ):
        parse(given, "[model] licence")


def test_several_licences_all_apply() -> None:
    assert together(["MIT", "", "Apache-2.0", "MIT"]) == "MIT AND Apache-2.0"


def with_licence(recipe: Recipe, folder: Path, licence: str | None) -> Recipe:
    return replace(recipe, checkpoint=str(folder), licence=licence)


def test_a_recipe_says_what_the_checkpoint_does_not(tiny_copy: Path, tiny_recipe: Recipe) -> None:
    recipe = with_licence(tiny_recipe, tiny_copy, "LicenseRef-mine")
    assert licence_of(recipe, open_checkpoint(str(tiny_copy))).id == "LicenseRef-mine"
    assert recipe.digest("onnx") != tiny_recipe.digest("onnx")
    (tiny_copy / "LICENSE").write_text(AGREEMENT)
    with pytest.raises(
        InputError, match=r"licence = 'LicenseRef-mine', and the files .* leave the"
    ):
        licence_of(recipe, open_checkpoint(str(tiny_copy)))
    same = with_licence(tiny_recipe, tiny_copy, STABILITY)
    assert licence_of(same, open_checkpoint(str(tiny_copy))).id == STABILITY


def test_stability_without_its_agreement_warns(tiny_copy: Path, tiny_recipe: Recipe) -> None:
    from exporter.build.licence import warn_of_missing

    checkpoint = open_checkpoint(str(tiny_copy))
    (tiny_copy / "LICENSE").unlink()
    found = licence_of(with_licence(tiny_recipe, tiny_copy, STABILITY), checkpoint)
    with pytest.warns(LicenceWarning, match="has no LICENSE, and LicenseRef-.* asks for a copy"):
        warn_of_missing(found, checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_missing(licence_of(tiny_recipe, checkpoint), checkpoint)


def test_a_recipe_that_names_none_says_so(tmp_path: Path) -> None:
    shutil.copy(ROOT / "recipes" / "shapes-flash.prompts.txt", tmp_path)
    text = (ROOT / "recipes" / "shapes-flash.toml").read_text()
    line = 'licence = "nothing known"'
    file = tmp_path / "a.toml"
    file.write_text(text.replace("[model]\n", f"[model]\n{line}\n"))
    with pytest.raises(InputError, match=r"a\.toml: \[model\] licence = 'nothing known': an SPDX"):
        read_recipe(file)


def test_the_recipe_in_a_package_is_what_its_digest_is_of(tiny_package: Path) -> None:
    origin = read_manifest(tiny_package).origin
    content = (tiny_package / origin.recipe).read_bytes()
    assert hashlib.sha256(content).hexdigest() == origin.recipe_sha256


def test_the_kept_package_of_4_0_has_none() -> None:
    manifest: Manifest = read_manifest(OLD)
    assert manifest.bom == "" and manifest.origin.recipe == ""
    assert to_json(manifest).count("bom") == 0
