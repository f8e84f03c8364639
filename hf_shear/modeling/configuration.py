"""Config of a model with masks. It has a model_type of its own, so that no plain class loads it and drops its masks."""

from __future__ import annotations

from dataclasses import asdict

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig

from ..masks import MaskPhase, MaskSettings
from ..shapes import TargetShape


@strict
class ShearingLlamaConfig(LlamaConfig):
    """LlamaConfig of the source, with the target shape and the masks' settings.

    Attributes:
        target_shape: the five shape names of the target (and head_dim).
        mask_settings: fields of :class:`~hf_shear.masks.MaskSettings`.
        mask_phase: fields of :class:`~hf_shear.masks.MaskPhase` when the model was saved.
        source_name_or_path, source_revision: where the plain checkpoint came from.
    """

    model_type = "shearing_llama"

    target_shape: dict | None = None
    mask_settings: dict | None = None
    mask_phase: dict | None = None
    source_name_or_path: str | None = None
    source_revision: str | None = None

    def resolved_target(self) -> TargetShape:
        """The target, checked against this config's own (source) shape."""
        return TargetShape.from_dict(self, self.target_shape or {})

    def resolved_settings(self) -> MaskSettings:
        """The masks' settings as an object."""
        return MaskSettings(**(self.mask_settings or {}))

    def resolved_phase(self) -> MaskPhase:
        """The phase of mask learning as an object."""
        return MaskPhase(**(self.mask_phase or {}))

    @classmethod
    def from_source(
        cls, source_config: LlamaConfig, target_shape: TargetShape, settings: MaskSettings, revision: str | None = None
    ) -> ShearingLlamaConfig:
        """Config of ``source_config`` with masks towards ``target_shape``.

        Args:
            source_config, target_shape, settings: the source, what is to be cut out of it, and how masks are learned.
            revision: what the source was loaded at, recorded where ``source_config`` does not know its commit: a branch
                such as "main" moves on, and then no longer says which weights these were.
        """
        fields = source_config.to_dict()
        for name in ("model_type", "architectures", "transformers_version"):
            fields.pop(name, None)
        fields.update(
            target_shape=target_shape.to_dict(),
            mask_settings=asdict(settings),
            source_name_or_path=source_config._name_or_path or None,
            source_revision=getattr(source_config, "_commit_hash", None) or revision,
        )
        return cls(**fields)


AutoConfig.register(ShearingLlamaConfig.model_type, ShearingLlamaConfig)
