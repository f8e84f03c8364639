"""What configs of models with masks have in common; the class of each family is in ``family_classes``."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from transformers import PretrainedConfig
from typing_extensions import Self, TypeIs

from ..masks import MaskPhase, MaskSettings
from ..shapes import TargetShape

LOADER = Path(__file__).with_name("import_hf_shear.py")
"""Code that is saved beside a masked checkpoint: all that transformers, which cannot know the model_type, will ask for."""


class ShearingConfig(PretrainedConfig):
    """What the config of every masked model has besides its source's: target shape and the masks' settings.

    Attributes:
        target_shape: the sizes of the target by name (and head_dim).
        mask_settings: fields of :class:`~hf_shear.masks.MaskSettings`.
        mask_phase: fields of :class:`~hf_shear.masks.MaskPhase` when the model was saved.
        source_name_or_path, source_revision: where the plain checkpoint came from.
        auto_map: names ``LOADER``, once the config was saved.
    """

    target_shape: dict | None = None
    mask_settings: dict | None = None
    mask_phase: dict | None = None
    source_name_or_path: str | None = None
    source_revision: str | None = None
    auto_map: dict | None = None

    def resolved_target(self) -> TargetShape:
        """The target, checked against this config's own (source) shape."""
        return TargetShape.from_dict(self, self.target_shape or {})

    def resolved_settings(self) -> MaskSettings:
        """The masks' settings as an object."""
        return MaskSettings(**(self.mask_settings or {}))

    def resolved_phase(self) -> MaskPhase:
        """The phase of mask learning as an object."""
        return MaskPhase(**(self.mask_phase or {}))

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As the stock method, with ``LOADER`` beside the config."""
        self.auto_map = {"AutoConfig": f"{LOADER.stem}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)
        shutil.copyfile(LOADER, Path(save_directory) / LOADER.name)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would save the modules of this package beside the next checkpoint."""

    @classmethod
    def from_source(
        cls,
        source_config: PretrainedConfig,
        target_shape: TargetShape,
        settings: MaskSettings,
        revision: str | None = None,
    ) -> Self:
        """Config of ``source_config`` with masks towards ``target_shape``.

        Args:
            source_config, target_shape, settings: the source, what is to be cut out of it, and how masks are learned.
            revision: what the source was loaded at, recorded where ``source_config`` does not know its commit: a branch
                such as "main" moves on, and then no longer says which weights these were.
        """
        fields = source_config.to_dict()
        for name in ("model_type", "architectures", "auto_map", "transformers_version"):
            fields.pop(name, None)
        fields.update(
            target_shape=target_shape.to_dict(),
            mask_settings=asdict(settings),
            source_name_or_path=source_config._name_or_path or None,
            source_revision=getattr(source_config, "_commit_hash", None) or revision,
        )
        return cls(**fields)


def is_masked_config(config: PretrainedConfig) -> TypeIs[ShearingConfig]:
    """Whether a config is that of a masked model."""
    return isinstance(config, ShearingConfig)
