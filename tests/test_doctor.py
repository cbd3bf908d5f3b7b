"""What the doctor looks at, and what it says where something is wrong."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest

from finesteer_local import distribution
from finesteer_local.doctor import BROKEN, GOOD, NOTE, Finding, examine_installation, examine_model
from finesteer_local.doctor import installation as installation_module
from finesteer_local.runtime import compat, machine, open_model
from finesteer_local.runtime import probe as probe_module
from finesteer_local.runtime import tap as tap_module
from tiny import make_profile, write_tiny_model


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    assert all(finding.remedy for finding in findings if finding.state != GOOD), "each problem ends with what to do"
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    return {finding.name: finding for finding in findings}


def installation() -> dict[str, Finding]:
    return by_name(list(examine_installation()))


def model(path: Path, **options: object) -> dict[str, Finding]:
    return by_name(list(examine_model(path, n_threads=1, **options)))


def test_a_sound_installation(home: Path) -> None:
    found = installation()
    assert not [finding for finding in found.values() if finding.state == BROKEN]
    assert found["numpy"].says == np.__version__
    assert found["llama-cpp-python"].data == {"version": importlib.metadata.version("llama-cpp-python")}
    assert found["threads"].data["threads"] >= 1
    assert "=" in found["processor features"].data["llama_print_system_info"]
    assert found["GPU offload"].data["supported"] is machine.supports_gpu()
    assert found["device CPU"].data["total"] > 1 << 28
    assert found["tap"].data == {"native": tap_module.native_filter()[0] is not None}
    assert str(home) in found["cache"].says and str(home) in found["data"].says
    assert found["models"].data == {"names": [], "bytes": 0}
    assert "safety" in found["profiles"].data["names"]
    assert not home.exists()  # looking creates nothing


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "rich"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.3.9+cu124" if name == "llama-cpp-python" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = installation()
    assert found["rich"].state == BROKEN and found["rich"].remedy.startswith("pip install 'rich>=")
    assert found["llama-cpp-python"].state == BROKEN and "0.3.9+cu124, needed is " in found["llama-cpp-python"].says
    assert found["extra train"].state == NOTE and "torch" in found["extra train"].says
    assert found["extra train"].remedy == f"for training profiles: {distribution.install_extra('train')}"
    assert "extra dev" not in found


def test_llama_cpp_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "finesteer_local.runtime.machine", None)  # its import raises
    found = installation()
    assert found["loads"].state == BROKEN and "--no-binary llama-cpp-python" in found["loads"].remedy
    assert "device CPU" not in found and "cache" in found


def test_a_release_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installation()["private parts"]
    assert found.state == GOOD and compat.tested() and found.says.endswith(f"tested releases: {compat.tested()}")
    monkeypatch.delattr("llama_cpp._internals.LlamaSampler.add_dist")
    for name in ("machine", "compat"):
        monkeypatch.delitem(sys.modules, f"finesteer_local.runtime.{name}")
    loads = installation()["loads"]
    assert loads.state == BROKEN and loads.says.endswith("has no _internals.LlamaSampler.add_dist")
    assert "pip install 'llama-cpp-python" in loads.remedy


def test_the_tap_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "_COMPILED", Path("_tap.none"))
    tap = installation()["tap"]
    assert tap.state == NOTE and "was not compiled" in tap.says and "C compiler" in tap.remedy


def test_a_tap_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_tap.bad").write_text("no library")
    monkeypatch.setattr(tap_module, "_COMPILED", tmp_path / "_tap.bad")
    assert "_tap.bad cannot be loaded" in installation()["tap"].says


def test_devices_and_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    card = machine.Device("CUDA0", "Card", "GPU", 6 << 30, 8 << 30)
    monkeypatch.setattr(machine, "devices", lambda: [card])
    monkeypatch.setattr(machine, "supports_gpu", lambda: True)
    monkeypatch.setattr(machine, "supports_rpc", lambda: True)
    found = installation()
    assert found["device CUDA0"].says == "GPU: Card, 6.4 GB of 8.6 GB free"
    assert found["GPU offload"].state == found["other machines (RPC)"].state == GOOD
    monkeypatch.setattr(machine, "devices", list)
    monkeypatch.setattr(machine, "system_info", lambda: "CPU : SSE3 = 1 | AVX2 = 0 |")
    monkeypatch.setattr(installation_module.platform, "machine", lambda: "x86_64")
    found = installation()
    assert found["GPU"].state == NOTE and "driver" in found["GPU"].remedy
    assert found["processor features"].says == "SSE3" and found["processor features"].state == NOTE
    threads = by_name(list(examine_installation(10_000)))["threads"]
    assert threads.state == NOTE and threads.data["threads"] == 10_000


def test_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file is in the way")
    found = installation()
    assert found["cache"].state == found["data"].state == BROKEN
    assert "FINESTEER_HOME" in found["cache"].remedy
    home.unlink()
    monkeypatch.setattr(installation_module.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    assert installation()["cache"].state == NOTE
    monkeypatch.setenv("FINESTEER_CACHE_GB", "many")
    assert installation()["kept hidden states"].state == BROKEN


def test_models_and_profiles_are_counted(home: Path) -> None:
    path = home / "cache" / "models" / "mine.gguf"
    path.parent.mkdir(parents=True)
    write_tiny_model(path)
    damaged = home / "data" / "profiles" / "mine.0123456789ab.gguf"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"GGUF")
    (home / "data" / "work").mkdir()
    (home / "data" / "work" / "file").write_bytes(bytes(2500))
    found = installation()
    assert found["models"].data == {"names": ["mine"], "bytes": path.stat().st_size}
    assert found["profile mine"].state == NOTE and str(damaged) in found["profile mine"].remedy
    assert found["interrupted trainings"].data["bytes"] == 2500


def test_a_sound_model(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "profile.gguf"
    make_profile(tiny).save(file)
    found = model(tiny, profiles=[file])
    assert not [finding for finding in found.values() if finding.state != GOOD]
    assert found["file"].data["architecture"] == "llama" and found["file"].data["n_layer"] == 4
    assert found["layers"].says == "4 of 4 on CPU"
    assert set(found["layers"].data["layers"].values()) == {"CPU"}
    assert found["memory"].data["MiB"]["KV"]
    assert found["tap and control vector"].data == {"difference": 0.0}
    speeds = found["answers"].data
    ratio = speeds["tokens_per_second"]["steered"] / speeds["tokens_per_second"]["unsteered"]
    assert speeds["ratio"] == pytest.approx(ratio)
    assert found["profile profile.gguf"].says.startswith("fits: steers layer 2")


@pytest.fixture(autouse=True)
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any speed may come out: whether it is remarked on is not what these tests are about."""
    monkeypatch.setattr("finesteer_local.doctor.model._SLOW", 0.0)


def test_a_model_without_template_and_profiles(tmp_path: Path) -> None:
    found = model(write_tiny_model(tmp_path / "plain.gguf", "gemma3", chat_template=None))
    assert found["chat template"].state == NOTE and found["chat template"].data == {"own": False}
    assert found["profiles"].state == NOTE and "finesteer-local train" in found["profiles"].remedy


def test_a_profile_of_another_model(tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.5)
    make_profile(other).save(tmp_path / "p.gguf")
    profile = model(tiny, profiles=[tmp_path / "p.gguf"])["profile p.gguf"]
    assert profile.state == BROKEN and "was trained for" in profile.remedy


def test_a_model_that_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    assert model(tmp_path / "bad.gguf")["opens"].state == BROKEN


def test_a_model_that_computes_nonsense(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_tensor="blk.0.ffn_down.weight")
    steering = model(path)["tap and control vector"]
    assert steering.state == BROKEN and "not finite" in steering.says


def test_a_device_on_which_the_tap_does_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module.Rows, "write", lambda *_: None)
    steering = model(tiny)["tap and control vector"]
    assert steering.state == BROKEN and "--gpu-layers 0" in steering.remedy and steering.data["difference"] > 0.05


def test_slow_steering_is_remarked_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesteer_local.doctor.model._SLOW", 1e9)
    answers = model(tiny)["answers"]
    assert answers.state == NOTE and "finesteer-local bench" in answers.remedy


def test_a_log_that_tells_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Placement, "read", lambda *_: None)
    found = model(tiny)
    assert found["layers"].state == NOTE and "memory" not in found


def test_the_log_is_llama_cpp_pythons_again(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with machine.watch_placement() as placement:
        open_model(tiny, n_threads=1).close()
    assert placement.layers == dict.fromkeys(range(5), "CPU")  # the output's follows the last layer's
    assert capfd.readouterr().err == ""
    open_model(tiny, n_threads=1, verbose=True).close()
    assert "buffer size" in capfd.readouterr().err
    open_model(tiny, n_threads=1).close()  # quiet again for the other tests
