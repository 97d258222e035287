"""Other ways to make the edits: inpainting and instruction pipelines of diffusers; and an image-to-image refiner.

None is used by default. Folders are read as diffusers reads them: safetensors only, no code of the folder's, no
download.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from dpt.backbone.device import resolve_device
from dpt.backbone.identity import remembered_hash
from dpt.backbone.loading import first_line, quiet_libraries
from dpt.claims.layout import Edit, changes
from dpt.data.images import from_pil
from dpt.detect.base import Image
from dpt.detect.masks import Mask, dilated
from dpt.errors import UserError
from dpt.files import sha256
from dpt.methods.sld.engine import EditedImage, EditEngine, EditPlan

EditorKind = Literal["inpaint", "instruct"]


class Editor(Protocol):
    """Makes all edits of a round. `EditEngine` is the default."""

    def edit(
        self,
        image: Image,
        edits: Sequence[Edit],
        prompt: str,
        seed: int,
        strength: float | None = None,
        background: str = "",
    ) -> EditedImage: ...


class InpaintingEditor(EditEngine):
    """Composes as the engine does; an inpainting pipeline then denoises what was edited.

    Works with the inpainting pipelines of diffusers, with Flux Fill, and with plain models that diffusers can inpaint.
    """

    def __init__(self, pipeline: Any, *engine: Any) -> None:
        """Behind the pipeline, the arguments of `EditEngine`."""
        super().__init__(*engine)
        self.pipeline = pipeline

    def _denoise(self, plan: EditPlan, mask: Mask, prompts: tuple[str, str], seed: int, free_from: int) -> Tensor:
        """Regions with a prompt of their own are drawn from noise first, one after the other; then all edits."""
        image = PILImage.fromarray(plan.composition.image)
        for number, (region, text, step) in enumerate(plan.regions):
            image = self._inpaint(image, region, text, seed + number + 1, step)
        return from_pil(self._inpaint(image, mask, prompts[0], seed, free_from))

    def _inpaint(self, image: PILImage.Image, mask: Mask, prompt: str, seed: int, free_from: int) -> PILImage.Image:
        """The image with the mask denoised from this step on."""
        steps = self.settings.num_timesteps
        strength = 1 - min(max(free_from, 0), steps - 1) / steps
        grown = dilated(mask, self.settings.context * self.backbone.vae_scale_factor)
        options: dict[str, Any] = {"guidance_scale": self.guidance_scale, "num_inference_steps": steps}
        if "strength" in _parameters(self.pipeline):
            options["strength"] = strength
        shown = _run(
            self.pipeline,
            seed,
            prompt=prompt,
            image=_padded(image),
            mask_image=_padded(PILImage.fromarray(grown.astype(np.uint8) * 255)),
            height=_whole(image.height),
            width=_whole(image.width),
            **options,
        )
        self.on_calls(2 * max(1, round(strength * steps)))
        return shown.crop((0, 0, *image.size))


@dataclass(frozen=True)
class InstructionEditor:
    """Gives a pipeline each edit as an instruction: Flux Kontext, Qwen-Image-Edit, InstructPix2Pix.

    The pipeline redraws the whole image: pixels away from the edits are not kept.
    """

    pipeline: Any
    num_timesteps: int
    guidance_scale: float | None = None
    """None: the pipeline's own."""

    def edit(
        self,
        image: Image,
        edits: Sequence[Edit],
        prompt: str,
        seed: int,
        strength: float | None = None,
        background: str = "",
    ) -> EditedImage:
        """Edit after edit; `strength` and `background` have no counterpart."""
        to_make = changes(edits)
        if not to_make:
            return EditedImage(image, np.zeros(image.shape[:2], bool))
        picture = PILImage.fromarray(image)
        size = picture.size
        options = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        for number, edit in enumerate(to_make):
            picture = _run(
                self.pipeline,
                seed + number,
                prompt=instruction_text(edit),
                image=picture,
                num_inference_steps=self.num_timesteps,
                **options,
            ).resize(size, PILImage.Resampling.LANCZOS)
        return EditedImage(np.asarray(picture), np.ones(image.shape[:2], bool))


def instruction_text(edit: Edit) -> str:
    """An edit as one would write it to an instruction model: without numbers of objects."""
    if edit.goal is None:
        assert edit.current is not None
        return f"remove the {edit.current.name}"
    return edit.in_words if edit.current is None else edit.in_words.replace(edit.current.id, f"the {edit.current.name}")


@dataclass(frozen=True)
class Refiner:
    """Noises a finished image a little and denoises it under its prompt, as SLD's demo does with SDXL's refiner."""

    pipeline: Any
    identity: str
    strength: float = 0.3
    num_timesteps: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or int(self.strength * self.num_timesteps) < 1:
            raise UserError(
                f"--refiner_strength is above 0 and at most 1, and leaves at least one of {self.num_timesteps} steps, "
                f"not {self.strength:g}"
            )

    def __call__(self, image: Image, prompt: str, seed: int) -> Image:
        """Of the same size."""
        picture = PILImage.fromarray(image)
        refined = _run(
            self.pipeline,
            seed,
            prompt=prompt,
            image=_padded(picture),
            strength=self.strength,
            num_inference_steps=self.num_timesteps,
        )
        if refined.size != _padded(picture).size:
            refined = refined.resize(_padded(picture).size, PILImage.Resampling.LANCZOS)
        return np.asarray(refined.crop((0, 0, *picture.size)))


def parse_editor(text: str) -> tuple[EditorKind, Path] | None:
    """ "latents" (None), "inpaint=FOLDER" or "instruct=FOLDER"."""
    kind, _, folder = text.partition("=")
    if text == "latents":
        return None
    if kind not in get_args(EditorKind) or not folder:
        raise UserError(f"--editor is latents, inpaint=FOLDER or instruct=FOLDER, not {text!r}")
    return ("inpaint" if kind == "inpaint" else "instruct"), Path(folder)


def open_pipeline(folder: Path, kind: Literal["inpaint", "instruct", "refine"], dtype: str | None = None) -> Any:
    """A diffusers pipeline of a local folder, on the default device."""
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is no pipeline folder of diffusers: it has no model_index.json")
    classes = {"inpaint": AutoPipelineForInpainting, "refine": AutoPipelineForImage2Image}
    try:
        with quiet_libraries():
            pipeline = classes.get(kind, DiffusionPipeline).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=getattr(torch, dtype) if dtype else torch.float32,
            )
    # What a damaged folder raises depends on the file and on the library's version.
    except Exception as error:
        raise UserError(f"{folder} cannot be opened as a pipeline that can {kind}: {first_line(error)}") from None
    if "image" not in _parameters(pipeline):  # diffusers would ignore the image without a word
        raise UserError(f"{folder} holds a {type(pipeline).__name__}, which takes no image and so cannot {kind}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(resolve_device(None))


def pipeline_identity(folder: Path) -> str:
    """The folder's name and a hash of all its weights."""
    weights = sorted(folder.rglob("*.safetensors"))

    def digest() -> str:
        return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()

    return f"{folder.resolve().name} {remembered_hash(folder, 'pipeline', weights, digest)[:12]}"


def _run(pipeline: Any, seed: int, **options: Any) -> PILImage.Image:
    """The first image of a call. What the pipeline cannot do is a sentence."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    try:
        image = pipeline(generator=generator, output_type="pil", **options).images[0]
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{type(pipeline).__name__} cannot edit this image: {first_line(error)}") from None
    assert isinstance(image, PILImage.Image)
    return image.convert("RGB")


def _parameters(pipeline: Any) -> set[str]:
    import inspect

    return set(inspect.signature(type(pipeline).__call__).parameters)


CELL = 16
"""Sides are padded to whole multiples of this, which every family's latents divide."""


def _whole(side: int) -> int:
    return side + -side % CELL


def _padded(image: PILImage.Image) -> PILImage.Image:
    """With repeated edges."""
    pixels = np.asarray(image)
    pad = ((0, -image.height % CELL), (0, -image.width % CELL)) + ((0, 0),) * (pixels.ndim - 2)
    return PILImage.fromarray(np.pad(pixels, pad, mode="edge"))
