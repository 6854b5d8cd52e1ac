"""Certificates for tests: an authority, and what it signs, as PEM files."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority in a directory; `path` is its certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self._key, self._directory = directory / f"{name}.pem", directory / f"{name}.key", directory
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", str(self._key), "-out", str(self.path)),
        )

    def issue(self, file: str, common_name: str, *alternatives: str) -> tuple[Path, Path]:
        """Certificate and key for that name; `alternatives` as openssl writes them, `DNS:a`, `IP:…`, `URI:…`."""
        key, request = self._directory / f"{file}.key", self._directory / f"{file}.csr"
        certificate, extensions = self._directory / f"{file}.pem", self._directory / f"{file}.ext"
        _openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={common_name}" if common_name else "/", "-keyout", str(key), "-out", str(request)),
        )
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\n" if alternatives else "")
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.path), "-CAkey", str(self._key), "-days", "2"),
            *("-CAcreateserial", "-extfile", str(extensions), "-out", str(certificate)),
        )
        return certificate, key


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
