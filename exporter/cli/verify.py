"""``fourstep verify``: a package against its own golden data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.backends.contract import SessionOptions
from exporter.cli.options import (
    PLACE,
    cache_option,
    device_option,
    json_option,
    trusted_option,
)
from exporter.cli.output import show, show_json
from exporter.errors import CheckFailed
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.trust.check import Trust


@click.command("verify")
@click.argument("package", type=PLACE)
@device_option
@cache_option
@trusted_option
@json_option
def command(
    package: Path, device: str | None, cache: Path | None, trusted: Trust | None, as_json: bool
) -> None:
    """Check PACKAGE: every file, every graph's golden outputs, whole pictures.

    With --trusted who signed it, before all else: fourstep verify PACKAGE --trusted maker.pem
    """
    from exporter.package.layout import is_layout
    from exporter.runtime.package import open_package
    from exporter.runtime.verify import Report, lines_of
    from exporter.runtime.verify import verify as check

    if is_layout(package):
        _verify_layout(package, trusted, as_json)
        return
    opened = open_package(package, trusted)
    progress = Progress(bar_on_terminal, lines_of(opened.manifest))
    report: Report = check(opened, progress, SessionOptions(device=device, cache=cache))
    end_of_bar()
    if as_json:
        show_json(report.to_json())
    else:
        show(_verify_table(report))
    if not report.ok:
        raise CheckFailed(f"{package}: {'; '.join(report.failures)}")


def _verify_layout(folder: Path, trusted: Trust | None, as_json: bool) -> None:
    """Check the files of a folder for clients of others, which alone can draw with it."""
    from exporter.layouts import load_layout
    from exporter.package.layout import check_layout
    from exporter.trust.check import check_trust

    if trusted is not None:
        check_trust(folder, trusted)
    found = check_layout(folder)
    if load_layout(found.layout).gathers:
        from exporter.backends.onnx.model_package import read_model_package
        from exporter.layouts.ort_package import check_package

        check_package(folder)
        read_model_package(folder)
    told = {
        "package": folder.name,
        "layout": found.layout,
        "clients": found.clients,
        "files": len(found.files),
        "bytes": found.bytes,
        "ok": True,
    }
    if as_json:
        show_json(told)
        return
    show(f"{folder.name}: {len(found.files)} files whole, for {', '.join(found.clients)}\nok")


def _verify_table(report: Any) -> str:
    lines = [f"{report.package}: {report.files} files whole, {report.vectors} vectors compared"]
    for graph in report.graphs:
        if not graph.calls:
            lines.append(f"  {graph.worded:<12} opens; no golden outputs to compare with")
            continue
        found = f"  {graph.worded:<12} {graph.calls:>3} calls  relative error {graph.exact:.1e}"
        how = f"allowed {graph.allowed:.1e}" if report.device else f"as it runs {graph.as_run:.1e}"
        lines.append(f"{found}  {how}")
    for image in report.images:
        at = f" at {image.size}" if image.size else ""
        lines.append(
            f"  {image.prompt!r}{at}: {image.exact_db:.1f} dB, "
            f"as it runs {image.as_run_db:.1f} dB; from unquantized {image.loss_db:.1f} dB, "
            f"final latent {image.latent_snr_db:.1f} dB"
        )
    if report.beside:
        lines.append(f"  beside it, not listed and not used: {', '.join(report.beside)}")
    lines.append("ok" if report.ok else "FAILED")
    return "\n".join(lines)
