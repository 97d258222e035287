"""From the flags to the task of stage 1."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from dpt.adapter import Adapter, config_for
from dpt.adapter.phrases import EncoderPhrases, open_phrase_encoder
from dpt.adapter.starting import start_from
from dpt.backbone import Backbone
from dpt.backbone.devices import resolve_product_dtype
from dpt.backbone.randomness import derived_seed
from dpt.cli.train_options import AdapterOptions, ModelOptions, ObjectiveOptions
from dpt.data.stream import Stream
from dpt.objectives.assignment import AssignmentCosts
from dpt.training.tasks.discriminative import Objective
from dpt.training.tasks.noised import Noise
from dpt.training.tasks.stage1 import Stage1


def build_stage1(
    model: ModelOptions,
    adapter: AdapterOptions,
    objective: ObjectiveOptions,
    backbone: Backbone,
    validation: Mapping[str, Stream],
    val_batch_size: int,
    seed: int,
) -> Stage1:
    phrases = open_phrase_encoder(adapter.text_encoder_type, backbone)
    config = config_for(
        backbone.unet.config,
        model.unet_feature,
        backbone.text_width,
        phrases.width,
        text_encoder_type=adapter.text_encoder_type,
        position_embedding=adapter.position_embedding,
        code_placement=adapter.code_placement,
        enc_layers=adapter.enc_layers,
        dec_layers=adapter.dec_layers,
        dim_feedforward=adapter.dim_feedforward,
        hidden_dim=adapter.hidden_dim,
        nheads=adapter.nheads,
        dropout=adapter.dropout,
        num_queries_matching=adapter.num_queries_matching,
        num_queries_rec=adapter.num_queries_rec,
        pre_norm=adapter.pre_norm,
        contrastive_align_loss=not adapter.no_contrastive_align_loss,
        contrastive_loss_hdim=adapter.contrastive_loss_hdim,
    )
    torch.manual_seed(derived_seed(seed, 0, "adapter"))
    built = Adapter(config).to(backbone.device)
    if adapter.no_freeze_text_encoder:
        assert isinstance(phrases, EncoderPhrases), "the frozen model's own is refused before it is opened"
        built.text_encoder = phrases.unfreeze()
    if adapter.qformer_ckpt is not None:
        begin_with(built, adapter.qformer_ckpt, backbone)
    built.product_dtype = resolve_product_dtype(backbone.device, model.adapter_precision)
    return Stage1(
        backbone,
        built,
        phrases,
        validation,
        objective_of(objective),
        Noise(objective.fix_timestep, objective.noise_offset),
        val_batch_size,
        score_grounding=not objective.no_detection,
        gradient_checkpointing=model.gradient_checkpointing,
    )


def begin_with(built: Adapter, path: Path, backbone: Backbone) -> None:
    record = start_from(built, path)
    if record.base_hash not in ("", backbone.model_hash):
        called = record.base or "which has no name"
        warnings.warn(f"the adapter of {path} was trained to read another model, {called}", stacklevel=2)


def objective_of(options: ObjectiveOptions) -> Objective:
    weights = {
        "i2t": options.i2t_loss_coef,
        "t2i": options.t2i_loss_coef,
        "ce": options.ce_loss_coef,
        "bbox": options.bbox_loss_coef,
        "giou": options.giou_loss_coef,
        "align": options.contrastive_align_loss_coef,
    }
    costs = AssignmentCosts(options.set_cost_class, options.set_cost_bbox, options.set_cost_giou)
    return Objective(weights, costs, options.eos_coef, options.temperature_NCE)
