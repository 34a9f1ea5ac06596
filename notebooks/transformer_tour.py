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
# # A tour of the spatial transformer
#
# A spatial transformer samples its input at a grid of points, which is defined by parameters
# *theta*. Usually a localisation network predicts theta. In this notebook we choose it ourselves to
# see what each transform and each sampling kernel does.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ipywidgets import interact

from spatial_transformer import Affine, Affine3d, Attention, Projective, ThinPlateSpline, sample

plt.rcParams["figure.dpi"] = 75

# %% [markdown]
# ## A test image
#
# The letter F differs from all its rotations and reflections, so you can see how it was warped.
# Images have shape `(B, C, H, W)`.

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
    """Draw a (1, C, H, W) image in [0, 1] with -1 and 1 at its outer edges."""
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


def show_warps(transform, thetas, size=(64, 64)):
    """For each theta, draw the sampling grid on the input (top edge in red), and the output."""
    _, rows = plt.subplots(
        2, len(thetas), figsize=(2.6 * len(thetas), 5.2), layout="constrained", squeeze=False
    )
    line = torch.linspace(-1, 1, 40)
    for (title, theta), above, below in zip(thetas.items(), *rows):
        theta = torch.as_tensor(theta, dtype=torch.float32).view(1, -1)
        draw(above, picture, title)
        for level in (1.0, 0.5, 0.0, -0.5, -1.0):
            horizontal = torch.stack([line, torch.full_like(line, level)], dim=1)
            for target in (horizontal.flip(1), horizontal):
                is_top = target is horizontal and level == -1
                source = transform(theta, target)[0]
                above.plot(*source.T, color="red" if is_top else "lime", lw=2 if is_top else 0.7)
        above.set(xlim=(-1.6, 1.6), ylim=(1.6, -1.6))
        draw(below, sample(picture, transform.grid(theta, size)), "output")
    plt.show()


# %% [markdown]
# ## Theta maps output to input
#
# For each point of the **output**, T_theta gives the point of the **input** to sample. So a grid
# half as wide magnifies by two, and a grid that moves right shifts the content left. Coordinates
# are (x, y), and -1 and 1 are the outer edges of the image.
#
# **Affine** has six parameters, the rows of a 2 × 3 matrix: rotation, scale, shear and translation.

# %%
angle = torch.deg2rad(torch.tensor(30.0))
show_warps(
    Affine(),
    {
        "identity": [1, 0, 0, 0, 1, 0],
        "half as wide": [0.5, 0, 0, 0, 0.5, 0],
        "moved right": [1, 0, 0.5, 0, 1, 0],
        "rotated by 30°": [angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0],
        "sheared": [1, 0.5, 0, 0, 1, 0],
    },
)

# %% [markdown]
# The identity reproduces the input up to float32 rounding, so a transformer that starts there does
# not change the network.

# %%
for transform in (Affine(), Attention(), Projective(), ThinPlateSpline()):
    theta = transform.identity()[None]
    error = (sample(picture, transform.grid(theta, (64, 64))) - picture).abs().max()
    name = type(transform).__name__
    print(f"{name:16}{transform.n_params:3} parameters   error of the identity: {error:.0e}")

# %% [markdown]
# **Attention** has three parameters `(s, t_x, t_y)` and samples an upright square. `Attention(0.5)`
# fixes its size and has two parameters, as in the bird experiments.

# %%
show_warps(
    Attention(),
    {
        "s = 0.5": [0.5, 0, 0],
        "s = 0.4, at the sun": [0.4, 0.5, -0.5],
        "s = 1.4, beyond the image": [1.4, 0, 0],
    },
)

# %% [markdown]
# **Projective** has eight parameters and adds perspective: the last two tilt the plane.

# %%
show_warps(
    Projective(),
    {
        "tilted sideways": [1, 0, 0, 0, 1, 0, 0.4, 0],
        "tilted back": [1, 0, 0, 0, 1, 0, 0, 0.4],
        "both": [0.8, 0, 0, 0, 0.8, 0, 0.3, 0.3],
    },
)

# %% [markdown]
# **Thin plate spline**: theta holds a source point for each control point, first all x and then all
# y. Between the control points the spline minimises the bending energy.

# %%
spline = ThinPlateSpline((4, 4))
generator = torch.Generator().manual_seed(1)
identity = spline.identity()
moved = identity.view(2, 16).clone()
moved[:, 5] += 0.4  # an inner point, to the right and down
noisy = identity + 0.12 * torch.randn(32, generator=generator)
thetas = {"identity": identity, "one point moved": moved.flatten(), "Gaussian noise": noisy}
show_warps(spline, thetas)

# %% [markdown]
# ## Sampling kernels
#
# Here the output has several samples per input pixel. *Bilinear* interpolates between the four
# nearest pixels. *Nearest* copies one pixel, so its output does not change when a point moves
# slightly, and theta gets no gradient. So use bilinear for training.

# %%
window = torch.tensor([[0.2, 0, 0.4, 0, 0.2, -0.45]])
figure, row = plt.subplots(1, 2, figsize=(5.2, 2.8), layout="constrained")
for axes, mode in zip(row, ("bilinear", "nearest")):
    theta = window.clone().requires_grad_()
    output = sample(picture, Affine().grid(theta, (64, 64)), mode=mode)
    gradient = torch.autograd.grad(output.square().sum(), theta)[0].abs().sum()
    draw(axes, output.detach(), f"{mode}\n|gradient of theta| = {gradient:.0f}")
plt.show()

# %% [markdown]
# ## Outside the input: `fill`
#
# Points outside the input read `fill`, which is one number, or one per channel, in units of the
# input. The mean colour gives the weakest edge.

# %%
mean = picture.mean((0, 2, 3)).tolist()
figure, row = plt.subplots(1, 3, figsize=(7.8, 2.8), layout="constrained")
grid = Affine().grid(torch.tensor([[1.1, -0.6, 0, 0.6, 1.1, 0]]), (64, 64))
fills = {"fill=0.0": 0.0, "fill=1.0": 1.0, "fill=mean colour": mean}
for axes, (title, fill) in zip(row, fills.items()):
    draw(axes, sample(picture, grid, fill=fill), title)
plt.show()

# %% [markdown]
# ## Output size and aliasing
#
# The output may have any size. If it is small, its samples are far apart, and because a bilinear
# kernel covers only the pixels next to each sample, it misses those in between. Fine structure then
# turns into false patterns (aliasing). To avoid this, average the input first and sample the
# smaller image, or set `antialias=True` in `sample` or `SpatialTransformer`.

# %%
v, u = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
rings = (0.5 + 0.5 * torch.cos(160 * (u**2 + v**2)))[None, None]
grid = Affine().grid(Affine().identity()[None], (64, 64))
figure, row = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
draw(row[0], rings, "input, 256 × 256")
draw(row[1], sample(rings, grid), "sampled at 64 × 64: aliasing")
draw(row[2], sample(F.avg_pool2d(rings, 4), grid), "averaged 4 × 4, then sampled")
plt.show()

# %% [markdown]
# ## Three dimensions
#
# `Affine3d` has twelve parameters, the rows of a 3 × 4 matrix, for volumes `(B, C, D, H, W)`. Here
# we extrude the F, rotate it about its vertical axis, and average over depth to see it from the
# front.

# %%
volume = torch.zeros(1, 1, 64, 64, 64)
volume[:, :, 22:42] = letter
figure, row = plt.subplots(1, 4, figsize=(10.4, 2.8), layout="constrained")
for axes, degrees in zip(row, (0, 30, 60, 90)):
    a = torch.deg2rad(torch.tensor(float(degrees)))
    theta = torch.tensor([[a.cos(), 0, a.sin(), 0, 0, 1, 0, 0, -a.sin(), 0, a.cos(), 0]])
    front = sample(volume, Affine3d().grid(theta, (64, 64, 64))).mean(2)
    draw(axes, front / front.max(), f"rotated by {degrees}°")
plt.show()

# %% [markdown]
# ## Try it yourself
#
# In a running notebook, the sliders change theta. The figure below shows their initial values.


# %%
def show_window(scale=0.7, degrees=20.0, right=0.1, down=0.0, tilt=0.0):
    """Draw an affine window with perspective."""
    a = torch.deg2rad(torch.tensor(degrees))
    cos, sin = scale * a.cos(), scale * a.sin()
    show_warps(Projective(), {"your window": [cos, -sin, right, sin, cos, down, tilt, 0]})


show_window()

# %%
interact(
    show_window,
    scale=(0.1, 2, 0.05),
    degrees=(-180, 180, 5.0),
    right=(-1, 1, 0.05),
    down=(-1, 1, 0.05),
    tilt=(-0.8, 0.8, 0.05),
)
