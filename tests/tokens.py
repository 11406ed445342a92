"""Keys in tokens (PKCS#11), as tests need them: SoftHSM's, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Issued, key_pem

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so")
MODULE = next((m for m in MODULES if Path(m).is_file()), "")
with_token = pytest.mark.skipif(
    not (MODULE and shutil.which("softhsm2-util")), reason="apt-get install softhsm2"
)


@contextmanager
def token_in(folder: Path) -> Iterator[Path]:
    """A token ``factory``, whose PIN is 1234, in a folder; SoftHSM's library reads no second."""
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        run_softhsm("--init-token", "--free", "--label", "factory", "--so-pin", "0000")
        yield folder


def run_softhsm(*arguments: object) -> None:
    line = ["softhsm2-util", *map(str, arguments), "--pin", "1234"]
    subprocess.run(line, check=True, capture_output=True)


def put(folder: Path, issued: Issued, label: str, number: str) -> str:
    """Move a key into the token; the URI that names it, without a PIN."""
    file = folder / f"{label}.pem"
    file.write_bytes(key_pem(issued.key))
    kind = ("--token", "factory", "--label", label, "--id", number)
    run_softhsm("--import", file, *kind)
    return f"pkcs11:token=factory;object={label};type=private?module-path={MODULE}"
