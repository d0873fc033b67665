"""What the source article claims, and the checks that bear on it."""

from __future__ import annotations

from everypool.study.claims import Check

__all__ = ["CHECKS", "CLAIMS"]

CLAIMS = {
    "C1": "Pooling makes for less computation.",
    "C2": "Pooling makes for fewer parameters behind it.",
    "C3": "Pooling makes for less overfitting.",
    "C4": "Pooling makes a network more robust to small shifts and turns of its input.",
    "C5": "Max pooling keeps strong features and makes for faster training.",
    "C6": "Average pooling is better where the general level matters, and less sensitive to noise.",
    "C7": "Global average pooling replaces fully connected layers: far fewer parameters, faster training, less overfitting, "
    "presence over location.",
    "C8": "Spatial pyramid pooling needs no resizing or cropping, sees local and global features together, and works on "
    "mixed sizes.",
    "C9": "Taking the value in the middle is cheap, and useful where the centre matters more than the rim.",
    "C10": "Cascade corner pooling gives more accurate boxes, above all for small, touching or overlapping objects.",
    "C11": "Windows that grow with the map cope with scans of many sizes and objects whose size changes.",
    "C12": "Generalised means are tunable between average and maximum, and good in retrieval and classification.",
    "C13": "Strip pooling sees long-range relations.",
    "C14": "SoftPool keeps more of the input's information than maximum or average.",
    "C15": "Hopfield pooling finds the important pattern wherever it lies, also changed or moved.",
}

CHECKS = (
    Check(
        "C1", "A network with pooling computes less than one that keeps its map.", "digits", "max", "none", "multiply-adds", -1
    ),
    Check("C1", "It trains in less processor time.", "digits", "max", "none", "training", -1),
    Check("C1", "It computes less than one whose convolutions step.", "digits", "max", "stride", "multiply-adds", -1),
    Check("C2", "The layers behind pooling have fewer parameters.", "digits", "max", "none", "parameters", -1),
    Check(
        "C3", "Training accuracy lies less far above test accuracy than without pooling.", "digits", "max", "none", "gap", -1
    ),
    Check("C3", "The same against convolutions that step.", "digits", "max", "stride", "gap", -1),
    Check("C4", "Answers change less under a shift by one pixel than without pooling.", "digits", "max", "none", "shift 1", 1),
    Check("C4", "The same for the average.", "digits", "avg", "none", "shift 1", 1),
    Check("C4", "The same against convolutions that step.", "digits", "max", "stride", "shift 1", 1),
    Check("C4", "Answers change less under a turn by 10° than without pooling.", "digits", "max", "none", "rotation 10", 1),
    Check("C4", "The same for 20°.", "digits", "max", "none", "rotation 20", 1),
)
