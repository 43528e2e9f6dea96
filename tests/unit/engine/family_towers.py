"""How to run towers of families that family_builds.py does not run whole: the inputs of their modules beside text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Running: TypeAlias = Any
Filled: TypeAlias = Callable[..., torch.Tensor]
_TOKENS = torch.tensor([[1, 5, 3, 7]])
_GRID = torch.tensor([[1, 2, 2]])
_CORNERS = torch.tensor([[[0, 0], [0, 1], [1, 0], [1, 1]]])


def _visual(model: Running, filled: Filled) -> None:
    model.model.visual(filled(4, 3 * 2 * 16), grid_thw=_GRID)


def _patches(model: Running, filled: Filled) -> None:
    model.model.vision_tower(filled(4, 3 * 16), grid_thw=_GRID)


def _image(side: int) -> Callable[[Running, Filled], None]:
    return lambda model, filled: model.model.vision_tower(filled(1, 3, side, side))


def _idefics(model: Running, filled: Filled) -> None:
    seen = torch.ones(1, 4, dtype=torch.long)
    model(_TOKENS, attention_mask=seen, pixel_values=filled(1, 1, 3, 8, 8), image_attention_mask=seen[..., None])


def _bridgetower(model: Running, filled: Filled) -> None:
    seen = torch.ones(1, 8, 8, dtype=torch.long)
    model(_TOKENS, attention_mask=seen[0, :1, :4], pixel_values=filled(1, 3, 8, 8), pixel_mask=seen)


def _clvp(model: Running, filled: Filled) -> None:  # noqa: ARG001 - it takes tokens alone
    for tower in (model.text_encoder_model, model.speech_encoder_model, model.speech_decoder_model):
        tower(input_ids=_TOKENS)


def _phi4(model: Running, filled: Filled) -> None:
    model.model.embed_tokens_extend.image_embed.img_processor(filled(1, 3, 16, 16))


def _granite_speech(model: Running, filled: Filled) -> None:
    model.model.encoder(filled(1, 6, model.config.encoder_config.input_dim))
    model.model.projector(filled(1, 8, model.config.encoder_config.hidden_dim))


def _gemma4_vision(tower: Running, filled: Filled) -> None:
    tower(filled(1, 4, 3 * 16), pixel_position_ids=_CORNERS)


def _lxmert(model: Running, filled: Filled) -> None:
    model(_TOKENS, visual_feats=filled(1, 3, model.config.visual_feat_dim), visual_pos=filled(1, 3, 4))


def _sam(model: Running, filled: Filled) -> None:
    one = torch.ones(1, 1, 1, dtype=torch.long)
    model(pixel_values=filled(1, 3, 16, 16), input_points=filled(1, 1, 1, 2), input_labels=one)


TOWERS: dict[str, Callable[[Running, Filled], object]] = {
    **dict.fromkeys(("qwen3_5_moe", "qwen4_exp", "glm5_next"), _visual),
    **dict.fromkeys(("ernie4_5_vl_moe", "dots3_note"), _patches),
    **dict.fromkeys(("mistral_large4", "internvl"), _image(8)),
    **dict.fromkeys(("deepseek_ocr2", "unlimited_ocr"), _image(64)),
    "step3p7": lambda model, filled: model.model.vision_model(filled(1, 3, 8, 8)),
    "kimi_k25": lambda model, filled: model.model.vision_tower(filled(4, 3, 4, 4), grid_thw=_GRID),
    "molmo2": lambda model, filled: model.model.vision_tower(filled(1, 4, 3 * 16)),
    "gemma4": lambda model, filled: _gemma4_vision(model.model.vision_tower, filled),
    "gemma4_vision": _gemma4_vision,
    "gemma4_audio": lambda model, filled: model(filled(1, 32, 4)),
    "idefics": _idefics,
    "bridgetower": _bridgetower,
    "videoprism": lambda model, filled: model(pixel_values_videos=filled(1, 2, 3, 8, 8), input_ids=_TOKENS),
    "videomae": lambda model, filled: model(filled(1, 2, 3, 8, 8)),
    "lxmert": _lxmert,
    "clvp": _clvp,
    "parakeet_encoder": lambda model, filled: model(filled(1, 40, model.config.num_mel_bins)),
    "wav2vec2-bert": lambda model, filled: model(filled(1, 6, model.config.feature_projection_input_dim)),
    "moonshine": lambda model, filled: model(filled(1, 2000), decoder_input_ids=_TOKENS),
    "sam": _sam,
    "perceiver": lambda model, filled: model(filled(1, 5, model.config.d_model)),
    "phi4_multimodal": _phi4,
    "granite_speech": _granite_speech,
}
"""Runners by the name of the family's line in families.jsonl."""
ENDS_EARLY = frozenset(("clvp", "dots3_note", "gemma4", "gemma4_vision", "unlimited_ocr"))
"""Towers that end in an error after their layers, or after the first of them."""
