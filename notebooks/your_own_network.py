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
# # A spatial transformer in your own network
#
# You need three parts: a *transform* that defines what theta means, a *localisation network* that
# predicts theta from a feature map, and a `SpatialTransformer` that combines them. You can insert
# it before any layer.

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
# ## Data
#
# Our data are noisy colour images of 32 × 32 pixels, each of which shows one of four shapes at a
# random position, in a random size and colour.


# %%
def make_shapes(n):
    """Return images (n, 3, 32, 32) and labels (n,): square, disc, cross, ring."""
    labels = torch.randint(4, (n,))
    axis = torch.arange(32.0)
    radius = 4 + 4 * torch.rand(n, 1, 1)
    u = (axis.view(1, 1, 32) - (9 + 14 * torch.rand(n, 1, 1))) / radius
    v = (axis.view(1, 32, 1) - (9 + 14 * torch.rand(n, 1, 1))) / radius
    u, v = torch.broadcast_tensors(u, v)
    square = torch.maximum(u.abs(), v.abs()) < 1
    disc = u.hypot(v) < 1
    cross = square & (torch.minimum(u.abs(), v.abs()) < 0.35)
    ring = (u.hypot(v) - 0.75).abs() < 0.25
    mask = torch.stack([square, disc, cross, ring])[labels, torch.arange(n)][:, None].float()
    colour = 0.4 + 0.6 * torch.rand(n, 3, 1, 1)
    return mask * colour + 0.15 * torch.rand(n, 3, 32, 32), labels


images, labels = make_shapes(8)
figure, row = plt.subplots(1, 8, figsize=(10, 1.5), layout="constrained")
for axes, image in zip(row, images):
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1))
    axes.axis("off")
plt.show()

# %% [markdown]
# ## A small CNN with a transformer on a feature map
#
# Without `output_size`, the output has the size of the input. `FcLocalisation` needs the shape of
# the feature map.


# %%
class TransformerOnFeatures(nn.Module):
    """Convolution, spatial transformer, convolution, classifier."""

    def __init__(self, classes=4):
        super().__init__()
        transform = Affine()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        localisation = FcLocalisation((16, 16, 16), transform, hidden=(32,))
        self.transformer = SpatialTransformer(localisation, transform)
        self.head = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, classes),
        )

    def forward(self, x):
        return self.head(self.transformer(self.stem(x)))


network = TransformerOnFeatures()

# %% [markdown]
# **It starts as the identity.** The last layer of the localisation network, `Regression`, has zero
# weights, and its bias is the identity. So the output is the same as without the transformer, up to
# float32 rounding. You can insert a transformer into a pretrained network.

# %%
with torch.no_grad():
    difference = (network(images) - network.head(network.stem(images))).abs().max()
    print(f"difference from the network without the transformer: {difference:.0e}")

# %% [markdown]
# ## Two transformers in parallel
#
# Two transformers read the same input, each with its own localisation network. Their outputs are
# concatenated along the channels, so the next layer has twice as many input channels. Parallel
# transformers must start at different places: give each a `start`. Here they start on the left and
# on the right half.


# %%
class ParallelTransformers(nn.Module):
    """Two crops of the input, a convolution, and a classifier."""

    def __init__(self, classes=4):
        super().__init__()
        transform = Attention()
        starts = torch.tensor([[0.6, -0.4, 0.0], [0.6, 0.4, 0.0]])  # (s, t_x, t_y) of each
        localisation = JoinedLocalisation(
            [FcLocalisation((3, 32, 32), transform, hidden=(32,), start=start) for start in starts]
        )
        self.transformer = SpatialTransformer(
            localisation, transform, output_size=(20, 20), parallel=2
        )
        self.head = nn.Sequential(
            nn.Conv2d(2 * 3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 10 * 10, classes),
        )

    def forward(self, x):
        return self.head(self.transformer(x))


crops, theta = ParallelTransformers().transformer(images, return_theta=True)
print("crops", tuple(crops.shape), "theta", tuple(theta.shape))

# %% [markdown]
# ## Training, and the learning rate of the localisation network
#
# A spatial transformer is trained like any other layer, with one caveat: a small change of theta
# moves the whole image. If the loss is unstable or theta diverges, give the localisation networks a
# lower learning rate in their own parameter group. Start with a tenth. In this project the factor
# is `recipe.localisation_lr_factor`. Avoid strong weight decay there, because it pulls theta
# towards zero, which is a grid of zero size. `recipe=fast` uses 0.01, the default of AdamW.


# %%
def train(network, steps=120, factor=0.1):
    """Train on new shapes in each step and return the losses."""
    localisation = [p for net in localisation_networks(network) for p in net.parameters()]
    is_localisation = {id(p) for p in localisation}
    others = [p for p in network.parameters() if id(p) not in is_localisation]
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "lr": 3e-3},
            {"params": localisation, "lr": factor * 3e-3, "weight_decay": 0.0},
        ]
    )
    losses = []
    for _ in range(steps):
        x, target = make_shapes(64)
        loss = F.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


test_images, test_labels = make_shapes(1000)
networks = {"on a feature map": TransformerOnFeatures(), "two in parallel": ParallelTransformers()}
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, network in networks.items():
    axes.plot(train(network), label=name)
    with torch.no_grad():
        accuracy = (network(test_images).argmax(1) == test_labels).float().mean()
        features = network.stem(test_images) if hasattr(network, "stem") else test_images
        _, theta = network.transformer(features, return_theta=True)
    print(f"{name}: accuracy {accuracy:.1%}, standard deviation of theta {theta.std(0).mean():.3f}")
axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))
axes.legend()
plt.show()

# %% [markdown]
# Both networks learn, and theta depends on the image. This task would be easy even without a
# transformer. For networks with and without transformers, see the tables in the README.
#
# ## Common mistakes
#
# **A random last layer.** If the localisation network ends in a plain `nn.Linear`, the initial grid
# is random and often close to a single point. End it in `Regression` instead.

# %%
torch.manual_seed(0)
transform = Affine()
features = torch.rand(1, 32)
with torch.no_grad():
    print("nn.Linear  ", nn.Linear(32, 6)(features).numpy().round(2))
    print("Regression ", Regression(32, transform)(features).numpy().round(2))

# %% [markdown]
# **`align_corners`.** In this package -1 and 1 are the outer *edges* of the first and last pixel,
# as in PyTorch with `align_corners=False`. With `align_corners=True` they are the *centres* of
# these pixels. Mixing the two conventions shifts the image near its border, even for the identity.

# %%
identity = transform.identity()[None]
for align_corners in (False, True):
    grid = F.affine_grid(identity.view(1, 2, 3), (1, 3, 32, 32), align_corners=align_corners)
    error = (grid - transform.grid(identity, (32, 32))).abs().max() * 32 / 2
    print(f"align_corners={align_corners}: differs by up to {error:.2f} pixels")

# %% [markdown]
# **Normalisation and `fill`.** Points outside the input read `fill`, which is 0 by default.
# After normalisation 0 is the mean colour, not black. Give `fill` in units of the normalised input:
# `(colour - mean) / std`.

# %%
mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.23])
normalised = (images[:1] - mean.view(3, 1, 1)) / std.view(3, 1, 1)
grid = transform.grid(torch.tensor([[1.5, 0, 0, 0, 1.5, 0]]), (48, 48))
fills = {"fill=0 (mean colour)": 0.0, "fill=-mean/std (black)": (-mean / std).tolist()}
figure, row = plt.subplots(1, 2, figsize=(5, 2.8), layout="constrained")
for axes, (title, fill) in zip(row, fills.items()):
    image = sample(normalised, grid, fill=fill)[0] * std.view(3, 1, 1) + mean.view(3, 1, 1)
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1))
    axes.set_title(title, fontsize=9)
    axes.axis("off")
plt.show()

# %% [markdown]
# **The direction of theta.** Theta maps the output to the input. To *magnify*, *reduce* its scale.
#
# **`mode="nearest"` in training.** It has no gradient with respect to theta, so the localisation
# network learns nothing.
#
# **Aliasing.** If the output is much smaller than the window, pixels are skipped. Average the input
# first, or set `antialias=True`, as `transformer_tour` shows.
