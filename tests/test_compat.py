"""What differs between the versions of torch, beside what the installed one says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from senet import compat


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch has nothing to compare with")
def test_cpuinfo_tells_of_this_processor_what_torch_tells() -> None:
    expected = torch.cpu.get_capabilities()
    read = compat.capabilities_in(Path("/proc/cpuinfo").read_text())
    del read["cpu_name"]  # torch's library knows names that are not in cpuinfo
    assert read == {key: expected.get(key, False) for key in read}
    assert compat.cpu_capabilities() == expected


@pytest.mark.parametrize(
    ("cpuinfo", "name", "bf16"),
    [
        (
            "processor\t: 0\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz\n"
            "flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\nvmx flags\t: vnmi\n",
            "Intel Xeon Platinum 8488C",
            ["amx_bf16", "avx512_bf16"],
        ),
        ("model name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu avx2\n", "AMD EPYC 7763", []),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16\nCPU part\t: 0xd40\n", None, ["bf16"]),
        ("", None, []),
    ],
)
def test_a_torch_that_does_not_tell_of_the_processor_is_done_without(
    cpuinfo: str, name: str | None, bf16: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(compat, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(compat.platform, "machine", lambda: "aarch64")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    found = compat.cpu_capabilities()
    assert found["cpu_name"] == (name or "aarch64")
    assert [key for key, value in found.items() if value is True] == bf16
