"""Sample images for prompts. An image depends on the model, its prompt, its round and index, and the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dpt.claims.facts import Prompt
from dpt.data.files.reading import Row
from dpt.data.images import draw_missing, is_whole_image
from dpt.distributed import ONE_PROCESS, Processes
from dpt.errors import UserError
from dpt.methods.ipr.config import SampleConfig
from dpt.methods.ipr.folders import RECORD, SampledImage, StageFolder, read_stage, text_digest
from dpt.methods.ipr.prompts import read_prompts, row_of, write_prompts
from dpt.untrusted import MOST_IMAGES

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from dpt.backbone import Backbone
    from dpt.sampling.draw import Request, SamplingSettings

SAMPLE = "sample"

PROMPTS = "prompts.json"

BATCH = 16


@dataclass(frozen=True)
class ModelState:
    """The model of a round: a model folder or hub id, and the LoRA that was trained in it."""

    base: str
    lora: Path | None = None
    """A checkpoint with a LoRA."""

    def open(self, dtype: str | None = None) -> Backbone:
        """On this process's device, with the LoRA merged."""
        from dpt.backbone import open_backbone
        from dpt.checkpoints import open_checkpoint
        from dpt.embedded import model_location

        backbone = open_backbone(model_location(self.base), dtype=dtype)
        if self.lora is not None:
            lora = open_checkpoint(self.lora).attach(backbone)
            if lora is None:
                raise UserError(f"{self.lora} has no LoRA")
            lora.merge()
        return backbone

    def identity(self) -> dict[str, str]:
        """Hashes of the weights, read without loading a model."""
        from dpt.backbone.identity import model_hash
        from dpt.backbone.loading import locate_model
        from dpt.backbone.opening import model_folder
        from dpt.checkpoints import open_checkpoint
        from dpt.embedded import model_location
        from dpt.weights import content_hash

        base = model_hash(model_folder(locate_model(model_location(self.base))))
        if self.lora is None:
            return {"model": base}
        checkpoint = open_checkpoint(self.lora)
        if checkpoint.lora is None:
            raise UserError(f"{self.lora} has no LoRA")
        return {"model": base, "lora": content_hash(checkpoint.lora.tensors)}


def images_of(prompts: Sequence[Prompt], per_prompt: int, round_: int) -> list[SampledImage]:
    return [SampledImage(prompt, index, round_) for prompt in prompts for index in range(per_prompt)]


def request_of(image: SampledImage, seed: int) -> Request:
    from dpt.backbone.rng import derived_seed
    from dpt.sampling.draw import Request

    return Request(image.prompt.text, derived_seed(seed, image.round, f"ipr/{image.prompt.id}"), image.index)


def settings_of(config: SampleConfig, backbone: Backbone) -> SamplingSettings:
    from dpt.sampling.draw import SamplingSettings

    scale = config.guidance_scale
    scale = backbone.generation_defaults.guidance_scale if scale is None else scale
    return SamplingSettings(config.num_timesteps, scale, config.scheduler)


def sample(
    prompts: Sequence[Prompt],
    model: ModelState,
    config: SampleConfig,
    out: Path,
    *,
    round_: int = 0,
    seed: int = 0,
    dtype: str | None = None,
    group: Processes = ONE_PROCESS,
    on_done: Callable[[int], None] = lambda n: None,
) -> StageFolder:
    """Write an image per prompt and index, and the prompts. Images of an interrupted run are kept."""
    from dpt.records import to_plain

    images = images_of(prompts, config.per_prompt, round_)
    digest = text_digest([row_of(prompt) for prompt in prompts])
    inputs = {**model.identity(), **to_plain(config), "prompts": digest, "round": round_, "seed": seed, "dtype": dtype}
    stage = StageFolder(out, inputs)
    if group.from_main(stage.is_complete):
        return stage
    work = Path(group.from_main(lambda: str(stage.begin())))
    backbone = cache(lambda: model.open(dtype))

    def draw_batch(batch: Sequence[SampledImage]) -> Iterator[PILImage.Image]:
        from dpt.data.images import to_pil
        from dpt.sampling.draw import draw

        settings = settings_of(config, backbone())
        requests = [request_of(image, seed) for image in batch]
        return map(to_pil, draw(backbone(), requests, settings, batch_size=BATCH, exact=not config.batched))

    draw_missing(_batches(images, config), work, draw_batch, group, on_done)

    def finish() -> None:
        write_prompts(prompts, work / PROMPTS)
        stage.finish(stage=SAMPLE, images=len(images))

    group.from_main(finish)
    return stage


def _batches(images: Sequence[SampledImage], config: SampleConfig) -> list[Sequence[SampledImage]]:
    """Images that are sampled together: always the same, so that an interruption changes nothing."""
    from dpt.backbone.device import resolve_device

    size = BATCH if config.batched or resolve_device().type != "cpu" else 1
    return [images[start : start + size] for start in range(0, len(images), size)]


def images_in(folder: Path) -> int:
    """The number of images of a finished folder."""
    return Row(read_stage(folder, SAMPLE), str(folder / RECORD)).get("images", int)


def sampled_images(folder: Path) -> list[SampledImage]:
    """The images of a finished folder; each file is there and complete."""
    record = read_stage(folder, SAMPLE)
    inputs = Row(record.get("inputs"), str(folder / RECORD))
    per_prompt, round_ = inputs.get("per_prompt", int), inputs.get("round", int)
    if not (1 <= per_prompt <= MOST_IMAGES and 0 <= round_ < MOST_IMAGES):
        inputs.fail(f"per_prompt is from 1 to {MOST_IMAGES:,} and round from 0 up, not {per_prompt} and {round_}")
    prompts = [replace(prompt, where="") for prompt in read_prompts(folder / PROMPTS)]
    images = images_of(prompts, per_prompt, round_)
    for image in images:
        check_image(folder, image)
    return images


def check_image(folder: Path, image: SampledImage) -> None:
    file = folder / image.file_name
    if not file.exists():
        raise UserError(f"the image {file} is missing: delete the folder {folder} and sample again")
    if not is_whole_image(file):
        raise UserError(f"the image {file} is damaged: delete the folder {folder} and sample again")
