"""The demo page in gradio."""

from __future__ import annotations

import base64
import html
import tempfile
from collections import deque
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpt.demo.studio import MOST_IMAGES, MOST_SEED, DemoImage, Drawing, Studio
from dpt.embedded import EMBEDDED_MODELS
from dpt.errors import UserError

if TYPE_CHECKING:
    import gradio

EXAMPLES = (
    "a red circle to the left of a blue square",
    "three cyan circles",
    "a green circle and a blue square",
    "two red circles without triangles",
)

FONTS = ["system-ui", "sans-serif"]
"""Of the visitor's own system: nothing is loaded from elsewhere."""

CSS = """
.drawn {display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 240px)); gap: 12px}
.drawn figure {margin: 0}
.drawn img {width: 100%; border: 4px solid transparent; image-rendering: pixelated}
.drawn .right img {border-color: #1a7f37} .drawn .wrong img {border-color: #cf222e}
.drawn figcaption {font-size: .9em; line-height: 1.3}
footer {display: none !important}
"""


KEPT_ARCHIVES = 4
"""Zip files of the last drawings that stay on the disk. gradio serves a copy of its own."""

COPY_CLEANUP = (600, 3600)
"""Seconds: how often gradio removes its copies, and how old they are then. All go when the page is stopped."""


class Archives:
    """Places for zip files, of which the newest are kept; the folder is removed when the process ends."""

    def __init__(self, keep: int = KEPT_ARCHIVES) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dpt-demo-")
        self._keep, self._count, self._files = keep, 0, deque[Path]()

    def new(self) -> Path:
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        self._count += 1
        self._files.append(folder / "dpt.zip")
        while len(self._files) > self._keep:
            old = self._files.popleft()
            old.unlink(missing_ok=True)
            old.parent.rmdir()
        return self._files[-1]


def build(studio: Studio) -> tuple[gradio.Blocks, dict[str, Any]]:
    """The page, and its style for `launch`."""
    import gradio as gr

    first = studio.models[0]
    names = list(studio.methods[first])
    right = first_shown(names)
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    archives = Archives()
    with gr.Blocks(title="DPT", analytics_enabled=False, delete_cache=COPY_CLEANUP) as page:
        gr.Markdown("# Draw what the prompt says\nThe same noise with two methods, side by side.")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", value=EXAMPLES[0], scale=4, elem_id="prompt")
            draw = gr.Button("Draw", variant="primary", scale=1, min_width=120, elem_id="draw")
        with gr.Row():
            model = gr.Dropdown(list(studio.models), value=first, label="Model", elem_id="model")
            left_name = gr.Dropdown(names, value=names[0], label="Left", elem_id="left")
            right_name = gr.Dropdown(names, value=right, label="Right", elem_id="right")
        with gr.Accordion("More", open=False), gr.Row():
            negative = gr.Textbox(
                label="Negative prompt", info="Filled in with what the right method's checkpoint was tuned with.",
                value=studio.negative_prompt(first, right),
            )  # fmt: skip
            seed = gr.Number(1, label="Seed", precision=0, minimum=0, maximum=MOST_SEED)
            count = gr.Slider(1, MOST_IMAGES, 2, step=1, label="Images")
        outputs: list[Any] = []
        with gr.Row():
            for side in ("left", "right"):
                with gr.Column(min_width=280):
                    outputs += [gr.Markdown(elem_id=f"{side}-title"), gr.HTML(elem_id=f"{side}-images")]
        download = gr.DownloadButton("Download images and manifest", visible=False, elem_id="download")
        if set(studio.models) & set(EMBEDDED_MODELS):
            gr.Examples(list(EXAMPLES), prompt, label="Prompts that the embedded models know")
            gr.Markdown("The embedded models know circles, squares, triangles and crosses in six colours. "
                        "An exact reader of such images, the oracle, judges them.")  # fmt: skip
        inputs = [model, left_name, right_name, prompt, negative, seed, count]
        results = [*outputs, download]
        gr.on([draw.click, prompt.submit], partial(on_draw, studio, archives), inputs, results, api_name="draw")
        model.change(partial(on_model, studio), model, [left_name, right_name, negative], api_visibility="private")
        right_name.change(partial(on_method, studio), [model, right_name], negative, api_visibility="private")
    return page, {"theme": theme, "css": CSS}


def first_shown(names: Sequence[str]) -> str:
    """The method that the right side begins with."""
    return next((name for name in ("ipr-sld", "corrected-sld", "corrected", "sld") if name in names), names[-1])


def on_draw(
    studio: Studio,
    archives: Archives,
    model: str,
    left: str,
    right: str,
    prompt: str,
    negative: str,
    seed: float,
    count: float,
) -> list[Any]:
    import gradio as gr

    try:
        drawing = Drawing(model, (left, right), prompt or "", negative or "", int(seed or 0), int(count or 1))
        drawn = studio.draw(drawing)
    except UserError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from None
    file = studio.archive(drawing, drawn, archives.new())
    return [*shown(left, drawn[left]), *shown(right, drawn[right]), gr.DownloadButton(value=str(file), visible=True)]


def shown(name: str, images: Sequence[DemoImage]) -> tuple[str, str]:
    """A title with the count of right images, and the images with their verdicts as HTML."""
    judged = [image for image in images if image.passed is not None]
    count = f": {sum(bool(image.passed) for image in judged)} of {len(judged)} right" if judged else ""
    return f"### {name}{count}", f'<div class="drawn">{"".join(map(figure, images))}</div>'


def figure(drawn: DemoImage) -> str:
    png = BytesIO()
    drawn.image.save(png, "PNG")
    data, caption = base64.b64encode(png.getvalue()).decode(), html.escape(drawn.caption)
    kind, sign = {True: ("right", "✓ "), False: ("wrong", "✗ "), None: ("", "")}[drawn.passed]
    return (
        f'<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{sign}{caption}</figcaption></figure>"
    )


def on_model(studio: Studio, model: str) -> list[Any]:
    import gradio as gr

    names = list(studio.methods.get(model, {"base": None}))
    right = first_shown(names)
    return [gr.Dropdown(names, value=names[0]), gr.Dropdown(names, value=right), on_method(studio, model, right)]


def on_method(studio: Studio, model: str, method: str) -> str:
    try:
        return studio.negative_prompt(model, method)
    except UserError:
        return ""
