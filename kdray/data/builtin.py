"""The data sets and augmentations at hand, through the same hooks as a plugin's."""

from __future__ import annotations

from pathlib import Path

from ..hooks import hookimpl
from ..options import Options
from ..specs import AugmentationSpec, DatasetSpec
from . import augment, color, folder, parquet, published, strong


@hookimpl
def kdray_datasets():
    return [
        DatasetSpec(
            "digits",
            published.digits,
            summary="Scans of handwritten digits, 8×8 grey, 10 classes (no download)",
        ),
        *(
            DatasetSpec(name, _published(name), summary=summary, mean=mean, std=std)
            for name, (_, _, summary, mean, std) in published.TORCHVISION.items()
        ),
        DatasetSpec(
            "folder", folder.load, folder.FolderOptions, "Pictures in folders, train/<class>/ and test/<class>/"
        ),
        DatasetSpec("parquet", parquet.load, parquet.ParquetOptions, "Parquet files in the layout of Hugging Face"),
    ]


def _published(name: str):
    def load(options: Options, path: Path, split: str):
        return published.torchvision(name, path, split)

    return load


@hookimpl
def kdray_augmentations():
    return [
        AugmentationSpec("crop", augment.Crop),
        AugmentationSpec("flip", augment.Flip),
        AugmentationSpec("resize", augment.Resize),
        AugmentationSpec("center_crop", augment.CenterCrop),
        AugmentationSpec("random_resized_crop", augment.RandomResizedCrop),
        AugmentationSpec("rotate", strong.Rotate),
        AugmentationSpec("cutout", strong.Cutout),
        AugmentationSpec("rand_augment", strong.RandAugment),
        AugmentationSpec("color_jitter", color.ColorJitter),
        AugmentationSpec("grayscale", color.Grayscale),
    ]
