# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A transformer in your own network
#
# Three parts: a *transform* (the family, and how many numbers theta has), a *localisation network* (from a feature map to
# theta) and the `SpatialTransformer` of both. It goes wherever a layer goes.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from spatial_transformer import Affine, Attention, SpatialTransformer, sample
from spatial_transformer.networks.localisation import (
    FcLocalisation,
    JoinedLocalisation,
    Regression,
    localisation_networks,
)

torch.manual_seed(0)
plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## Something to learn
#
# Colour pictures of 32 × 32 pixels with one of four shapes, at any place, of any size and colour, in noise.


# %%
def shapes(n):
    """Images (n, 3, 32, 32) in about [0, 1], and labels (n,): square, disc, cross, ring."""
    labels = torch.randint(4, (n,))
    axis = torch.arange(32.0)
    radius = 4 + 4 * torch.rand(n, 1, 1)
    u = (axis.view(1, 1, 32) - (9 + 14 * torch.rand(n, 1, 1))) / radius
    v = (axis.view(1, 32, 1) - (9 + 14 * torch.rand(n, 1, 1))) / radius
    u, v = torch.broadcast_tensors(u, v)
    square = torch.maximum(u.abs(), v.abs()) < 1
    drawn = [
        square,
        u.hypot(v) < 1,
        square & (torch.minimum(u.abs(), v.abs()) < 0.35),
        (u.hypot(v) - 0.75).abs() < 0.25,
    ]
    mask = torch.stack(drawn)[labels, torch.arange(n)][:, None].float()
    colour = 0.4 + 0.6 * torch.rand(n, 3, 1, 1)
    return mask * colour + 0.15 * torch.rand(n, 3, 32, 32), labels


images, labels = shapes(8)
figure, row = plt.subplots(1, 8, figsize=(10, 1.5), layout="constrained")
for axes, image in zip(row, images):
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1))
    axes.axis("off")
plt.show()

# %% [markdown]
# ## A small CNN with a transformer in its middle
#
# `output_size` is left out: the map keeps its size. `FcLocalisation` is told the shape of the map that it reads.


# %%
class Middle(nn.Module):
    """Convolution, transformer, convolution, classifier."""

    def __init__(self, classes=4):
        super().__init__()
        self.below = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )  # (16, 16, 16)
        transform = Affine()
        self.transformer = SpatialTransformer(
            FcLocalisation((16, 16, 16), transform, hidden=(32,)), transform
        )
        self.above = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, classes),
        )

    def forward(self, x):
        return self.above(self.transformer(self.below(x)))


network = Middle()

# %% [markdown]
# **It starts as the identity.** The last layer of the localisation network, `Regression`, has zero weights and the identity
# as its bias. So the new network computes what it did without the transformer, to float32 rounding: you can put it into a
# trained network.

# %%
with torch.no_grad():
    features = network.below(images)
    difference = (network(images) - network.above(features)).abs().max()
    print(f"difference from the network without it: {difference:.0e}")

# %% [markdown]
# ## Two in parallel
#
# Two transformers read the same map, each by a localisation network of its own; their outputs lie side by side as channels,
# so the next layer has twice as many. They must not start at the same place: give each a `start`. Here they read the left and
# the right half.


# %%
class Parallel(nn.Module):
    """Two windows on the input, side by side as channels."""

    def __init__(self, classes=4):
        super().__init__()
        transform = Attention()
        starts = torch.tensor([[0.6, -0.4, 0.0], [0.6, 0.4, 0.0]])  # (s, t_x, t_y) of each
        each = [
            FcLocalisation((3, 32, 32), transform, hidden=(32,), start=start) for start in starts
        ]
        self.transformer = SpatialTransformer(
            JoinedLocalisation(each), transform, output_size=(20, 20), parallel=2
        )
        self.above = nn.Sequential(
            nn.Conv2d(2 * 3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 10 * 10, classes),
        )

    def forward(self, x):
        return self.above(self.transformer(x))


out, theta = Parallel().transformer(images, return_theta=True)
print("output", tuple(out.shape), "theta", tuple(theta.shape))

# %% [markdown]
# ## Training, and the learning rate of the localisation network
#
# Nothing is special but one thing: a small change of theta moves the whole picture. If the loss is restless, or theta runs
# away, give the localisation networks a lower rate (a tenth to begin with), in an optimiser group of their own. In this
# project's runs the factor is `recipe.localisation_lr_factor`. Be careful with weight decay there: a strong one pulls theta
# towards 0, a window of no size (the runs here have AdamW's 0.01).


# %%
def train(network, steps=120, factor=0.1):
    """Trains on fresh shapes; returns the loss of each step."""
    of_theta = [p for net in localisation_networks(network) for p in net.parameters()]
    known = {id(p) for p in of_theta}
    rest = [p for p in network.parameters() if id(p) not in known]
    optimizer = torch.optim.AdamW(
        [
            {"params": rest, "lr": 3e-3},
            {"params": of_theta, "lr": factor * 3e-3, "weight_decay": 0.0},
        ]
    )
    losses = []
    for _ in range(steps):
        x, target = shapes(64)
        loss = F.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


test_images, test_labels = shapes(1000)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, network in {"in the middle": Middle(), "two in parallel": Parallel()}.items():
    axes.plot(train(network), label=name)
    with torch.no_grad():
        right = (network(test_images).argmax(1) == test_labels).float().mean()
        theta = network.transformer(
            network.below(test_images) if name == "in the middle" else test_images,
            return_theta=True,
        )[1]
    print(
        f"{name}: {100 * right:.0f} % right; theta varies by {theta.std(0).mean():.3f} from image to image"
    )
axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# These shapes are easy, also without a transformer: the run shows that both learn, and that theta comes to depend on the
# image. What a transformer is worth is in the tables of the README.
#
# ## Common mistakes
#
# **A random last layer.** A localisation network that ends in a plain `nn.Linear` begins with a window that is nearly a
# point, or anywhere. End in `Regression`.

# %%
torch.manual_seed(0)
transform = Affine()
features = torch.rand(1, 32)
with torch.no_grad():
    print("plain: ", nn.Linear(32, 6)(features).numpy().round(2))
    print("kept:  ", Regression(32, transform)(features).numpy().round(2))

# %% [markdown]
# **`align_corners`.** Here -1 and 1 are the outer *edges* of the first and the last pixel, as in `torch` with
# `align_corners=False`. With `True` they are the *centres*. A grid of one convention that is read in the other is wrong at
# the border, even for the identity.

# %%
identity = transform.identity()[None]
grids = {
    corners: F.affine_grid(identity.view(1, 2, 3), (1, 3, 32, 32), align_corners=corners)
    for corners in (False, True)
}
for corners, grid in grids.items():
    off = (grid - transform.grid(identity, (32, 32))).abs().max() * 32 / 2
    print(f"align_corners={corners}: off by up to {off:.2f} pixels")

# %% [markdown]
# **Normalisation and `fill`.** Outside of the input the sampler reads `fill`, 0 unless told. After normalisation 0 is the
# mean colour, not black. Say what you mean in units of what the transformer reads: `(colour - mean) / std`.

# %%
mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.23])
normalised = (images[:1] - mean.view(3, 1, 1)) / std.view(3, 1, 1)
wide = transform.grid(torch.tensor([[1.5, 0, 0, 0, 1.5, 0]]), (48, 48))
figure, row = plt.subplots(1, 2, figsize=(5, 2.8), layout="constrained")
for axes, (title, fill) in zip(
    row, {"fill=0: the mean colour": 0.0, "fill=-mean/std: black": (-mean / std).tolist()}.items()
):
    shown = sample(normalised, wide, fill=fill)[0] * std.view(3, 1, 1) + mean.view(3, 1, 1)
    axes.imshow(shown.permute(1, 2, 0).clamp(0, 1))
    axes.set_title(title, fontsize=9)
    axes.axis("off")
plt.show()

# %% [markdown]
# **The other way round.** theta goes from the output to the input: to see things *larger*, the window must be *smaller*.
#
# **`mode="nearest"` in training.** Its gradient of theta is 0: the localisation network learns nothing.
#
# **Aliasing.** An output much smaller than the window skips pixels. Pool first, see `transformer_tour`.
