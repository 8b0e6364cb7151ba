"""Each option: what is taken, what is refused, and that a refusal names the option."""

import pathlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kata import settings

CHARMCRAFT = yaml.safe_load(
    (pathlib.Path(__file__).parents[2] / "charmcraft.yaml").read_text(encoding="utf-8")
)
DEFAULTS = {
    name: option.get("default", "") for name, option in CHARMCRAFT["config"]["options"].items()
}


def test_every_option_of_the_charm_is_read_and_no_other():
    assert set(settings.OPTIONS) == set(CHARMCRAFT["config"]["options"])
    fields = {name.replace("_", "-") for name in settings.Settings.__dataclass_fields__}
    assert fields == set(settings.OPTIONS)


def test_types_are_those_that_juju_enforces():
    types = {"string": str, "boolean": bool, "int": int}
    for name, option in CHARMCRAFT["config"]["options"].items():
        assert settings.OPTIONS[name].type is types[option["type"]], name


def test_the_defaults_fit():
    read = settings.read(DEFAULTS)
    assert read.kata_version == "4.1.0"
    assert read.runtime_class == "kata"
    assert read.gpu_mode == "none"
    assert read.extra_runtime_classes == ()


TAKEN = [
    ("kata-version", "3.32.0", "3.32.0"),
    ("kata-version", " 2.0.0-rc1 ", "2.0.0-rc1"),
    ("shim", "rust", "rust"),
    ("hypervisor", "fc", "fc"),
    ("archive-url", "https://mirror.example/{version}/{arch}/{name}", None),
    ("archive-sha256", "a" * 64, None),
    ("runtime-class", "kata-qemu", None),
    ("extra-runtime-classes", "a=clh, b=fc,", (("a", "clh"), ("b", "fc"))),
    ("snapshotter", "devmapper", None),
    ("overhead-memory", "350Mi", None),
    ("overhead-cpu", "0.5", None),
    ("default-memory", 128, None),
    ("default-vcpus", 0, None),
    ("enable-annotations", "default_vcpus, kernel_.*", ("default_vcpus", "kernel_.*")),
    ("kata-config", "[runtime]\nenable_debug = true\n", None),
    ("containerd-config", "/etc/containerd/config.toml", None),
    ("containerd-service", "snap.k8s.containerd.service", None),
    ("gpu-devices", "0000:04:00.0, 10DE:15F8", ("0000:04:00.0", "10de:15f8")),
    # as lspci prints it without -D, and twice
    ("gpu-devices", "84:00.0 0000:84:00.0", ("0000:84:00.0",)),
    ("gpu-guest-kernel", "/usr/share/kata-containers/vmlinuz-nvidia-gpu.container", None),
]


@pytest.mark.parametrize(("name", "value", "expected"), TAKEN)
def test_taken(name, value, expected):
    read = settings.read({**DEFAULTS, name: value})
    assert getattr(read, name.replace("-", "_")) == (value if expected is None else expected)


REFUSED = [
    ("kata-version", ""),
    ("kata-version", "latest"),
    ("kata-version", "4.1.0/../x"),
    ("shim", "Go"),
    ("hypervisor", "xen"),
    ("archive-url", "ftp://mirror.example/{name}"),
    ("archive-url", "https://mirror.example/{file}"),
    ("archive-url", "https://mirror.example/{name"),
    ("archive-url", "https://mirror.example/a b"),
    ("archive-url", "http://mirror.example/{name}"),
    ("archive-url", "https://me:secret@mirror.example/{name}"),
    ("archive-sha256", "A" * 64),
    ("archive-sha256", "a" * 63),
    ("package-source", "deb https://a ./\ndeb https://b ./"),
    ("packages", "kata-runtime; reboot"),
    ("packages", "-o=x"),
    ("runtime-class", ""),
    ("runtime-class", "Kata"),
    ("runtime-class", "untrusted"),
    ("runtime-class", "runc"),
    ("runtime-class", 'kata"]\n[plugins'),
    ("runtime-class", "k" * 64),
    ("extra-runtime-classes", "kata-clh"),
    ("extra-runtime-classes", "a=clh,a=fc"),
    ("extra-runtime-classes", "kata=clh"),
    ("extra-runtime-classes", "untrusted=clh"),
    ("extra-runtime-classes", "runc=clh"),
    ("extra-runtime-classes", "a=xen"),
    ("snapshotter", "dev mapper"),
    ("overhead-memory", "lots"),
    ("overhead-memory", "-1Mi"),
    ("overhead-cpu", ""),
    ("default-vcpus", -1),
    ("default-vcpus", True),
    ("default-vcpus", "2"),
    ("default-memory", 64),
    ("default-memory", 1 << 40),
    ("enable-annotations", 'a"b'),
    ("enable-annotations", "*"),
    ("kata-config", "a\0b"),
    ("containerd-config", "config.toml"),
    ("containerd-config", "/etc/containerd/"),
    ("containerd-service", "containerd; reboot"),
    ("containerd-service", ""),
    ("label-nodes", "yes"),
    ("untrusted-annotation", None),
    ("gpu-mode", "on"),
    ("gpu-devices", ""),
    ("gpu-devices", "all,10de:15f8"),
    ("gpu-devices", "04:00"),
    ("gpu-devices", "04:00.8"),
    ("vgpu-count", -1),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused_with_the_option_named(name, value):
    with pytest.raises(settings.BadOption) as refusal:
        settings.read({**DEFAULTS, name: value})
    message = str(refusal.value)
    assert f"option {name}=" in message
    assert "expected" in message
    assert "\n" not in message
    assert len(message) < 240


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"package-source": "ppa:kata/kata"}, "packages"),
        ({"gpu-mode": "vgpu"}, "vgpu-type"),
        (
            {"gpu-mode": "passthrough", "extra-runtime-classes": "kata-gpu=clh"},
            "gpu-runtime-class",
        ),
    ],
)
def test_options_that_need_each_other(given, named):
    with pytest.raises(settings.BadOption, match=f"option {named}="):
        settings.read({**DEFAULTS, **given})


def test_an_apt_source_goes_with_its_packages():
    source = "deb https://mirror.example/kata ./"
    read = settings.read({**DEFAULTS, "package-source": source, "packages": "kata-runtime"})
    assert read.package_source == source
    assert read.packages == ("kata-runtime",)


def test_an_option_that_is_missing_is_named():
    with pytest.raises(settings.BadOption, match="option shim=None"):
        settings.read({name: value for name, value in DEFAULTS.items() if name != "shim"})


ANY = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(), st.binary())


@given(name=st.sampled_from(sorted(DEFAULTS)), value=ANY)
def test_no_value_does_anything_but_fit_or_be_refused(name, value):
    try:
        read = settings.read({**DEFAULTS, name: value})
    except settings.BadOption as refusal:
        assert len(str(refusal).splitlines()) == 1
    else:
        assert isinstance(read, settings.Settings)


@given(value=st.text())
def test_names_that_reach_a_file_are_plain(value):
    for name in ("runtime-class", "snapshotter", "containerd-service", "gpu-runtime-class"):
        try:
            read = settings.read({**DEFAULTS, name: value})
        except settings.BadOption:
            continue
        plain = getattr(read, name.replace("-", "_"))
        assert not set(plain) & set("\"'\n\r\\/[]= ")
