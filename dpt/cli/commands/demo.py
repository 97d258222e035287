"""`dpt demo`: serve the demo page."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from dpt.embedded import EMBEDDED_MODELS
from dpt.errors import UserError, fail

WAITING = 16
"""Requests in the queue; further ones are refused."""


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
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise UserError("the demo page needs gradio: pip install 'dpt[demo]'") from None
    if not 1 <= options.port <= 65535:
        fail(f"--port must be from 1 to 65535, not {options.port}")
    if options.keep_methods < 1 or options.num_timesteps < 1:
        fail("--keep_methods and --num_timesteps must be at least 1")
    from dpt.demo.page import build
    from dpt.demo.studio import Studio

    models = options.pretrained_model_name_or_path or tuple(EMBEDDED_MODELS)
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
