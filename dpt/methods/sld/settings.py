"""The options of SLD: of the loop, and of one pass of edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dpt.errors import UserError


@dataclass(frozen=True)
class LoopSettings:
    max_rounds: int = 3
    strengths: tuple[float, ...] = (0.6, 0.4, 0.2)
    """Noise level of the edits in each round; the last one applies to further rounds."""
    policy: Literal["route", "edit", "redraw"] = "route"
    """route: edit local faults, sample images with global faults again. edit, redraw: always do that."""
    redraw_from: int = 3
    """Number of missing objects from which an image is sampled again instead of edited."""

    def __post_init__(self) -> None:
        if self.max_rounds < 0:
            raise UserError(f"the number of rounds must be at least 0, not {self.max_rounds}")
        if self.policy not in ("route", "edit", "redraw"):
            raise UserError(f"the policy is route, edit or redraw, not {self.policy!r}")
        if not self.strengths or not all(0 < s <= 1 for s in self.strengths):
            raise UserError(f"strengths lie between 0 and 1; these are {self.strengths}")

    def strength(self, round_: int) -> float:
        return self.strengths[min(round_, len(self.strengths) - 1)]


@dataclass(frozen=True)
class EngineSettings:
    """How edits are made. Cells are those of the latents; sizes in pixels do not scale with the image."""

    num_timesteps: int = 25
    strength: float = 0.6
    """Noise level from which edited regions are denoised again; before that they follow the composed image."""
    trajectory: Literal["noise", "ddim"] = "noise"
    """noise: the same noise at all levels, without calls of the network. ddim: DDIM inversion."""
    fill: Literal["smooth", "noise"] = "smooth"
    """Where an object is removed. smooth: as its surroundings, denoised from `strength`. noise: from pure noise."""
    add: Literal["object", "region"] = "object"
    """object: draw the object alone, cut it out and paste it. region: from pure noise under a prompt of its own."""
    attribute: Literal["object", "region"] = "object"
    """object: as an added object in place of the old one. region: denoise its mask under a prompt of its own."""
    attribute_strength: float = 0.9
    """Noise level from which a region whose attribute changes is denoised."""
    keep: bool = True
    """Keep cells away from the edits on the trajectory to the end."""
    context: int = 1
    """Cells around an edit that are denoised with it."""
    margin: int = 2
    """Pixels by which the masks of removed objects grow."""
    paste: bool = True
    """Copy the source's pixels back where nothing was edited."""

    def __post_init__(self) -> None:
        for name in ("strength", "attribute_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"the {name} of edits must be between 0 and 1, not {getattr(self, name)}")
        if self.num_timesteps < 1:
            raise UserError(f"edits need at least 1 step, not {self.num_timesteps}")

    def release(self, strength: float) -> int:
        """The step at which a region that is denoised from this noise level leaves the trajectory."""
        return round(self.num_timesteps * (1 - strength))
