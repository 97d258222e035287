"""Build the task of a training command from its flags."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dpt.adapter import Adapter, config_for
from dpt.adapter.io import config_at, init_from, weights_at
from dpt.adapter.model import PhraseEncoder, PretrainedPhraseEncoder, open_phrase_encoder
from dpt.adapter.transformer import AdapterConfig
from dpt.backbone import Backbone
from dpt.backbone.device import resolve_matmul_dtype
from dpt.backbone.rng import derived_seed
from dpt.cli.train.options import AdapterOptions, ObjectiveOptions, OptimisationOptions, TrainOptions
from dpt.data.stream import Stream
from dpt.errors import UserError
from dpt.files import sha256
from dpt.lora import Lora
from dpt.lora.injection import COMPONENTS as TEXT_ENCODERS
from dpt.objectives.losses import AssignmentCosts
from dpt.training.engine.task import Grouping, ParameterGroup, all_decay, matrices_decay, with_own_rate
from dpt.training.tasks.denoising import DenoisingConfig, NoiseConfig, PlainLora
from dpt.training.tasks.discriminative import ObjectiveConfig
from dpt.training.tasks.stages import Stage1, Stage2, Stage2Config

if TYPE_CHECKING:
    from dpt.cli.train.stages import Stage2Options


Validation = Mapping[str, Stream]

InitialWeights = dict[str, str]
"""The hashes of the weights that the run starts from, for its record."""


def stage1(options: TrainOptions, backbone: Backbone, validation: Validation) -> tuple[Stage1, InitialWeights]:
    adapter, phrases, initial = open_adapter(options, backbone)
    task = Stage1(
        backbone,
        adapter,
        phrases,
        validation,
        objective_of(options.objective),
        noise_of(options.objective),
        options.data.val_batch_size,
        score_grounding=not options.objective.no_detection,
        gradient_checkpointing=options.model.gradient_checkpointing,
        grouping=grouping_of(options),
    )
    return task, initial


def stage2(options: Stage2Options, backbone: Backbone, validation: Validation) -> tuple[Any, InitialWeights]:
    """Stage 2, or with --plain_lora its control run."""
    lora_options, d = options.lora, options.denoising
    backbone.prepare_for_gradients()
    denoising = DenoisingConfig(d.mse_loss_coef, d.snr_gamma, d.detach_unet_feature)
    lora_config = lora_options.config
    size, checkpointing = options.data.val_batch_size, options.model.gradient_checkpointing
    noise, grouping = noise_of(options.objective), grouping_of(options)
    if lora_options.plain_lora:
        lora = Lora(backbone, lora_config, options.optimisation.seed)
        return PlainLora(backbone, lora, validation, denoising, noise, size, checkpointing, grouping), {}
    adapter, phrases, initial = open_adapter(options, backbone, strict=True)
    if options.adapter.qformer_ckpt is None:
        warnings.warn("without --qformer_ckpt the adapter starts untrained", stacklevel=2)
    config = Stage2Config(
        objective_of(options.objective),
        denoising,
        noise,
        lora_options.only_train_lora,
        checkpointing,
        size,
        score_grounding=not options.objective.no_detection,
        grouping=grouping,
    )
    lora = Lora(backbone, lora_config, options.optimisation.seed)
    return Stage2(backbone, adapter, lora, phrases, validation, config), initial


def grouping_of(options: TrainOptions) -> Grouping:
    """The parameter groups: which weights decay, and which have their own learning rate."""
    return grouping_with(options.optimisation)


def grouping_with(optimisation: OptimisationOptions) -> Grouping:
    grouping = all_decay if optimisation.weight_decay_on == "all" else matrices_decay
    rate = optimisation.text_encoder_lr
    if rate is None:
        return grouping

    def groups(module: nn.Module) -> list[ParameterGroup]:
        first, second = TEXT_ENCODERS
        return with_own_rate(with_own_rate(grouping(module), first, rate), second, rate)

    return groups


def open_adapter(
    options: TrainOptions, backbone: Backbone, strict: bool = False
) -> tuple[Adapter, PhraseEncoder, InitialWeights]:
    """A new adapter, or that of `--qformer_ckpt`; `strict` refuses an adapter that was trained on another model."""
    adapter_options, checkpoint = options.adapter, options.adapter.qformer_ckpt
    feature = options.model.unet_feature or backbone.default_feature
    if checkpoint is not None and (stored := config_at(checkpoint)) is not None:
        adapter_options = adopt_config(adapter_options, feature, stored, checkpoint)
    phrases = open_phrase_encoder(adapter_options.text_encoder_type, backbone)
    torch.manual_seed(derived_seed(options.optimisation.seed, 0, "adapter"))
    config = config_of(adapter_options, feature, backbone, phrases)
    adapter = Adapter(config).to(backbone.device)
    if adapter_options.no_freeze_text_encoder:
        assert isinstance(phrases, PretrainedPhraseEncoder), "check_text_encoder refuses the frozen model's own"
        adapter.text_encoder = phrases.unfreeze()
    initial: InitialWeights = {}
    if checkpoint is not None:
        init_adapter(adapter, checkpoint, backbone, strict and not adapter_options.allow_other_base)
        initial = {"qformer_sha256": sha256(weights_at(checkpoint))}
    adapter.matmul_dtype = resolve_matmul_dtype(backbone.device, options.model.adapter_precision)
    return adapter, phrases, initial


def config_of(options: AdapterOptions, unet_feature: str, backbone: Backbone, phrases: PhraseEncoder) -> AdapterConfig:
    shape = {name: getattr(options, name) for name in SHAPE}
    if options.feature_norm is not None:
        shape["feature_norm"] = options.feature_norm
    return config_for(
        backbone,
        unet_feature,
        phrases.width,
        **shape,
        contrastive_align_loss=not options.no_contrastive_align_loss,
    )


SHAPE = (
    "text_encoder_type",
    "position_embedding",
    "code_placement",
    "enc_layers",
    "dec_layers",
    "dim_feedforward",
    "hidden_dim",
    "nheads",
    "dropout",
    "num_queries_matching",
    "num_queries_rec",
    "pre_norm",
    "contrastive_loss_hdim",
)
"""Flags that are fields of AdapterConfig under the same names."""


def adopt_config(options: AdapterOptions, unet_feature: str, stored: AdapterConfig, file: Path) -> AdapterOptions:
    """The options with the shape of the stored adapter; refuses flags that contradict it, except --dropout."""
    if stored.unet_feature != unet_feature:
        raise UserError(f"the adapter of {file} reads {stored.unet_feature}, not --unet_feature {unet_feature}")
    default = {field.name: field.default for field in fields(AdapterOptions)}
    shape = {name: getattr(stored, name) for name in SHAPE}
    shape["no_contrastive_align_loss"] = not stored.contrastive_align_loss
    shape["feature_norm"] = stored.feature_norm
    for name, value in shape.items():
        flag = getattr(options, name)
        if flag not in (default[name], value) and name != "dropout":
            raise UserError(f"the adapter of {file} has {name} {value}, not {flag}: leave the flag out")
    if options.dropout != default["dropout"]:
        shape["dropout"] = options.dropout
    return replace(options, **shape)


def init_adapter(adapter: Adapter, path: Path, backbone: Backbone, strict: bool) -> None:
    record = init_from(adapter, path)
    if backbone.is_model(record.base_hash):
        return
    sentence = f"the adapter of {path} was trained to read another model, {record.base or 'which has no name'}"
    if strict:
        raise UserError(f"{sentence}. If you know that it fits this one, pass --allow_other_base")
    warnings.warn(sentence, stacklevel=2)


def noise_of(options: ObjectiveOptions) -> NoiseConfig:
    return NoiseConfig(options.fix_timestep, options.noise_offset, options.logit_mean, options.logit_std)


def objective_of(options: ObjectiveOptions) -> ObjectiveConfig:
    weights = {
        "i2t": options.i2t_loss_coef,
        "t2i": options.t2i_loss_coef,
        "ce": options.ce_loss_coef,
        "bbox": options.bbox_loss_coef,
        "giou": options.giou_loss_coef,
        "align": options.contrastive_align_loss_coef,
    }
    costs = AssignmentCosts(options.set_cost_class, options.set_cost_bbox, options.set_cost_giou)
    return ObjectiveConfig(weights, costs, options.eos_coef, options.temperature_NCE)
