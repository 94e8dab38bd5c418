"""What the scripts share."""

import os

# OpenCV and albumentations read these at their import, which comes later, whatever file imports them first.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(132_000_000))  # 12,000 x 11,000: more is refused unread
os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")  # we print what can't be read, with its name
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version
