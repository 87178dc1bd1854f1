"""The data sets and augmentations that come with kdray, offered through the public hooks."""

from functools import partial

from ..hooks import hookimpl
from ..specs import AugmentationSpec, DatasetSpec


@hookimpl
def kdray_datasets():
    # Here, not above: torch takes a second to import.
    from . import folder, parquet, published

    def torchvision(name, cls, summary, mean, std, location):
        return DatasetSpec(
            name, partial(published.load_torchvision, cls), summary=summary, mean=mean, std=std, location=location
        )

    return [
        DatasetSpec("digits", published.load_digits, summary="Scanned digits of scikit-learn: 1,797 pictures, 8×8, grey"),
        torchvision(
            "cifar10",
            "CIFAR10",
            "CIFAR-10: 50,000 + 10,000 pictures, 32×32, 10 classes",
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            "cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, packed or as cifar-10-batches-py/",
        ),
        torchvision(
            "cifar100",
            "CIFAR100",
            "CIFAR-100: 50,000 + 10,000 pictures, 32×32, 100 classes",
            (0.5071, 0.4867, 0.4408),
            (0.2675, 0.2565, 0.2761),
            "cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, packed or as cifar-100-python/",
        ),
        torchvision(
            "fashion_mnist",
            "FashionMNIST",
            "Fashion-MNIST: 60,000 + 10,000 pictures, 28×28, grey, 10 classes",
            (0.2860,),
            (0.3530,),
            "FashionMNIST/raw/ with the four files of https://github.com/zalandoresearch/fashion-mnist",
        ),
        DatasetSpec(
            "folder",
            folder.load,
            folder.FolderOptions,
            summary="Picture files in a folder for each class",
            location="train/<class>/<picture> and test/<class>/<picture> (or val/)",
        ),
        DatasetSpec(
            "parquet",
            parquet.load,
            parquet.ParquetOptions,
            summary="Parquet files in the layout of Hugging Face data sets",
            location="train.parquet and test.parquet, or what data.train and data.test say",
        ),
    ]


@hookimpl
def kdray_augmentations():
    from .augment import Crop, Flip
    from .resizing import CenterCrop, RandomResizedCrop, Resize

    return [
        AugmentationSpec("crop", Crop),
        AugmentationSpec("flip", Flip),
        AugmentationSpec("resize", Resize),
        AugmentationSpec("center_crop", CenterCrop),
        AugmentationSpec("random_resized_crop", RandomResizedCrop),
    ]
