"""The demo page in gradio: `dpt demo`."""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dpt.demo.studio import MOST_IMAGES, MOST_SEED, DemoImage, Drawing, Studio
from dpt.embedded import EMBEDDED, EMBEDDED_MODELS
from dpt.errors import UserError, fail

if TYPE_CHECKING:
    import gradio

WAITING = 16
"""Requests in the queue; further ones are refused."""

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


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class PageOptions:
    """Serve a page that draws a prompt with two methods side by side, from the same noise.

    The page listens on this machine only, unless --host says otherwise.
    """

    pretrained_model_name_or_path: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER|HUB_ID")] = ()
    """The models to choose from. Default: the embedded ones."""
    methods: tuple[str, ...] = ()
    """Further methods of the first model, as NAME=PATH of a checkpoint or any LoRA file."""
    host: str = "127.0.0.1"
    port: int = 7860
    num_timesteps: int = 25
    guidance_scale: float | None = None
    """Default: that of the model's generation_defaults.json, else 7.5."""
    scheduler: str = "ddim"
    keep_methods: int = 4
    """Methods that stay in memory. Each holds a copy of the model."""


def demo(options: PageOptions) -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo page needs gradio: pip install 'dpt[demo]'") from None
    if not 1 <= options.port <= 65535:
        fail(f"--port must be from 1 to 65535, not {options.port}")
    if options.keep_methods < 1 or options.num_timesteps < 1:
        fail("--keep_methods and --num_timesteps must be at least 1")
    models = options.pretrained_model_name_or_path or tuple(
        model for model in (EMBEDDED, *EMBEDDED_MODELS) if model in EMBEDDED_MODELS
    )
    studio = Studio(
        tuple(dict.fromkeys(models)),
        options.methods,
        options.num_timesteps,
        options.guidance_scale,
        options.scheduler,
        options.keep_methods,
    )
    print("opening the first model ...")
    studio.method(studio.models[0], "base")
    page, style = build(studio)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        page.launch(server_name=options.host, server_port=options.port, share=False, quiet=True, **style,
                    prevent_thread_lock=True)  # fmt: skip
    except OSError as error:
        fail(f"cannot listen on {options.host}, port {options.port}: {error}; choose another --port")
    print(f"the page is at http://{options.host}:{options.port}; stop it with Ctrl-C", flush=True)
    page.block_thread()


def build(studio: Studio) -> tuple[gradio.Blocks, dict[str, Any]]:
    """The page, and its style for `launch`."""
    import gradio as gr

    first = studio.models[0]
    names = list(studio.methods[first])
    right = next((name for name in ("corrected-sld", "corrected", "sld") if name in names), names[-1])
    theme = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    with gr.Blocks(title="DPT", analytics_enabled=False) as page:
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
        gr.on([draw.click, prompt.submit], partial(on_draw, studio), inputs, results, api_name="draw")
        model.change(partial(on_model, studio), model, [left_name, right_name, negative], api_visibility="private")
        right_name.change(partial(on_method, studio), [model, right_name], negative, api_visibility="private")
    return page, {"theme": theme, "css": CSS}


def on_draw(
    studio: Studio, model: str, left: str, right: str, prompt: str, negative: str, seed: float, count: float
) -> list[Any]:
    import gradio as gr

    try:
        drawing = Drawing(model, (left, right), prompt or "", negative or "", int(seed or 0), int(count or 1))
        drawn = studio.draw(drawing)
    except UserError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from None
    folder = Path(tempfile.mkdtemp(prefix="dpt-demo-"))
    file = studio.archive(drawing, drawn, folder / "dpt.zip")
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
    right = next((name for name in ("corrected-sld", "corrected", "sld") if name in names), names[-1])
    return [gr.Dropdown(names, value=names[0]), gr.Dropdown(names, value=right), on_method(studio, model, right)]


def on_method(studio: Studio, model: str, method: str) -> str:
    try:
        return studio.negative_prompt(model, method)
    except UserError:
        return ""
