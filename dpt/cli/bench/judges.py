"""Opens the models that judge and score images: the detector, the colour classifier, CLIP, an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dpt.cli.common.console import warn
from dpt.detect.registry import ORACLE, reads_colours
from dpt.embedded import clip_location
from dpt.errors import fail

if TYPE_CHECKING:
    from dpt.detect.base import Detector
    from dpt.evaluation.bench.judging import ExtraScores, ImageJudge
    from dpt.evaluation.suites.base import Suite
    from dpt.score.clip import Clip
    from dpt.score.matching import MatchingScorer


NO_DETECTOR = "none"

ModelName = Annotated[str | None, tyro.conf.arg(metavar="FOLDER|HUB_ID")]


@dataclass(frozen=True)
class JudgeOptions:
    """The models that judge and score the images."""

    detector: Annotated[str | None, tyro.conf.arg(metavar="oracle|none|FOLDER|HUB_ID")] = None
    """The judge: oracle or reader for the pocket suite; owlv2, owlvit, grounding-dino, detr, rt-detr, d-fine, or any
    checkpoint of one of these; none to sample now and judge later with `dpt bench score`. Default: the suite's own for
    `dpt bench run`; `dpt bench score` keeps the verdicts and adds only the scores of --clip, --itm and --hps."""
    colours: ModelName = None
    """A CLIP model that names the colour of each box, for suites with colours and detectors that do not read them."""
    clip: ModelName = None
    """A CLIP model that also scores each image with its prompt; the pocket's own is ckpt/pocket/clip."""
    itm: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A checkpoint whose adapter scores each image with its prompt. Not a fair test of images that were corrected
    or chosen by such a score."""
    itm_model: ModelName = None
    """The model that the adapter of --itm was trained on, if it is not that of the images: it reads them at its own
    size. An adapter of another model is a judge that the images were not made with."""
    hps: ModelName = None
    """A preference classifier of `dpt prefer train`, PickScore, or any CLIP or SigLIP, that scores each image. Use
    one that did not select what a method was tuned on."""

    def open_scores(self, suite: Suite, model: str) -> ExtraScores:
        """`model`: the base model of the images."""
        from dpt.evaluation.bench.judging import ExtraScores
        from dpt.score.preference import open_preference_model

        if self.itm_model is not None and self.itm is None:
            fail("--itm_model needs --itm")
        preference = None if self.hps is None else open_preference_model(clip_location(self.hps))
        return ExtraScores(_open_clip(self.clip, suite), self._open_matching(model), preference)

    def _open_matching(self, model: str) -> MatchingScorer | None:
        if self.itm is None:
            return None
        from dpt.score.matching import MatchingScorer

        advice = ": give the model that it was trained on as --itm_model"
        return MatchingScorer.open(self.itm, model, "--itm", self.itm.resolve().name, self.itm_model, advice)

    def open(self, suite: Suite, model: str) -> ImageJudge:
        return open_judge(suite, self.detector, self.colours, self.open_scores(suite, model))


def open_judge(suite: Suite, detector: str | None, colours: str | None, extra_scores: ExtraScores) -> ImageJudge:
    from dpt.detect.coco import check_colours
    from dpt.evaluation.bench.judging import ImageJudge
    from dpt.evaluation.suites.base import check_classes

    if detector == NO_DETECTOR:
        if colours:
            fail("--colours has no effect with --detector none")
        return ImageJudge(None, None, extra_scores)
    if suite.detect_config is None:
        if detector or colours:
            fail(f"the suite {suite.name} is not judged: --{'detector' if detector else 'colours'} has no effect")
        if not extra_scores.identities:
            warn(f"the suite {suite.name} is not judged, and without --clip its images are not scored either")
        return ImageJudge(None, None, extra_scores)
    opened_detector = _open_detector(suite, detector or suite.detector or ORACLE, colours)
    check_classes(suite.prompts, opened_detector.classes, f"the detector {opened_detector.identity}")
    check_colours(opened_detector, suite.prompts)
    return ImageJudge(opened_detector, suite.detect_config, extra_scores)


def _open_detector(suite: Suite, name: str, colours: str | None) -> Detector:
    from dpt.detect.registry import check_name, open_detector
    from dpt.score.clip import Clip

    assert suite.detect_config is not None
    if not reads_colours(name):
        if colours and suite.detect_config.coloured:
            fail(f"the suite {suite.name} has colours in its queries: --colours has no effect")
        if not colours and suite.needs_colours and not suite.detect_config.coloured:
            check_name(name)
            fail(
                f"the suite {suite.name} has claims about colours, which {name} does not read: give a CLIP that reads "
                "them, as --colours FOLDER"
            )
    return open_detector(name, suite.detect_config, Clip.open(clip_location(colours)) if colours else None)


def _open_clip(name: str | None, suite: Suite) -> Clip | None:
    if name is None:
        return None
    from dpt.score.clip import Clip

    clip = Clip.open(clip_location(name))
    if truncated := clip.count_truncated([prompt.text for prompt in suite.prompts]):
        total = len(suite.prompts)
        warn(f"{truncated} of {total} prompts exceed the context of {clip.identity} and are truncated for the score")
    return clip


def judge_identity(suite: Suite, judge: ImageJudge) -> dict[str, str]:
    """Everything but the image that a verdict depends on; part of the method's entry in bench.json."""
    identity = {"detector": judge.detector.identity if judge.detector else NO_DETECTOR, "suite": suite.id}
    if suite.judge:
        identity["judge"] = suite.judge
    return {**identity, **judge.extra_scores.identities, "suite_hash": suite.hash}
