"""Adversarial training of a StyleGAN2 generator, on rendered critters or on a folder of images.

Karras et al. (CVPR 2020) with the settings of NVIDIA's stylegan2-ada-pytorch for small images: non-saturating loss,
lazy R1, style mixing, an exponential moving average of the generator, optional path-length regularisation. The moving
average is exported.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from autodrag.checkpoint import load_generator, save_generator
from autodrag.data.image_array import (
    ImageStream,
    critters_array,
    folder_array,
    open_array,
    read_record,
    record_path,
)
from autodrag.errors import AutodragError
from autodrag.images import write_png
from autodrag.nets.discriminator import Discriminator, DiscriminatorConfig
from autodrag.nets.growing import grow_generator
from autodrag.nets.stylegan2 import Generator, GeneratorConfig, upsample
from autodrag.train.base import RunConfig, TrainingModule, data_progress, parse_config, prepare_torch, run_training
from autodrag.train.losses import discriminator_loss, generator_loss, path_length_penalty, r1_penalty


@dataclass(frozen=True)
class GeneratorDataConfig:
    """The real pictures."""

    folder: Path | None = None
    """A folder of pictures, searched with its subfolders; none renders critters."""
    cache: Path | None = None
    """File (.npy) for the pictures as one uint8 array. It is made if it is missing. The array of a folder is made again
    if the folder or a setting has changed. None: `pictures.npy` in the run's folder, or runs/data/critters.npy for
    critters."""
    background: str = "white"
    """Colour under transparent pictures of the folder: a name or a hexadecimal number such as '#808080'."""
    skip_broken: bool = False
    """Train without the files of the folder that cannot be used, instead of stopping."""
    count: int = 15000
    """Critters to render. A folder gives all of its pictures."""
    seed: int = 1
    """Seed of the rendered critters."""
    mirror: bool = True
    """Mirror every second picture."""

    def __post_init__(self) -> None:
        if self.cache is not None and self.cache.suffix != ".npy":
            raise ValueError(f"data.cache {str(self.cache)!r}: expected a file name that ends in .npy.")
        _ = self.background_rgb

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The colour as RGB, 0..255."""
        from PIL import ImageColor

        try:
            red, green, blue, *opacity = ImageColor.getrgb(self.background)
            if opacity:
                raise ValueError("a background is opaque")
        except ValueError:
            raise ValueError(
                f"data.background {self.background!r}: expected an opaque colour such as white or '#808080'."
            ) from None
        return red, green, blue


@dataclass(frozen=True)
class AdversarialConfig:
    """Optimisation settings."""

    images: int = 300_000
    """Total number of real images seen in training."""
    batch: int = 16
    """Images per step."""
    generator_lr: float = 2.5e-3
    """Learning rate of the generator (Adam, betas 0 and 0.99)."""
    discriminator_lr: float = 2.5e-3
    """Learning rate of the discriminator (Adam)."""
    warmup_images: int = 20_000
    """With `start`: number of images for which only the new discriminator is trained. If the generator grows, the real
    images are downsampled to the old resolution meanwhile, because the discriminator would otherwise learn only to
    detect blur."""
    fade_images: int = 20_000
    """With `start`: number of images after the warm-up during which the generator's learning rate increases from 0 and,
    if it grows, the real images become sharp. With the full rate from the first step, the generator fooled a trained
    discriminator within 400 images, and the discriminator did not recover."""
    r1_gamma: float = 0.1
    """Weight of R1; NVIDIA's heuristic is 2e-4 * pixels / batch."""
    r1_interval: int = 16
    """Number of steps between R1 steps (lazy regularisation)."""
    path_length_weight: float = 0.0
    """Weight of path-length regularisation; 0 disables it. NVIDIA's large configs use 2."""
    path_length_interval: int = 4
    """Number of steps between path-length steps."""
    style_mixing: float = 0.5
    """Probability that the layers from a random layer on get another latent vector."""
    ema_images: float = 5_000.0
    """Half-life of the generator's moving average, in images."""
    ema_rampup: float = 0.05
    """Maximum half-life, as a fraction of the images seen so far."""
    w_avg_decay: float = 0.995
    """Decay of the average latent per step."""
    grid_images: int = 10_000
    """Number of images between sample grids."""

    def __post_init__(self) -> None:
        if self.batch < 2 or self.images < self.batch:
            raise ValueError(f"batch {self.batch}, images {self.images}: expected 2 <= batch <= images.")
        if min(self.generator_lr, self.discriminator_lr) <= 0:
            raise ValueError(
                f"generator_lr {self.generator_lr}, discriminator_lr {self.discriminator_lr}: expected > 0."
            )
        if self.r1_gamma < 0 or not 0 <= self.style_mixing <= 1:
            raise ValueError("expected r1_gamma >= 0 and style_mixing in [0, 1].")
        if min(self.warmup_images, self.fade_images) < 0:
            raise ValueError("expected warmup_images >= 0 and fade_images >= 0.")


@dataclass(frozen=True)
class GeneratorTraining:
    """Adversarial training of a StyleGAN2 generator."""

    run: RunConfig
    """Folder, precision, saving."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The network. The discriminator gets the same sizes."""
    start: Path | None = None
    """A checkpoint folder or `generator.safetensors` to continue from. `generator` may have a higher resolution or more
    channels: new blocks and channels are added, and the first images are the old images, upsampled."""
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    """The real images."""
    training: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Optimisation settings."""

    @property
    def cache(self) -> Path:
        """The file that holds the pictures as one array."""
        if self.data.cache is not None:
            return self.data.cache
        return Path("runs/data/critters.npy") if self.data.folder is None else self.run.folder / "pictures.npy"


class AdversarialModule(TrainingModule):
    """Generator, its moving average, and discriminator. A step trains both networks on one batch of real images."""

    mean_length: Tensor

    def __init__(self, config: GeneratorTraining) -> None:
        super().__init__()
        self.config, self.hp = config, config.training
        net = config.generator
        self.start_size = (0, 0)
        generator = Generator(net) if config.start is None else self.load_start(config.start)
        # channels_last doubles the speed of convolutions on CPUs and on tensor cores.
        self.generator = generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = Discriminator(
            DiscriminatorConfig(net.resolution, net.base_width, net.channel_base, net.channel_max)
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.register_buffer("mean_length", torch.zeros([]))
        self.grid_z = torch.randn(48, net.z_dim, generator=torch.Generator().manual_seed(config.run.seed))

    def load_start(self, path: Path) -> Generator:
        """Load the generator to continue from, and grow it to the configured sizes."""
        old, _ = load_generator(path)
        self.start_size = old.config.image_size
        try:
            return grow_generator(old, self.config.generator)
        except ValueError as problem:
            raise AutodragError(f"training cannot start from {str(path)!r}: {problem}") from None

    @property
    def warmup_steps(self) -> int:
        """Number of first steps that train only the discriminator."""
        return 0 if self.config.start is None else math.ceil(self.hp.warmup_images / self.hp.batch)

    @property
    def faded(self) -> float:
        """Progress of the transition after the warm-up, 0 to 1."""
        if self.config.start is None or not self.hp.fade_images:
            return 1.0
        return min(1.0, max(0.0, (self.step - self.warmup_steps) * self.hp.batch / self.hp.fade_images))

    def fade(self, real: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Blur real images to the sharpness intended for the grown generator at this step."""
        if self.faded == 1 or self.start_size == self.config.generator.image_size:
            return real
        blurred = F.adaptive_avg_pool2d(real, self.start_size)
        with torch.autocast(self.device.type, enabled=False):
            while blurred.shape[2] < real.shape[2]:
                blurred = upsample(blurred)
        return blurred.lerp(real, self.faded)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for both networks, with learning rate and betas corrected for the steps of lazy regularisation."""

        def adam(parameters: Any, lr: float, ratio: float) -> torch.optim.Adam:
            return torch.optim.Adam(parameters, lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)

        r1 = _lazy_ratio(self.hp.r1_interval, self.hp.r1_gamma)
        return [
            adam(self.generator.parameters(), self.hp.generator_lr, self.path_ratio),
            adam(self.discriminator.parameters(), self.hp.discriminator_lr, r1),
        ]

    @property
    def path_ratio(self) -> float:
        """Correction of the generator's learning rate and betas for lazy path-length regularisation."""
        return _lazy_ratio(self.hp.path_length_interval, self.hp.path_length_weight)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Stream of real images, starting at the current step."""
        total = math.ceil(self.hp.images / self.hp.batch)
        stream = ImageStream(
            open_array(self.config.cache),
            batch=self.hp.batch,
            first=self.step,
            total=total,
            seed=self.config.run.seed,
            mirror=self.config.data.mirror,
        )
        return DataLoader(stream, batch_size=None)

    def latents(self, batch: int, *, move_average: bool = True) -> Float[Tensor, "B L D"]:
        """Mapped codes with style mixing. `move_average` also updates the average latent."""
        w = self.generator.mapping(torch.randn(batch, self.config.generator.z_dim, device=self.device))
        if move_average:
            w_avg = self.generator.mapping.w_avg
            w_avg.lerp_(w.detach().float().mean(dim=0), 1 - self.hp.w_avg_decay)
        layers = self.config.generator.latent_layers
        latent = w[:, None].repeat(1, layers, 1)
        if self.hp.style_mixing and torch.rand([]) < self.hp.style_mixing:
            cut = int(torch.randint(1, layers, []))
            other = self.generator.mapping(torch.randn(batch, self.config.generator.z_dim, device=self.device))
            latent = torch.cat([latent[:, :cut], other[:, None].expand(-1, layers - cut, -1)], dim=1)
        return latent

    def training_step(self, batch: Float[Tensor, "B 3 H W"], batch_idx: int) -> None:
        real = self.fade(batch).contiguous(memory_format=torch.channels_last)
        with self.update():
            self.step_both(real)

    def step_both(self, real: Float[Tensor, "B 3 H W"]) -> None:
        """One step of the discriminator, then one of the generator."""
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[attr-defined]
        # Codes and noise depend only on (seed, step), so that a resumed run equals an uninterrupted run.
        torch.manual_seed(self.config.run.seed * 1_000_003 + self.step)

        # Both networks use the same generated images; the discriminator gets them detached, first.
        moves = self.step >= self.warmup_steps
        with torch.set_grad_enabled(moves):
            latent = self.latents(len(real), move_average=moves)
            fake = self.generator(latent, noise="random").contiguous(memory_format=torch.channels_last)
        loss_d = discriminator_loss(*self.judge(real, fake.detach()))
        optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()
        if self.hp.r1_gamma and self.step % self.hp.r1_interval == 0:
            self.regularise_discriminator(real, optimizer_d)

        losses = {"loss/discriminator": loss_d.detach()}
        if moves:
            self.discriminator.requires_grad_(False)
            loss_g = generator_loss(self.discriminator(fake))
            for group in optimizer_g.param_groups:
                group["lr"] = self.hp.generator_lr * self.path_ratio * self.faded
            optimizer_g.zero_grad()
            self.manual_backward(loss_g)
            optimizer_g.step()
            if self.hp.path_length_weight and self.step % self.hp.path_length_interval == 0:
                self.regularise_generator(optimizer_g)
            self.discriminator.requires_grad_(True)
            losses["loss/generator"] = loss_g.detach()

        self.step += 1
        if moves:
            self.move_average(len(real))
        self.log_dict(losses)
        if not all(torch.isfinite(loss) for loss in losses.values()):
            raise AutodragError(
                f"the loss is not finite at step {self.step}; the last saved state is kept. Resume with a lower "
                "training.generator_lr and training.discriminator_lr."
            )

    def judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of real and fake images, computed separately so that minibatch statistics do not mix them."""
        return self.discriminator(real), self.discriminator(fake)

    def regularise_discriminator(self, real: Tensor, optimizer: Any) -> None:
        """One step of lazy R1, with the weight multiplied by the interval; in fp32, because its gradients are small."""
        real = real.detach().requires_grad_()
        with torch.autocast(self.device.type, enabled=False):
            penalty = r1_penalty(self.discriminator(real), real)
        optimizer.zero_grad()
        self.manual_backward(penalty * (self.hp.r1_gamma / 2 * self.hp.r1_interval))
        optimizer.step()
        self.log("loss/r1", penalty.detach())

    def regularise_generator(self, optimizer: Any) -> None:
        """One step of lazy path-length regularisation on half a batch."""
        latent = self.latents(max(1, self.hp.batch // 2))
        with torch.autocast(self.device.type, enabled=False):
            images = self.generator(latent, noise="random")
            penalty, mean_length = path_length_penalty(images, latent, self.mean_length)
        self.mean_length.copy_(mean_length)
        optimizer.zero_grad()
        self.manual_backward(penalty * (self.hp.path_length_weight * self.hp.path_length_interval))
        optimizer.step()
        self.log("loss/path_length", penalty.detach())

    @torch.no_grad()
    def move_average(self, batch: int) -> None:
        """Update the moving average of the weights; buffers are copied."""
        half_life = min(self.hp.ema_images, self.step * batch * self.hp.ema_rampup)
        decay = 0.5 ** (batch / max(half_life, 1e-8))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.average.parameters()), list(self.generator.parameters()), self.step)
        for mean, value in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(value)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        every = max(1, self.hp.grid_images // self.hp.batch)
        if self.step % every == 0:
            self.write_grid()

    @torch.no_grad()
    def write_grid(self) -> None:
        """Write 48 images of the moving average at psi 0.8 to TensorBoard and to a PNG in the run folder."""
        images = self.average(self.average.map(self.grid_z.to(self.device), psi=0.8))
        rows = images.float().clamp(-1, 1).unflatten(0, (6, 8))
        grid = rows.permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)  # (3, 6 H, 8 W)
        if self.logger is not None:
            self.logger.experiment.add_image("samples", (grid + 1) / 2, self.step)  # type: ignore[attr-defined]
        pixels = ((grid + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        write_png(self.config.run.folder / "grids" / f"{self.step * self.hp.batch:08d}.png", pixels)

    def export(self, path: Path) -> None:
        """Write the moving average as a release file (fp16), with the number of images seen in its metadata."""
        extra = {"images_seen": self.step * self.hp.batch, "training": asdict(self.hp)}
        save_generator(path, self.average, dtype=torch.float16, extra=extra)


def _lazy_ratio(interval: int, weight: float) -> float:
    """Fraction of steps that are not regularisation steps, with one regularisation step per `interval` steps."""
    return interval / (interval + 1) if weight else 1.0


def prepare_data(config: GeneratorTraining) -> None:
    """Makes the array of real pictures if it is missing or outdated. Raises AutodragError before any training."""
    data, cache = config.data, config.cache
    if data.folder is None:
        if config.generator.base_width != 4:
            raise AutodragError("critters are square; set generator.base_width to 4 or train on a folder of images.")
        critters_array(
            cache,
            count=data.count,
            size=config.generator.resolution,
            seed=data.seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
            progress=data_progress(),
        )
        return
    for name, place in (("run.folder", config.run.folder), ("data.cache", cache)):
        if place.resolve().is_relative_to(data.folder.resolve()):
            raise AutodragError(
                f"{name} {str(place)!r} lies inside data.folder {str(data.folder)!r}, where nothing is written; "
                f"choose another {name}."
            )
    folder_array(
        cache,
        data.folder,
        size=config.generator.image_size,
        background=data.background_rgb,
        skip_broken=data.skip_broken,
        progress=data_progress(),
    )
    record = read_record(cache)
    if record is not None and record.unusable:
        print(f"{len(record.unusable)} of {record.done} pictures are skipped; {record_path(cache)} lists them")


def train(config: GeneratorTraining) -> Path:
    """Run or resume the training. Returns the path of the exported generator.safetensors."""
    prepare_torch(config.run)
    prepare_data(config)
    module = AdversarialModule(config)
    batch = config.training.batch
    run_training(module, config.run, batch=batch, total_steps=math.ceil(config.training.images / batch))
    module.write_grid()
    out = config.run.folder / "generator.safetensors"
    module.export(out)
    return out


def main(argv: list[str]) -> int:
    """`autodrag train generator`."""
    print(train(parse_config(GeneratorTraining, "generator", argv)))
    return 0
