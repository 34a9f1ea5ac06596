import torch
import torch.nn.functional as F
from samples import set_up

from spatial_transformer.data.mnist import MnistData, RotatedMnistData


def load(kind, root, **options):
    return set_up(kind(root=root, **options))


def test_splits_are_disjoint_and_the_same_for_every_seed(mnist_root):
    one, other = (load(RotatedMnistData, mnist_root, seed=seed, augment=False) for seed in (1, 2))
    sizes = {split: one.size(split) for split in ("train", "val", "test")}
    assert sizes == {"train": 10_000, "val": 2_000, "test": 50_000}
    index = torch.arange(200)
    for split in sizes:
        assert torch.equal(one.samples(split, index)[0], other.samples(split, index, epoch=3)[0])
    digits = [load(kind, mnist_root)._images for kind in (RotatedMnistData, MnistData)]
    few, all_ = (len(torch.cat(list(d.values())).flatten(1).unique(dim=0)) for d in digits)
    assert all_ - 8_000 <= few < all_  # 62,000 of 70,000, none of them twice


def test_angles_cover_the_circle(mnist_root):
    data = load(RotatedMnistData, mnist_root)
    index = torch.arange(2000)
    images, _ = data.samples("test", index)
    upright = data._digits("test", index)
    turned = torch.stack([upright.rot90(k, (2, 3)) for k in range(4)], dim=1)
    nearest = (images[:, None] - turned).square().sum((2, 3, 4)).argmin(dim=1)
    shares = nearest.bincount(minlength=4) / len(index)
    assert shares.min() > 0.15
    poses = data.poses("test", index)[:, 0]
    assert not torch.allclose(poses, data.poses("val", index)[:, 0])
    again = F.grid_sample(upright, F.affine_grid(poses, upright.shape, False), align_corners=False)
    assert torch.allclose(again, images, atol=1e-4)
