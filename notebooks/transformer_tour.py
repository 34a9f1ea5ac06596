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
# # A tour of the transformer
#
# A spatial transformer reads its input along a grid of points. *theta* says where the grid lies. Here theta is set by hand,
# to see what each family of transformations and each kernel can do. In a network, a localisation network says it.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import interact

from spatial_transformer import Affine, Affine3d, Attention, Projective, ThinPlateSpline, sample

plt.rcParams["figure.dpi"] = 90

# %% [markdown]
# ## A picture
#
# An F, because it is unlike all of its mirror images and turns, on a gradient with a sun. Images are `(B, C, H, W)`.

# %%
y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
picture = torch.stack([0.15 + 0.2 * (1 + y), 0.25 + 0.1 * (1 - y), 0.55 - 0.15 * y])
sun = ((0.3 - (x - 0.6).hypot(y + 0.55)) * 20).clamp(0, 1)
stem = (x + 0.35).abs() < 0.12
bars = (x > -0.35) & (x < 0.35) & (((y + 0.5).abs() < 0.12) | ((y.abs() < 0.12) & (x < 0.15)))
letter = ((stem & (y > -0.62) & (y < 0.65)) | bars).float()
for mask, colour in ((sun, (1.0, 0.8, 0.3)), (letter, (0.95, 0.95, 0.9))):
    picture = picture * (1 - mask) + torch.tensor(colour).view(3, 1, 1) * mask
picture = picture[None]


def draw(axes, image, title):
    """Shows (1, C, H, W) in [0, 1], with -1 and 1 at the outer edges as the transformer counts."""
    axes.imshow(
        image[0].permute(1, 2, 0).clamp(0, 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=(-1, 1, 1, -1),
        interpolation="nearest",
    )
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def look(transform, thetas, size=(64, 64), **how):
    """For each theta: the picture with the lattice that is read (its top edge in red), and below it what the sampler gives."""
    _, rows = plt.subplots(
        2, len(thetas), figsize=(2.6 * len(thetas), 5.2), layout="constrained", squeeze=False
    )
    line = torch.linspace(-1, 1, 40)
    for (title, theta), above, below in zip(thetas.items(), *rows):
        theta = torch.as_tensor(theta, dtype=torch.float32).view(1, -1)
        draw(above, picture, title)
        for level in (1.0, 0.5, 0.0, -0.5, -1.0):
            along = torch.stack([line, torch.full_like(line, level)], dim=1)
            for n, target in enumerate((along.flip(1), along)):
                source = transform(theta, target)[0]
                above.plot(
                    *source.T,
                    color="red" if n and level == -1 else "lime",
                    lw=2 if n and level == -1 else 0.7,
                )
        above.set(xlim=(-1.6, 1.6), ylim=(1.6, -1.6))
        draw(below, sample(picture, transform.grid(theta, size), **how), "what it gives")
    plt.show()


# %% [markdown]
# ## Theta goes from the output to the input
#
# For a point of the **output**, T_theta gives the point of the **input** that is read there. So a window half as wide makes
# things twice as large, and a window that moves right moves things left. Coordinates are (x, y); -1 and 1 are the outer edges
# of the image.
#
# **Affine**, six numbers, the rows of a 2 × 3 matrix: turning, scaling, shearing, moving.

# %%
turn = torch.deg2rad(torch.tensor(30.0))
look(
    Affine(),
    {
        "identity": [1, 0, 0, 0, 1, 0],
        "half as wide": [0.5, 0, 0, 0, 0.5, 0],
        "to the right": [1, 0, 0.5, 0, 1, 0],
        "turned by 30°": [turn.cos(), -turn.sin(), 0, turn.sin(), turn.cos(), 0],
        "sheared": [1, 0.5, 0, 0, 1, 0],
    },
)

# %% [markdown]
# The identity returns its input to float32 rounding. A network that starts there loses nothing.

# %%
for transform in (Affine(), Attention(), Projective(), ThinPlateSpline()):
    theta = transform.identity()[None]
    error = (sample(picture, transform.grid(theta, (64, 64))) - picture).abs().max()
    print(
        f"{type(transform).__name__:16}{transform.n_params:3} numbers   error of the identity: {error:.0e}"
    )

# %% [markdown]
# **Attention**, three numbers `(s, t_x, t_y)`: an upright square. `Attention(0.5)` has a fixed size and two numbers, as for
# birds.

# %%
look(
    Attention(),
    {
        "s = 0.5": [0.5, 0, 0],
        "towards the sun": [0.4, 0.5, -0.5],
        "s = 1.4, reads outside": [1.4, 0, 0],
    },
)

# %% [markdown]
# **Projective**, eight numbers: also foreshortening. The last two are the slope of the plane.

# %%
look(
    Projective(),
    {
        "tilted sideways": [1, 0, 0, 0, 1, 0, 0.4, 0],
        "tilted back": [1, 0, 0, 0, 1, 0, 0, 0.4],
        "both": [0.8, 0, 0, 0, 0.8, 0, 0.3, 0.3],
    },
)

# %% [markdown]
# **Thin plate spline**: theta holds a source point for each control point, all x first and then all y. Between them the plane
# bends as little as it can.

# %%
spline = ThinPlateSpline((4, 4))
generator = torch.Generator().manual_seed(1)
still = spline.identity()
one = still.view(2, 16).clone()
one[:, 5] += 0.4  # a point inside, to the right and down
shaken = still + 0.12 * torch.randn(32, generator=generator)
look(spline, {"identity": still, "one point moved": one.flatten(), "all shaken": shaken})

# %% [markdown]
# ## Kernels
#
# Read several times as fine as the pixels are. *Bilinear* joins the four nearest pixels. *Nearest* copies one, so its output
# does not change when a point moves a little: theta gets no gradient from it. Train with bilinear.

# %%
window = torch.tensor([[0.2, 0, 0.4, 0, 0.2, -0.45]])
figure, row = plt.subplots(1, 2, figsize=(5.2, 2.8), layout="constrained")
for axes, mode in zip(row, ("bilinear", "nearest")):
    theta = window.clone().requires_grad_()
    read = sample(picture, Affine().grid(theta, (64, 64)), mode=mode)
    slope = torch.autograd.grad(read.square().sum(), theta)[0].abs().sum()
    draw(axes, read.detach(), f"{mode}\ngradient of theta {'is 0' if slope == 0 else 'is not 0'}")
plt.show()

# %% [markdown]
# ## What is read outside: `fill`
#
# One number or one for each channel, in units of the input. The mean colour leaves the softest edge.

# %%
mean = picture.mean((0, 2, 3)).tolist()
figure, row = plt.subplots(1, 3, figsize=(7.8, 2.8), layout="constrained")
grid = Affine().grid(torch.tensor([[1.1, -0.6, 0, 0.6, 1.1, 0]]), (64, 64))
for axes, (title, fill) in zip(
    row, {"fill=0.0": 0.0, "fill=1.0": 1.0, "fill=[mean of each channel]": mean}.items()
):
    draw(axes, sample(picture, grid, fill=fill), title)
plt.show()

# %% [markdown]
# ## Output size and aliasing
#
# The output may have any size. A small one reads few points, and the kernel is as narrow as ever: what lies between the
# points is not seen, and fine rings turn into rings that are not there. The way out is to average first, and read the smaller
# image. That is why a localisation network for large images pools before it looks, and why a large window with a small output
# loses detail.

# %%
v, u = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
rings = (0.5 + 0.5 * torch.cos(160 * (u**2 + v**2)))[None, None]
grid = Affine().grid(Affine().identity()[None], (64, 64))
figure, row = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
draw(row[0], rings, "input, 256 × 256")
draw(row[1], sample(rings, grid), "read at 64 × 64 points: false rings")
draw(row[2], sample(F.avg_pool2d(rings, 4), grid), "averaged by 4, then read")
plt.show()

# %% [markdown]
# ## A glance at three dimensions
#
# `Affine3d` takes twelve numbers, the rows of a 3 × 4 matrix, and volumes `(B, C, D, H, W)`. Here the F is extruded, turned
# about its upright axis, and looked at from the front: the mean over the depth.

# %%
volume = torch.zeros(1, 1, 64, 64, 64)
volume[:, :, 22:42] = letter
figure, row = plt.subplots(1, 4, figsize=(10.4, 2.8), layout="constrained")
for axes, degrees in zip(row, (0, 30, 60, 90)):
    a = torch.deg2rad(torch.tensor(float(degrees)))
    theta = torch.tensor([[a.cos(), 0, a.sin(), 0, 0, 1, 0, 0, -a.sin(), 0, a.cos(), 0]])
    turned = sample(volume, Affine3d().grid(theta, (64, 64, 64)))
    front = turned.mean(2)
    draw(axes, front / front.max(), f"turned by {degrees}°")
plt.show()

# %% [markdown]
# ## By hand
#
# Where the notebook runs, the sliders move the window. Elsewhere the picture is that of their first positions.


# %%
def by_hand(scale=0.7, degrees=20.0, right=0.1, down=0.0, tilt=0.0):
    """An affine window, tilted."""
    a = torch.deg2rad(torch.tensor(degrees))
    rows = [
        scale * a.cos(),
        -scale * a.sin(),
        right,
        scale * a.sin(),
        scale * a.cos(),
        down,
        tilt,
        0,
    ]
    look(Projective(), {"your window": rows})


interact(
    by_hand,
    scale=(0.1, 2, 0.05),
    degrees=(-180, 180, 5.0),
    right=(-1, 1, 0.05),
    down=(-1, 1, 0.05),
    tilt=(-0.8, 0.8, 0.05),
)
