#!/usr/bin/python3
"""Decoding and resizing against Debian's Pillow: 200 generated images of odd sizes, modes, formats and EXIF
orientations, resized to random targets. The decoded pixels must be equal, the resized ones within 1 level and 0.02
on average (in fact they are equal too).

usage: tests/media/pil.py IMAGE_CLI [COUNT [SEED]]
"""
import os
import random
import subprocess
import sys
import tempfile
import warnings

from PIL import Image, ImageChops, ImageFile, ImageOps, ImageStat

COUNT = 200
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK", "PA"]
RESAMPLING = [3, 3, 3, 2, 1]  # bicubic is what models use


def noise(rng, mode, size):
    """Pixels with edges, gradients and noise."""
    width, height = size
    image = Image.effect_noise(size, rng.uniform(20, 120)).convert("L")
    bands = [ImageChops.offset(image, rng.randrange(width), rng.randrange(height)) for _ in range(4)]
    for band in bands:
        for _ in range(rng.randrange(4)):
            x, y = rng.randrange(width), rng.randrange(height)
            box = (x, y, rng.randint(x, width), rng.randint(y, height))
            band.paste(rng.randrange(256), box)
    if mode == "I;16":
        values = [rng.randrange(65536) for _ in range(width * height)]
        out = Image.new("I;16", size)
        out.putdata(values)
        return out
    if mode in ("1", "L"):
        return bands[0].convert(mode)
    if mode == "LA":
        return Image.merge("LA", bands[:2])
    if mode in ("P", "PA"):
        out = Image.merge("RGB", bands[:3]).quantize(rng.choice([2, 4, 16, 200]))
        return out
    return Image.merge(mode, bands[:len(mode)])


def save(rng, image, mode, path):
    """Writes the image in some format that takes it; returns the format."""
    orientation = rng.choice([None, None, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    options = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    formats = ["PNG"]
    if mode in ("RGB", "L", "CMYK"):
        formats += ["JPEG", "JPEG"]
    if mode in ("RGB", "RGBA"):
        formats += ["WEBP", "WEBP"]
    if mode == "CMYK":
        formats = ["JPEG"]
    kind = rng.choice(formats)
    if kind == "PNG":
        if mode == "PA":
            options["transparency"] = bytes(rng.randrange(256) for _ in range(2))
    elif kind == "JPEG":
        options.update(quality=rng.randint(5, 100), progressive=rng.random() < 0.4,
                       subsampling=rng.choice([0, 1, 2]) if mode == "RGB" else 0)
        if "exif" in options:
            options["exif"] = options["exif"].tobytes()
    else:
        options.update(quality=rng.randint(5, 100), lossless=rng.random() < 0.4, method=1)
        if rng.random() < 0.3:
            more = [noise(rng, mode, image.size) for _ in range(2)]
            options.update(save_all=True, append_images=more)
    image.save(path, kind, **options)
    return kind


def expected_of(path):
    """What transformers hands to its processors: load_image() of the file."""
    image = Image.open(path)
    if image.mode == "I":
        # This Pillow would clip 16-bit grey at 255; newer ones take the high byte, and so do we.
        turned = ImageOps.exif_transpose(image)
        return Image.frombytes("L", turned.size, turned.tobytes()[1::4]).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transparent palettes
        return ImageOps.exif_transpose(image).convert("RGB")


def differences(a, b):
    """(largest, mean) difference of two RGB images in levels."""
    stat = ImageStat.Stat(ImageChops.difference(a, b))
    return max(high for _, high in stat.extrema), sum(stat.sum) / sum(stat.count)


def main():
    ImageFile.MAXBLOCK = 1 << 20  # or the JPEG writer of this Pillow stumbles over small images with EXIF
    cli = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else COUNT
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 6)
    cases, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            mode = MODES[i % len(MODES)]
            size = (rng.choice([1, 2, 3, 7]) if rng.random() < 0.15 else rng.randint(1, 260), rng.randint(1, 260))
            path, out = f"{folder}/{i}.image", f"{folder}/{i}.ppm"
            kind = save(rng, noise(rng, mode, size), mode, path)
            target = (rng.randint(1, 320), rng.randint(1, 320))
            if rng.random() < 0.1:
                target = (size[0], target[1])
            resampling = rng.choice(RESAMPLING)
            decoded = f"{folder}/{i}.decoded.ppm"
            lines.append(f"{path} {decoded} 0 0 0\n{path} {out} {target[0]} {target[1]} {resampling}\n")
            cases.append((f"image {i} {mode} {kind} {size} -> {target} by {resampling}", path, decoded, out, target,
                          resampling))
        answers = subprocess.run([cli], input="".join(lines), text=True, capture_output=True, check=True).stdout
        answers = answers.splitlines()
        assert len(answers) == 2 * count, f"{len(answers)} answers for {count} images"
        failed, worst, unequal = 0, 0, 0
        for i, (name, path, decoded, out, target, resampling) in enumerate(cases):
            want = expected_of(path)
            if answers[2 * i].startswith("error") or not os.path.exists(out):
                print(f"{name}: {answers[2 * i]}")
                failed += 1
                continue
            high, mean = differences(Image.open(decoded), want)
            resized_high, resized_mean = differences(Image.open(out), want.resize(target, resampling))
            worst = max(worst, resized_high)
            unequal += resized_high > 0
            if high > 0 or resized_high > 1 or resized_mean > 0.02:
                print(f"{name}: decoded {high} {mean:.4f}, resized {resized_high} {resized_mean:.4f}")
                failed += 1
    print(f"{count - failed} of {count} images as Pillow has them; {unequal} differ at all, by {worst} at most")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
