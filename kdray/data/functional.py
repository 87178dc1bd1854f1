"""torchvision's functions on pictures, imported when the first of them is wanted: torch's compiler comes with them, and
takes two seconds that a process without them need not wait for."""


def __getattr__(name: str):
    from torchvision.transforms.v2 import functional

    return getattr(functional, name)
